"""The fields that every config has, with their defaults; configs/*.py fill in models and sizes."""

import ml_collections
from ml_collections import config_dict


def encoder(weights: str, revision: str | None = None, **overrides) -> ml_collections.ConfigDict:
    """A config entry for a dual-encoder or cross-encoder, loaded or trained from labels."""
    c = ml_collections.ConfigDict()
    c.kind = 'dual_encoder'  # or cross_encoder
    c.weights = weights  # local directory, or name on the Hugging Face hub
    c.revision = config_dict.placeholder(str)  # commit on the hub, so that weights stay the same
    # Of a query tower of its own, alike but for its weights; None: one tower for queries and
    # passages, or as the checkpoint has them. The name in `weights` gives two that begin equal.
    c.query_weights = config_dict.placeholder(str)
    c.query_revision = config_dict.placeholder(str)
    c.layers = ()  # layers to keep, counted from 0, or first:3 or even:3; () for all
    # Of a model from scratch with the checkpoint's family, vocabulary and proportions; None: the
    # checkpoint's size and weights.
    c.hidden_size = config_dict.placeholder(int)
    c.pooling = config_dict.placeholder(str)  # mean, cls or max; None: as the checkpoint says
    c.normalize = config_dict.placeholder(bool)  # to unit length; None: as the checkpoint says
    # Of a cross-encoder: linear (its family's) or cosine (ours, begins as a dual-encoder does);
    # None: as the checkpoint has one.
    c.head = config_dict.placeholder(str)
    c.label = config_dict.placeholder(int)  # of a classifier with several: the one to rank by
    c.query_length = 32  # tokens, special ones included
    c.passage_length = 128
    # What the model was trained to see before the text (E5: 'query: '); '' for nothing, None: as
    # the checkpoint says.
    c.query_prefix = config_dict.placeholder(str)
    c.passage_prefix = config_dict.placeholder(str)
    c.scale = config_dict.placeholder(float)  # logits per unit of score; None: fitted to the labels
    c.dtype = 'float32'  # of matrix products; bfloat16 on TPU
    c.dropout = 0.0  # in training
    c.remat = 'none'  # computed again in the backward pass: all but products (dots), or all (full)
    c.train = ml_collections.ConfigDict()
    c.train.steps = 0  # 0: used as it is; otherwise trained from labels first
    c.train.batch_size = 32  # queries
    c.train.hard_negatives = 1
    c.train.negatives_from = 'bm25'  # the system whose top passages are the negatives
    c.train.depth = 30  # of its ranking
    c.train.scale = 20.0  # inverse temperature of the contrastive softmax
    c.train.learning_rate = 5e-5
    c.train.warmup_steps = 10
    c.train.total_steps = c.train.get_ref('steps')
    c.train.weight_decay = 0.01
    c.train.clip_norm = 1.0
    c.train.accumulate = 1
    if revision:
        c.revision = revision
    c.update(overrides)
    return c


def bm25() -> ml_collections.ConfigDict:
    """A config entry for BM25."""
    c = ml_collections.ConfigDict()
    c.kind = 'bm25'
    c.k1 = 0.9
    c.b = 0.4
    c.language = 'english'  # of stemmer and stop words
    c.scale = config_dict.placeholder(float)
    return c


def scores(path: str) -> ml_collections.ConfigDict:
    """A config entry for scores made elsewhere; jdkd/retrieval/trec.py lists the formats."""
    c = ml_collections.ConfigDict()
    c.kind = 'scores'
    c.path = path
    c.on_error = 'stop'  # at a line that cannot be used; or skip, which counts and logs them
    c.missing = config_dict.placeholder(float)  # score of pairs that are not there; None: an error
    c.scale = config_dict.placeholder(float)
    return c


def schedule(value: float | tuple) -> config_dict.FieldReference:
    """A field that holds a number, or knots ((progress, value), ...) of the training in [0, 1].

    Between knots it is linear: --config.loss.teacher='((0,1),(0.5,0.2))'.
    """
    return config_dict.FieldReference(value, field_type=object)


def get_config() -> ml_collections.ConfigDict:
    """Everything but the collection, the systems and the student."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.collection = ml_collections.ConfigDict()
    c.collection.source = 'python_docs'  # or KIND:PATH; see jdkd/corpus/sources/registry.py
    c.collection.options = ml_collections.ConfigDict()  # of the source
    # What becomes of passages, queries and judgements that cannot be used: stop at the first, or
    # skip, which leaves them out, counts and logs them.
    c.collection.on_error = 'stop'
    c.collection.train_split = 'train'
    c.collection.eval_split = 'dev'  # D_eval; held out of train where the collection lacks it
    c.collection.eval_fraction = 0.1  # of the train queries, if held out
    c.collection.test_split = 'test'
    # What becomes of train queries without a positive: distil, which learns from the teacher and
    # the assistants alone, or skip.
    c.collection.unlabelled = 'distil'
    c.collection.label_share = 1.0  # of the labelled train queries; the others lose their labels

    c.systems = ml_collections.ConfigDict()  # every retriever and scorer, by name
    c.first_stage = 'bm25'  # whose top passages the teacher re-ranks in the report
    c.assistants = ()  # names; the pool of Algorithm 1
    c.teacher = ml_collections.ConfigDict()
    c.teacher.members = ()  # names; the teacher's logit is the weighted sum of theirs
    c.teacher.weights = config_dict.placeholder(tuple)  # one a member; None: fitted to the labels
    c.student = ml_collections.ConfigDict()

    c.candidates = ml_collections.ConfigDict()
    c.candidates.hard_negatives = 5  # in each list, beside the positive
    # Systems that they are drawn from beside first_stage, the assistants and the student.
    c.candidates.retrievers = ()
    # Best passages of all rankings, of which the teacher's best stands in for a positive.
    c.candidates.stand_ins = 10
    c.candidates.labelled = 0.5  # of a round's lists at least: where labels are few, more often
    c.candidates.depth = 30  # top passages of every retriever that they are drawn from
    c.candidates.eval_lists = 256  # in D_eval, for its loss; its queries are all compared
    c.candidates.false_negatives = 'mask'  # teacher above the positive: out of InfoNCE; or keep

    c.dark = ml_collections.ConfigDict()
    c.dark.reinforced = 4  # reinforced negatives a list
    c.dark.noisy = 2  # noisy positives a list
    c.dark.splice = (0.1, 0.5)  # share of the positive's tokens spliced into a negative
    c.dark.mask = (0.1, 0.5)  # share of the positive's tokens masked

    c.selection = ml_collections.ConfigDict()
    c.selection.distance = 'kl'  # of an assistant to the teacher: kl, footrule or rbo
    # none, mean (one of all), subsets (all of two or more) or rrf (these, by reciprocal ranks)
    c.selection.fusion = 'subsets'
    c.selection.per = 'batch'  # or query

    c.self_paced = ml_collections.ConfigDict()
    c.self_paced.weighting = 'hard'  # or linear
    c.self_paced.share = schedule(((0.0, 0.5), (1.0, 1.0)))  # of lists that are kept

    c.loss = ml_collections.ConfigDict()  # weights of the terms; 0 switches a term off
    c.loss.contrastive = schedule(1.0)
    c.loss.teacher = schedule(1.0)
    c.loss.assistant = schedule(1.0)
    c.loss.dark = schedule(1.0)  # of the lists with dark examples: times teacher, times assistant
    c.loss.in_batch = schedule(0.0)  # the best assistant over all originals of the batch
    c.loss.distance = 'kl'  # to teacher and assistant; or margin_mse, in their logits' own units
    c.loss.temperature = schedule(1.0)  # of all score distributions over candidate lists
    c.loss.in_batch_temperature = schedule(16.0)  # of those over the batch

    c.rounds = 2
    c.steps_per_round = 200
    c.batch_size = 32  # queries, over all devices
    c.train_passage_length = 128  # tokens; the student may encode longer ones
    c.replay = 0.5  # share of solved queries that stay in later rounds

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.learning_rate = 5e-5  # at its peak
    c.optimizer.warmup_steps = 20
    c.optimizer.total_steps = c.get_ref('rounds') * c.get_ref('steps_per_round')
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0
    c.optimizer.accumulate = 1  # steps whose mean gradient is one update

    c.depth = 100  # passages kept of every ranking
    # Whether the passage with a query's own id is no result of it, as in BEIR.
    c.ignore_identical_ids = True
    c.index = ml_collections.ConfigDict()
    c.index.kind = 'scann'  # or exact
    c.index.reorder = 400  # candidates that ScaNN scores exactly
    c.index.threshold = 0.2  # anisotropic quantization
    c.index.leaves = 0.1  # share of ScaNN's leaves that are searched, from 20,000 passages on
    c.index.shard = 250_000  # most passages of one ScaNN index; bounds memory
    c.index.store = 'float32'  # of embeddings on disk; or bfloat16
    c.measures = ('MRR@10', 'nDCG@10', 'R@100')
    c.compare = 'MRR@10'  # decides on D_eval whether the student replaces an assistant

    c.rows = ml_collections.ConfigDict()  # of tokens, that training puts candidates into
    c.rows.lengths = 4  # of rows at most; every candidate has a row of its own
    # Tokens of a row that several candidates share, so that next to none is padding: for fused
    # attention, on TPUs, 256 or 512; 0: none do.
    c.rows.shared = 0
    c.rows.texts = 8  # of such a row at most
    c.rows.chunks = 1  # of a batch, one after another: gradient caching, for large batches
    # Of a batch, each with rows of its own; 0: one a device. The order of rows, and so what
    # dropout drops, depends on it: fix it to have the same on any number of devices.
    c.rows.parts = 0

    # Of the collection, for --mode plan where it is not at hand; None: counted.
    c.plan = ml_collections.ConfigDict()
    c.plan.passages = config_dict.placeholder(int)
    c.plan.train_queries = config_dict.placeholder(int)  # those of D_eval included
    c.plan.test_queries = config_dict.placeholder(int)
    c.plan.passage_tokens = config_dict.placeholder(float)  # mean
    c.plan.query_tokens = config_dict.placeholder(float)  # mean

    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices along the batch; -1: all that model leaves
    c.mesh.model = 1  # devices along the parameters
    c.sharding = (  # the first rule whose regex is found in a parameter's path decides
        (r'embeddings/word/', ('model', None)),
        (r'attention/(position_)?(query|key|value)/', (None, 'model')),
        (r'attention/output/kernel', ('model', None)),
        (r'ffn/(up|gate)/', (None, 'model')),
        (r'ffn/down/kernel', ('model', None)),
        (r'.*', ()),
    )

    c.log_every = 10  # steps
    c.checkpoint_every = 50  # steps
    return c

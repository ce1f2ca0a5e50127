"""Full-scale recipes for accelerators: a student of 66M parameters, taught by public models.

Sizes follow the closest published systems, named beside them. Revisions pin commits on the hub
that hold safetensors.
"""

import ml_collections

from jdkd.configs import common


def msmarco() -> ml_collections.ConfigDict:
    """8.8M MS MARCO passages, in the sizes of SimLM's distillation (Wang et al., 2023)."""
    c = _shared(query_length=32, passage_length=144)
    c.collection.source = 'irds:msmarco-passage'
    # ir_datasets has the passages without titles. SimLM's have RocketQA's, whose models read '-'
    # where there is none: as here, everywhere.
    c.collection.options.splits = {
        'train': 'msmarco-passage/train/judged',
        'dev': 'msmarco-passage/dev/2',  # Train queries would be those of the public assistants.
        'test': 'msmarco-passage/dev/small',
    }
    c.collection.eval_fraction = 4281 / 507_220  # for plans: the size of dev/2
    # https://ir-datasets.com/msmarco-passage.html; mean numbers of BERT tokens are approximate.
    c.plan.update(passages=8_841_823, train_queries=507_220, test_queries=6_980)
    c.plan.update(passage_tokens=75.0, query_tokens=9.0)
    c.ignore_identical_ids = False  # Queries and passages have separate numberings.
    c.rows.shared = 256

    c.systems.ranker = _encoder(  # ELECTRA-base, MRR@10 43.8 on dev
        'intfloat/simlm-msmarco-reranker',
        '67ecb9805eecae3635292feab4c61a8c28a6dc82',
        kind='cross_encoder',
        query_length=32,
        passage_length=160,  # 192 with the query, as it was trained
        passage_format='colon',
    )
    c.teacher.weights = (1.0,)  # its own logits, unscaled
    c.systems.simlm = _encoder(
        'intfloat/simlm-base-msmarco-finetuned',
        '329aac830098d9a5a027e53e932e0eec6a736cb2',
        query_length=32,
        passage_length=144,
        passage_format='pair',
        pooling='cls',
        normalize=True,
    )
    # SimLM's start, of whose 12 layers PROD's students keep the first 6. No revision is pinned:
    # give the commit that you have checked, or a directory, which must hold safetensors.
    c.student.weights, c.student.revision = 'intfloat/simlm-base-msmarco', None
    c.student.layers = tuple(range(6))
    c.student.passage_format = 'pair'
    c.assistants = ('simlm', 'e5', 'bge')

    c.candidates.hard_negatives = 23  # 24 passages a query
    c.batch_size = 64
    c.rounds, c.steps_per_round = 3, 16_000  # 6 epochs in all
    c.optimizer.learning_rate = 3e-5
    c.optimizer.warmup_steps = 1000
    # SimLM has 0.2 beside one divergence; here are five: from the teacher and the assistant, of
    # the lists with dark examples from both, and over the batch.
    c.loss.contrastive = 1.0
    c.measures = ('MRR@10', 'nDCG@10', 'R@1000')
    c.depth = 1000
    return c


def nq() -> ml_collections.ConfigDict:
    """Natural Questions on DPR's 21M passages of Wikipedia (Karpukhin et al., 2020)."""
    c = _shared(query_length=32, passage_length=192)  # SimLM's lengths here, DPR has 256
    c.collection.source = 'irds:dpr-w100/natural-questions'
    c.collection.options.splits = {
        'train': 'dpr-w100/natural-questions/train',
        'dev': 'dpr-w100/natural-questions/dev',
    }
    # The 3,610 test questions of the papers, which ir_datasets lacks, with their answers:
    # https://dl.fbaipublicfiles.com/dpr/data/retriever/nq-test.qa.csv
    c.collection.eval_fraction = 6515 / 65_395  # for plans: the size of dev
    c.collection.options.questions = {'test': 'data/nq-test.qa.csv'}
    # https://ir-datasets.com/dpr-w100.html; passages of 100 words and a title.
    c.plan.update(passages=21_015_324, train_queries=65_395, test_queries=3_610)
    c.plan.update(passage_tokens=140.0, query_tokens=12.0)
    c.ignore_identical_ids = False  # Queries and passages have separate numberings.
    c.rows.shared = 512

    c.systems.ranker = _reranker(query_length=32, passage_length=224)
    c.systems.ranker.dropout = 0.1
    c.systems.ranker.train.steps = 5000  # fine-tuned first: a teacher must know the collection
    c.systems.ranker.train.hard_negatives = 7
    c.systems.ranker.train.depth = 100
    c.systems.ranker.train.learning_rate = 2e-5
    c.systems.ranker.train.warmup_steps = 500
    c.assistants = ('mpnet', 'e5', 'bge')

    c.candidates.hard_negatives = 15
    c.batch_size = 128  # with DPR's epochs and learning rate
    c.rounds, c.steps_per_round = 3, 6000  # 40 epochs in all
    c.optimizer.learning_rate = 2e-5
    c.optimizer.warmup_steps = 400
    c.measures = ('AnswerR@20', 'AnswerR@100')  # DPR's top-k accuracy
    c.compare = 'AnswerR@20'
    return c


def own(source: str) -> ml_collections.ConfigDict:
    """Your own collection with train queries, such as beir:PATH."""
    c = _shared(query_length=64, passage_length=256)
    c.collection.source = source
    c.backtrack = 0.25
    c.rows.shared = 512

    c.systems.ranker = _reranker(query_length=64, passage_length=320)
    c.assistants = ('mpnet', 'e5', 'bge')
    # Labels are few: start from a retriever, TAS-B (Hofstaetter et al., 2021), with its pooling.
    c.student.weights = 'sentence-transformers/msmarco-distilbert-base-tas-b'
    c.student.revision = '052349d4e6adbfebfe01c62f92c0f3633b5d4d78'
    c.student.pooling, c.student.normalize = 'cls', False
    c.student.scale = 1.0  # its inner products are logits

    c.candidates.hard_negatives = 15
    c.batch_size = 64
    c.rounds, c.steps_per_round = 2, 2000  # For about 10,000 train queries.
    c.optimizer.learning_rate = 1e-5
    c.optimizer.warmup_steps = 200
    c.measures = ('nDCG@10', 'MRR@10', 'R@100')
    c.compare = 'nDCG@10'
    return c


def get_config(variant: str) -> ml_collections.ConfigDict | None:
    """The recipe `msmarco`, `nq` or `KIND=SOURCE`; None for any other variant."""
    kind, _, source = variant.partition('=')
    if kind and source:
        return own(f'{kind}:{source}')
    return {'msmarco': msmarco, 'nq': nq}.get(variant, lambda: None)()


def _encoder(weights: str, revision: str, **overrides) -> ml_collections.ConfigDict:
    return common.encoder(weights, revision, dtype='bfloat16', **overrides)


def _reranker(**lengths) -> ml_collections.ConfigDict:
    """A public cross-encoder, trained on many collections."""
    return _encoder(
        'BAAI/bge-reranker-base',
        'a2ea80a31f4bb01c0b2db0a472a1512b6e5a4400',
        kind='cross_encoder',
        **lengths,
    )


def _shared(query_length: int, passage_length: int) -> ml_collections.ConfigDict:
    """The fields that all recipes share; lengths are the student's, in tokens."""
    c = common.get_config()
    c.systems.bm25 = common.bm25()
    c.systems.e5 = _encoder(
        'intfloat/e5-base-v2',
        'cf5b12e53f015942f82e2bc0c3ff70c3826dc087',
        query_length=query_length + 8,  # room for the prefix
        passage_length=passage_length + 8,
        query_prefix='query: ',
        passage_prefix='passage: ',
        pooling='mean',
        normalize=True,
    )
    c.systems.bge = _encoder(
        'BAAI/bge-base-en-v1.5',
        'a5beb1e3e68b9ab74eb54cfd186867f64f240e1a',
        query_length=query_length + 16,
        passage_length=passage_length,
        query_prefix='Represent this sentence for searching relevant passages: ',
        pooling='cls',
        normalize=True,
    )
    c.systems.mpnet = _encoder(
        'sentence-transformers/multi-qa-mpnet-base-dot-v1',
        '39c51f707d95c3c40f68b47f1df9ae52319da356',
        query_length=query_length,
        passage_length=passage_length,
        pooling='cls',
        normalize=False,  # trained for inner products
    )
    c.teacher.members = ('ranker',)
    c.student = common.student(
        'distilbert/distilbert-base-uncased',
        '12040accade4e8a0f71eabdb258fecc2e7e948be',
        dtype='bfloat16',
        query_length=query_length,
        passage_length=passage_length,
        pooling='cls',
        normalize=True,
        scale=50.0,  # SimLM's temperature of 0.02
        dropout=0.1,
    )
    c.train_passage_length = passage_length
    c.loss.in_batch = 1.0  # The term that assistants were measured to help by.
    c.candidates.depth = c.depth = 200
    c.candidates.eval_lists = 1024
    c.log_every = 50
    c.checkpoint_every = 1000
    c.index.store = 'bfloat16'  # As they are computed.
    return c

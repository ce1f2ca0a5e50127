"""Fields of systems and of the student: what an entry of `systems` may hold."""

from collections.abc import Mapping
from typing import Any

from jdkd.config.schema import Section, field

DTYPES = ('float32', 'bfloat16')
ON_ERROR = ('stop', 'skip')
REMAT = ('none', 'dots', 'full')
POOLINGS = ('mean', 'cls', 'max')
FORMATS = ('joined', 'colon', 'pair')
ENCODERS = ('dual_encoder', 'cross_encoder')
ENDPOINTS = ('chat', 'completions')
SCALE = 'logits per unit of score; None: fitted to the labels of D_eval, or to spread'


class OptimizerConfig(Section):
    learning_rate: float = field(5e-5, 'at its peak; a cosine after the warm-up', 'above 0')
    warmup_steps: int = field(20, 'steps of linear warm-up', 'at least 0')
    total_steps: int = field(0, "steps of the loss's schedules; all of the training by default")
    cycle_steps: int = field(
        0,
        'steps from warm-up to rate 0, after which the rate starts again; a round by default, 0 '
        "(fine-tuning's default): all of total_steps",
        'at least 0',
    )
    weight_decay: float = field(0.01, "AdamW's weight decay", 'at least 0')
    clip_norm: float = field(1.0, 'largest global norm of a gradient', 'above 0')
    accumulate: int = field(1, 'steps whose mean gradient makes one update', 'at least 1')


class FineTuningConfig(OptimizerConfig):
    warmup_steps: int = field(10, 'steps of linear warm-up', 'at least 0')
    steps: int = field(
        0, 'fine-tuning steps on labels and pseudo-labels before round 0; 0: none', 'at least 0'
    )
    max_epochs: float = field(
        10.0,
        'passes over the queries with labels or pseudo-labels at most, which shorten `steps`',
        'above 0',
    )
    batch_size: int = field(32, 'queries', 'at least 1')
    hard_negatives: int = field(1, 'hard negatives per query', 'at least 1')
    negatives_from: str = field('bm25', 'system whose top passages are the negatives')
    depth: int = field(30, 'top passages that negatives are drawn from', 'at least 1')
    scale: float = field(20.0, 'inverse temperature of the contrastive softmax', 'above 0')


class EncoderFields(Section):
    """The fields of a checkpoint that training and zero-shot evaluation share."""

    revision: str | None = field(None, 'commit on the hub, so that weights stay the same')
    query_weights: str | None = field(
        None,
        'a query tower of its own, alike but for its weights; the name in `weights` gives two '
        'towers that begin equal; None: one tower, or as the checkpoint has them',
    )
    query_revision: str | None = field(
        None, 'commit of `query_weights`; None: `revision`, if it is the name in `weights`'
    )
    layers: tuple | str = field((), 'layers to keep, from 0, or first:3 or even:3; (): all')
    hidden_size: int | None = field(
        None,
        "width of a model from scratch with the checkpoint's family, vocabulary and proportions; "
        "None: the checkpoint's width and weights",
        'at least 1',
    )
    pooling: str | None = field(None, 'None: as the checkpoint says', (None, *POOLINGS))
    normalize: bool | None = field(None, 'to unit length; None: as the checkpoint says')
    head: str | None = field(
        None,
        "a cross-encoder's: linear (its family's) or cosine (begins as a dual-encoder); None: "
        'linear if the checkpoint has one',
        (None, 'linear', 'cosine'),
    )
    label: int | None = field(None, 'label to rank by, of a classifier with several', 'at least 0')
    query_prefix: str | None = field(
        None, "text before each query (E5: 'query: '); '': none; None: as the checkpoint says"
    )
    passage_prefix: str | None = field(None, 'text before each passage; as query_prefix')
    passage_format: str | None = field(
        None,
        "title and text of a passage: joined by a space (as in BEIR), by a colon ('title: text'), "
        "or a pair ('[CLS] title [SEP] text [SEP]' with token types; dual-encoders alone); the "
        "last two read the title '-' where there is none, as SimLM does; None: as jdkd's export "
        'says, otherwise joined',
        (None, *FORMATS),
    )
    dtype: str = field('float32', 'dtype of matrix products; bfloat16 for TPUs and GPUs', DTYPES)


class EncoderSpec(EncoderFields):
    """A dual-encoder or cross-encoder, used as it is or fine-tuned on the labels first."""

    kind: str = field('dual_encoder', 'kind of the system', ENCODERS)
    weights: str = field('', 'local directory, or name on the Hugging Face hub')
    query_length: int = field(
        32,
        'tokens, special ones included; 0: those of nine tenths of the train queries, at least 32 '
        'and at most 128',
        '0 or at least 3',
    )
    passage_length: int = field(
        128,
        'tokens, special ones included; 0: those of nine tenths of the passages, at most 256 (of '
        'python_docs: 80)',
        '0 or at least 3',
    )
    projection: int | None = field(
        None,
        'dimensions of a linear layer to add after pooling, which begins as the identity; as many '
        'as a wider system in align.to has: the student comes to share its space',
        'at least 1',
    )
    scale: float | None = field(None, SCALE, 'above 0')
    dropout: float = field(0.0, 'in training', 'at least 0 and below 1')
    remat: str = field(
        'none',
        'rematerialisation: dots keeps matrix products, full nothing',
        REMAT,
    )
    train: FineTuningConfig = field(FineTuningConfig, 'fine-tuning on the labels')


class StudentSpec(EncoderSpec):
    """The student."""

    freeze: str = field(
        'none',
        'passage: of two towers (query_weights), the query tower alone is trained, so that an '
        'index of passages that exists stays valid',
        ('none', 'passage'),
    )
    dims: tuple[int, ...] = field(
        (),
        'widths that embeddings may be cut to (Matryoshka): the contrastive, embedding and '
        'in-batch terms are means over the full width and these; (): the full width alone',
    )


class BM25Spec(Section):
    kind: str = field('bm25', 'BM25', ('bm25',))
    k1: float = field(0.9, 'saturation of term counts', 'at least 0')
    b: float = field(0.4, 'normalisation by length', 'within 0 and 1')
    language: str = field('english', 'language of stemmer and stop words')
    scale: float | None = field(None, SCALE, 'above 0')


class ScoresSpec(Section):
    """Scores made elsewhere; `jdkd.retrieval.trec` reads the formats."""

    kind: str = field('scores', 'scores of another ranker', ('scores',))
    path: str = field('', 'run file or JSON lines, gzipped or not')
    format: str | None = field(
        None, "json or the columns, such as 'query passage score'; None: told from the file"
    )
    on_error: str = field('stop', 'at a bad line: stop, or skip (counted and logged)', ON_ERROR)
    missing: float | None = field(
        None, 'score of pairs without one; None: lists do without these', 'finite'
    )
    scale: float | None = field(None, SCALE, 'above 0')


class ListwiseConfig(Section):
    """Rankings by windows of passages, as RankGPT asks for them."""

    window: int = field(
        0, 'passages of a prompt; 0: each passage is judged by itself (pointwise)', 'at least 0'
    )
    step: int = field(10, 'passages by which windows slide, from the end to the top', 'at least 1')
    prompt: str = field(
        'Rank the {count} passages below, each with an identifier in brackets, by how well they '
        'answer the query.\n\n{passages}\n\nQuery: {query}\n\nAnswer with the identifiers of '
        'all passages alone, the most relevant first, such as [2] > [1].',
        'template of a window; holds {query} and {passages}, and may hold {count}',
    )


class LLMSpec(Section):
    """A language model behind an OpenAI-compatible endpoint; `jdkd.systems.llm` asks it."""

    kind: str = field('llm', 'language model behind an HTTP endpoint', ('llm',))
    base_url: str = field('', "the endpoint's address, such as http://localhost:8000/v1")
    model: str = field('', "the model's name as the server knows it")
    endpoint: str = field(
        'chat',
        "chat: /chat/completions, which applies the model's chat template; completions: "
        '/completions, whose prompt is the template alone',
        ENDPOINTS,
    )
    api_key_variable: str | None = field(
        None, 'environment variable that holds the API key; None: none is sent'
    )
    prompt: str = field(
        'Passage: {passage}\n\nQuery: {query}\n\nDoes the passage answer the query? Answer with '
        'yes or no alone.',
        'template of a pair; holds {query} and {passage}, and may hold {title}, which {passage} '
        'begins with otherwise',
    )
    yes: str = field('yes', 'answer that means relevant; case and spaces around do not count')
    no: str = field('no', 'answer that means not relevant')
    top_logprobs: int = field(
        20, 'tokens whose log-probabilities are asked for; TGI gives at most 5', 'at least 1'
    )
    missing: float | None = field(
        None,
        'logit of a pair whose answer begins with neither yes nor no; None: stop at such an answer',
        'finite',
    )
    listwise: ListwiseConfig = field(ListwiseConfig, 'rankings by windows of passages')
    depth: int = field(
        0,
        "passages of first_stage's ranking that it re-ranks where it retrieves, as an assistant; "
        '0: it scores lists alone',
        'at least 0',
    )
    passage_words: int = field(0, 'words of a passage that prompts hold; 0: all', 'at least 0')
    extra: Mapping[str, Any] = field(
        {}, 'more fields of requests; None takes one out, such as temperature'
    )
    concurrency: int = field(16, 'requests at the same time, of each process', 'at least 1')
    requests_per_minute: float = field(0.0, 'limit of each process; 0: none', 'at least 0')
    timeout: float = field(60.0, 'seconds to wait for an answer', 'above 0')
    retries: int = field(
        6, 'more tries after a time-out, a lost connection, status 429 or 5xx', 'at least 0'
    )
    max_pairs: int | None = field(
        None, 'pairs that the model may be asked for in a workdir; None: any number', 'at least 0'
    )
    scale: float | None = field(None, SCALE, 'above 0')


class EvalEncoderSpec(EncoderFields):
    """Overrides of what a checkpoint says, for zero-shot evaluation."""

    kind: str | None = field(None, 'None: as the checkpoint is', (None, *ENCODERS))
    query_length: int | None = field(
        None,
        "tokens; None: the checkpoint's length for queries, at most 512; a cross-encoder gives "
        'a quarter of its own to the query',
        'at least 3',
    )
    passage_length: int | None = field(None, 'tokens; as query_length', 'at least 3')


SystemSpec = BM25Spec | EncoderSpec | LLMSpec | ScoresSpec

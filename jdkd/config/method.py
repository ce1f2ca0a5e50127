"""The fields of what a run learns from and how: collection, teacher, lists, terms of the loss.

As in `fields`, each has its type, default, comment, and the range that validation checks.
"""

from collections.abc import Mapping
from typing import Any

from jdkd.config.schema import Schedule, Section, field
from jdkd.config.systems import ON_ERROR, OptimizerConfig

FUSIONS = ('none', 'mean', 'subsets', 'rrf')
PSEUDO_QUERIES = ('keyphrases', 'sentence', 'title')


class AlignConfig(OptimizerConfig):
    """Alignment before round 0: the student learns the embeddings of assistants (ours)."""

    to: tuple[str, ...] = field((), 'dual-encoders whose embeddings the student learns; (): none')
    epochs: float = field(0.0, 'passes over passages and train queries', 'at least 0')
    min_steps: int = field(0, 'steps at least, however small the collection', 'at least 0')
    max_steps: int = field(0, 'steps at most; 0: as many as epochs take', 'at least 0')
    batch_size: int = field(128, 'texts, over all devices', 'at least 1')
    total_steps: int = field(0, 'steps of the schedule; 0: all of the alignment', 'at least 0')
    learning_rate: float = field(5e-4, 'at its peak; a cosine after the warm-up', 'above 0')
    warmup_steps: int = field(20, 'steps of linear warm-up', 'at least 0')


class PseudoQueriesConfig(Section):
    count: int = field(0, 'pseudo-queries made from passages, at most; 0: none', 'at least 0')
    kinds: tuple[str, ...] = field(
        PSEUDO_QUERIES,
        'what they are made of: keyphrases, sentence (with words left out), title',
    )
    file: str | None = field(
        None,
        'more of them from any generator, such as doc2query: JSON lines {"_id", "text", '
        '"passage"} or tab-separated id, text, passage; the passage may be missing',
    )
    positive: bool = field(
        False,
        'whether the passage that a query was made from is its positive; False: it has no label, '
        "and the teacher's best passage stands in",
    )


class PseudoLabelsConfig(Section):
    """Labels that rankers give to unlabelled train queries; see `algorithm.pseudo_labels`."""

    systems: tuple[str, ...] = field(
        (), 'retrievers, none trained from labels, whose summed scores choose; (): none are given'
    )
    share: float = field(
        0.5,
        'share of the unlabelled queries that get one: those whose best passage leads the second '
        'by most',
        'above 0 and at most 1',
    )


class CollectionConfig(Section):
    source: str = field('python_docs', 'a KIND:PATH of `jdkd.corpus.sources.registry`')
    options: Mapping[str, Any] = field({}, 'options of the source')
    on_error: str = field(
        'stop',
        'at an unusable passage, query or judgement: stop, or skip (counted, logged)',
        ON_ERROR,
    )
    train_split: str = field('train', 'split of the train queries')
    eval_split: str = field('dev', 'D_eval; held out of train where the collection lacks it')
    eval_fraction: float = field(
        0.1, 'share of train queries that is held out', 'above 0 and below 1'
    )
    test_split: str | None = field('test', 'split of the test queries; None: nothing is tested')
    unlabelled: str = field(
        'distil',
        'train queries without a positive: distil (learn from teacher and assistants) or skip',
        ('distil', 'skip'),
    )
    label_share: float = field(
        1.0, 'share of labelled train queries that keep their labels; 0: none', 'within 0 and 1'
    )
    eval_labels: bool = field(
        True,
        'whether D_eval keeps its labels; without any, scores are brought to spread and the '
        "teacher's best passages stand in",
    )
    pseudo_queries: PseudoQueriesConfig = field(
        PseudoQueriesConfig, 'queries made from passages, added to the train split'
    )


class TeacherConfig(Section):
    members: tuple[str, ...] = field((), "systems; the teacher's logit is their weighted sum")
    weights: tuple[float, ...] | None = field(
        None, 'one per member; None: fitted to the labels of D_eval, or to spread'
    )


class CandidatesConfig(Section):
    hard_negatives: int = field(5, 'hard negatives in each list, beside the positive', 'at least 1')
    retrievers: tuple[str, ...] = field(
        (), 'systems that mine negatives, beside first_stage, assistants and student'
    )
    stand_ins: int = field(
        10, "retrieved passages; the teacher's best stands in for a missing positive", 'at least 1'
    )
    labelled: float = field(0.5, 'least share of labelled queries in a round', 'within 0 and 1')
    depth: int = field(30, 'top passages of each retriever to draw from', 'at least 1')
    hardest: int = field(
        0,
        "of a query's mined passages, how many hard negatives are drawn from: those that the "
        'teacher ranks highest, of those at least margin below the positive; 0: all, unscored',
        'at least 0',
    )
    margin: float = field(
        0.0,
        'logits that the teacher must put a negative below the positive; false_negatives are those '
        'it does not',
        'at least 0',
    )
    scored: int = field(
        100, 'mined passages of a query that the teacher scores, per round, at most', 'at least 1'
    )
    eval_lists: int = field(256, 'lists of D_eval for its loss', 'at least 1')
    false_negatives: str = field(
        'mask',
        'negatives that the teacher puts less than margin below the positive: mask (out of '
        'InfoNCE) or keep',
        ('mask', 'keep'),
    )


class DarkConfig(Section):
    reinforced: int = field(4, 'reinforced negatives per list', 'at least 0')
    noisy: int = field(2, 'noisy positives per list', 'at least 0')
    splice: tuple[float, float] = field(
        (0.1, 0.5),
        "share (low, high) of the positive's words spliced into a negative, of those that the "
        'student reads in training',
    )
    mask: tuple[float, float] = field((0.1, 0.5), "share (low, high) of a positive's words masked")


class SelectionConfig(Section):
    distance: str = field(
        'kl', 'distance of an assistant from the teacher', ('kl', 'footrule', 'rbo')
    )
    persistence: float = field(
        0.9, 'of rbo: the smaller, the more the top of a list counts', 'above 0 and below 1'
    )
    fusion: str = field(
        'subsets',
        'none, mean (of all), subsets (means of two or more) or rrf (subsets by reciprocal ranks)',
        FUSIONS,
    )
    per: str = field('batch', 'one choice per batch or per query', ('batch', 'query'))


class SelfPacedConfig(Section):
    weighting: str = field('hard', 'hard mask, or linear weights', ('hard', 'linear'))
    share: Schedule = field(((0.0, 0.5), (1.0, 1.0)), 'share of lists kept; may be a schedule')
    cap: Schedule = field(
        ((0.0, 0.95), (1.0, 1.0)),
        'lists of which the teacher is surer are left out; 1: none; may be a schedule',
    )


class LossConfig(Section):
    """Weights of the terms; 0 switches a term off, and every weight may be a schedule."""

    contrastive: Schedule = field(1.0, 'InfoNCE over the batch')
    teacher: Schedule = field(1.0, 'divergence from the teacher')
    assistant: Schedule = field(1.0, 'divergence from the selected assistant')
    dark: Schedule = field(1.0, 'lists with dark examples: times teacher, times assistant')
    in_batch: Schedule = field(0.0, 'the selected assistant over all passages of the batch')
    embedding: Schedule = field(
        0.0, 'squared distance from the embeddings of align.to, of queries and originals'
    )
    pool: Schedule = field(
        0.0,
        'divergence from the teacher over all its scored passages of a query (candidates.scored); '
        'the gradient goes through the query alone',
    )
    distance: str = field('kl', "kl, or margin_mse in the logits' own units", ('kl', 'margin_mse'))
    temperature: Schedule = field(1.0, 'temperature of score distributions over candidate lists')
    in_batch_temperature: Schedule = field(
        16.0, 'temperature of score distributions over the batch'
    )

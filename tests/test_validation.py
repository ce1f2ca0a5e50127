"""Configs that cannot work, each with the sentence that says so."""

import pytest

from configs import common, mta4dpr
from jdkd.runtime import config as configs
from jdkd.validation import validate


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('assistants', ('minilm', 'nobody'), "'nobody' is no entry of config.systems"),
        ('assistants', ('cross',), "'cross' is a cross-encoder and cannot search"),
        ('collection.source', 'csv:x', "unknown collection source 'csv:x': use one of"),
        ('collection.on_error', 'ignore', "collection.on_error is 'ignore'; use stop or skip"),
        ('candidates.retrievers', ('cross',), "'cross' is a cross-encoder and cannot search"),
        ('teacher.members', (), 'teacher.members is empty'),
        ('teacher.weights', (1.0,), 'does not give one weight for each'),
        ('compare', 'MRR@5', "compare='MRR@5' is not among measures"),
        ('candidates.hard_negatives', 0, 'must be at least 1'),
        ('candidates.depth', 500, 'candidates.depth=500 is more than is kept of a ranking'),
        ('selection.fusion', 'max', "selection.fusion is 'max'; use one of none, mean"),
        ('selection.distance', 'l2', "selection.distance is 'l2'; use one of kl, footrule, rbo"),
        ('selection.per', 'list', "selection.per is 'list'; use one of batch, query"),
        ('self_paced.weighting', 'soft', "weighting is 'soft'; use one of hard, linear"),
        ('loss.distance', 'mse', "loss.distance is 'mse'; use one of kl, margin_mse"),
        ('candidates.false_negatives', 'drop', "is 'drop'; use one of mask, keep"),
        ('loss.teacher', 'half', "loss.teacher='half' is no schedule"),
        ('loss.dark', -1.0, 'loss.dark=-1.0: -1.0 must be at least 0'),
        ('loss.temperature', ((0.0, 1.0), (1.0, 0.0)), '0.0 must be at least 0.001'),
        ('self_paced.share', 0.0, '0.0 must be within 0.001 and 1'),
        ('optimizer.warmup_steps', 999, 'optimizer.warmup_steps=999 leaves nothing'),
        ('systems.minilm_ft.train.warmup_steps', 30, 'minilm_ft.train.warmup_steps=30 leaves'),
    ],
)
def test_what_cannot_work_is_said_before_it_is_tried(field, value, message):
    config = mta4dpr.get_config()
    validate(configs.resolve(config))
    owner = config
    *parents, name = field.split('.')
    for parent in parents:
        owner = owner[parent]
    owner[name] = value
    with pytest.raises(ValueError, match=message):
        validate(configs.resolve(config))


def test_imported_scores_and_dark_examples_exclude_each_other():
    config = mta4dpr.get_config()
    config.systems.ranker = common.scores('ranker.trec')
    config.teacher.members = ('ranker',)
    with pytest.raises(ValueError, match="'ranker' has imported scores and cannot score dark"):
        validate(configs.resolve(config))
    config.dark.reinforced = config.dark.noisy = 0
    validate(configs.resolve(config))
    # What only mines negatives scores nothing.
    config = mta4dpr.get_config()
    config.systems.ranker = common.scores('ranker.trec')
    config.candidates.retrievers = ('ranker',)
    validate(configs.resolve(config))


def test_imported_scores_do_not_reach_over_a_batch():
    config = mta4dpr.get_config()
    config.systems.ranker = common.scores('ranker.trec')
    config.assistants = ('ranker',)
    config.dark.reinforced = config.dark.noisy = 0
    with pytest.raises(ValueError, match="'ranker' has imported scores, which do not reach"):
        validate(configs.resolve(config))
    config.loss.in_batch = 0.0
    validate(configs.resolve(config))

"""Which systems a config uses, and for what."""

import pytest

from jdkd.config import (
    BM25Spec,
    Config,
    EncoderSpec,
    FineTuningConfig,
    PseudoLabelsConfig,
    StudentSpec,
)
from jdkd.systems import roles


def trained(miner, steps=3):
    return EncoderSpec(train=FineTuningConfig(steps=steps, negatives_from=miner))


SYSTEMS = {
    'bm25': BM25Spec(),
    'plain': EncoderSpec(),
    'tuned': trained('miner'),
    'miner': trained('bm25'),
    'space': EncoderSpec(),
    'unused': trained('plain'),
    'untrained': trained('unused', steps=0),
}


def make_config(**changes):
    config = Config(systems=SYSTEMS, first_stage='plain', assistants=('tuned', 'plain'))
    return config.replace(teacher=config.teacher.replace(members=('untrained',)), **changes)


def test_used_are_the_roles_systems_and_whoever_mines_for_them():
    config = make_config()
    assert roles.used(config) == ['plain', 'tuned', 'untrained', 'miner', 'bm25']
    assert list(roles.trained(config)) == ['tuned', 'miner']
    assert list(roles.encoders(config)) == [
        *(f'systems.{name}' for name in ('plain', 'tuned', 'untrained', 'miner')),
        'student',
    ]


def test_retrievers_are_the_first_stage_the_assistants_and_who_mines_beside_them():
    config = make_config()
    config = config.replace(candidates=config.candidates.replace(retrievers=('bm25',)))
    assert roles.retrievers(config) == ['plain', 'tuned', 'plain', 'bm25']


def test_the_student_is_aligned_where_embeddings_are_learnt():
    config = make_config()
    align = config.align.replace(to=('space',))
    assert roles.aligned_with(config.replace(align=align)) == ()
    for changed in (
        config.replace(align=align.replace(epochs=0.5)),
        config.replace(align=align, loss=config.loss.replace(embedding=1.0)),
    ):
        assert roles.aligned_with(changed) == ('space',) and 'space' in roles.used(changed)


def test_targets_are_embedded_anew_where_the_student_reads_less():
    config = make_config(train_passage_length=50, student=StudentSpec(passage_length=127))
    assert roles.cut_targets(config) == []
    aligned = config.replace(align=config.align.replace(to=('space',), epochs=0.5))
    space = SYSTEMS['space']
    assert roles.cut_targets(aligned) == [('space', space.replace(passage_length=127))]
    whole = aligned.replace(student=StudentSpec(passage_length=128))
    assert roles.cut_targets(whole) == []
    # In the rounds it reads less than as it is aligned.
    both = aligned.replace(loss=config.loss.replace(embedding=1.0))
    assert [s.passage_length for _, s in roles.cut_targets(both)] == [50, 127]
    rounds = both.replace(align=both.align.replace(epochs=0.0))
    assert roles.cut_targets(rounds) == [('space', space.replace(passage_length=50))]


def test_fine_tuning_cuts_the_passages_of_dual_encoders_alone():
    config = make_config(train_passage_length=100)
    assert roles.fine_tuning_length(config, EncoderSpec(passage_length=128)) == 100
    assert roles.fine_tuning_length(config, EncoderSpec(passage_length=60)) == 60
    cross = EncoderSpec(kind='cross_encoder', passage_length=128)
    assert roles.fine_tuning_length(config, cross) == 128


@pytest.mark.parametrize(
    ('labelled', 'steps', 'warmup', 'accumulate'),
    [
        (240, 100, 10, 1),
        (239, 99, 9, 1),
        (64, 26, 2, 1),
        (6, 2, 0, 1),
        (5, 0, 0, 1),  # Less than a quarter of a batch.
        (64, 25, 2, 5),
        (6, 5, 0, 5),
    ],
)
def test_few_labels_shorten_fine_tuning_and_its_schedule(labelled, steps, warmup, accumulate):
    schedule = {'steps': 100, 'warmup_steps': 10, 'total_steps': 100}
    tuning = FineTuningConfig(**schedule, batch_size=24, accumulate=accumulate, max_epochs=10.0)
    entry = EncoderSpec(train=tuning)
    systems = {'plain': EncoderSpec(), 'bm25': BM25Spec(), 'tuned': entry, 'unused': entry}
    config = Config(systems=systems, first_stage='bm25', assistants=('tuned', 'plain'))
    shorter = tuning.replace(steps=steps, warmup_steps=warmup, total_steps=steps)
    assert roles.fit_to_labels(config, lambda: (labelled, 0)) == config.replace(
        systems={**systems, 'tuned': EncoderSpec(train=shorter)}
    )


@pytest.mark.parametrize(('labelled', 'steps'), [(60, 92), (30, 91), (240, 100)])
def test_pseudo_labels_count_and_are_not_given_where_all_queries_have_labels(labelled, steps):
    schedule = {'steps': 100, 'warmup_steps': 0, 'total_steps': 100}
    tuned = EncoderSpec(train=FineTuningConfig(**schedule, batch_size=24, max_epochs=10.0))
    systems = {'plain': EncoderSpec(), 'bm25': BM25Spec(), 'tuned': tuned}
    config = Config(systems=systems, first_stage='bm25', assistants=('tuned',))
    config = config.replace(pseudo_labels=PseudoLabelsConfig(systems=('plain',), share=0.9))
    found = roles.fit_to_labels(config, lambda: (labelled, 240 - labelled))
    # 60 + 162 queries make 92.5 batches in ten passes; 30 + 189 make 91.2.
    assert found.systems['tuned'].train.steps == steps
    assert found.pseudo_labels.systems == (() if labelled == 240 else ('plain',))
    assert 'plain' in roles.used(config) and 'plain' not in roles.used(
        config.replace(pseudo_labels=PseudoLabelsConfig())
    )


def test_nothing_is_fine_tuned_without_labels_where_pseudo_labels_were_asked_for():
    train = FineTuningConfig(steps=100, warmup_steps=10, total_steps=100, accumulate=2)
    systems = {'plain': EncoderSpec(), 'bm25': BM25Spec(), 'tuned': EncoderSpec(train=train)}
    config = Config(systems=systems, first_stage='bm25', assistants=('tuned',))
    assert roles.fit_to_labels(config, lambda: (0, 0)) == config  # Validation says what is wrong.
    asked = config.replace(pseudo_labels=PseudoLabelsConfig(systems=('plain',)))
    found = roles.fit_to_labels(asked, lambda: (0, 0))
    assert found.systems['tuned'].train.steps == 0 and not roles.trained(found)
    assert found.pseudo_labels.systems == ()
    assert roles.fit_to_labels(asked, lambda: (0, 16)).systems['tuned'].train.steps == 2


def test_labels_are_not_counted_where_nothing_is_fine_tuned():
    config = Config(systems={'bm25': BM25Spec()}, first_stage='bm25', assistants=('bm25',))
    assert roles.fit_to_labels(config, lambda: pytest.fail('counted')) == config


def test_a_name_without_an_entry_is_kept_and_told():
    config = make_config(first_stage='gone')
    assert 'gone' in roles.used(config) and roles.miner_of(config, 'gone') is None
    assert roles.miner_of(config, 'untrained') is None and roles.miner_of(config, 'bm25') is None
    assert roles.system_spec(config, 'bm25') == BM25Spec()
    with pytest.raises(ValueError, match="'gone' is no entry of config.systems; there are: bm25, "):
        roles.system_spec(config, 'gone')

"""Lists of a round: what is kept of them, part by part, and what decides them."""

import dataclasses
import types

import numpy as np
import pytest

from jdkd.algorithm import mining, round_files
from jdkd.config import CandidatesConfig, Config, DarkConfig, EncoderSpec
from jdkd.lists.slices import SlicedTexts
from jdkd.tokens.layouts import Layout
from jdkd.tokens.store import TokenStore
from tests.helpers import tables

PASSAGES, DARK = 9, 3
ACTIVE = np.array([0, 2])
MINED = {'digest': 'mined'}


class Encoder:
    """The student's; a dark example's tokens are 1, 2, ... up to one more than its number."""

    spec, layout, passage_end = EncoderSpec(passage_length=12), Layout('joined', ''), 99
    tokenizer = types.SimpleNamespace(fingerprint='t')

    def text_room(self, length):
        return length - 2

    def dark_tokens(self, run, drawn):
        assert drawn.num_dark == DARK
        lengths = 1 + np.arange(len(drawn) * DARK)
        columns = np.arange(lengths.max())
        return TokenStore.from_rows(np.where(columns < lengths[:, None], 1 + columns, 0), 0)


@pytest.fixture
def run(tmp_path):
    config = Config(batch_size=2, steps_per_round=3, train_passage_length=4, seed=5)
    config = config.replace(
        candidates=CandidatesConfig(hard_negatives=2, eval_lists=4),
        dark=DarkConfig(reinforced=2, noisy=1),
    )
    run = tables.make_run(tmp_path, config, PASSAGES, {'train': [0, 1, 2], 'dev': [3, 4]})
    mined = tmp_path / 'rounds/01/runs'
    mined.mkdir(parents=True)
    for split, count in (('train', 3), ('eval', 2)):
        np.save(mined / f'{split}.npy', np.tile(np.int32([5, 6, 7, 8]), (count, 1)))
    return run


@pytest.fixture
def drawn(monkeypatch):
    """What dark examples were drawn with, part by part; parts are of four lists."""
    calls = []

    def generate(passages, texts, tokenizer, **kwargs):
        calls.append({'passages': passages.tolist(), 'tokenizer': tokenizer, **kwargs})
        assert len(texts) == PASSAGES
        # Each is the beginning of the positive.
        slices = [[own[0], 0, 1 + k] for own in passages.tolist() for k in range(DARK)]
        return SlicedTexts(np.int32(slices), np.ones((len(passages), DARK), np.int32))

    monkeypatch.setattr(mining, 'PART_LISTS', 4)
    monkeypatch.setattr(mining.dark, 'generate', generate)
    return calls


def keep(run, active=ACTIVE, scored=None, mined=MINED):
    return mining.keep_lists(run, 1, mined, Encoder(), active, scored)


def test_lists_and_their_dark_examples_are_read_as_they_were_drawn(run, drawn):
    keep(run)
    rows, copies, passages = mining.draw(run, 'train', 1, ACTIVE)
    found = round_files.load_lists(run, 1, 'train')
    assert sorted(rows) == [0, 0, 0, 2, 2, 2]
    np.testing.assert_array_equal(found.query, rows)
    np.testing.assert_array_equal(found.passages, passages)
    assert found.dark.counts.shape == (6, DARK)
    expected = [[own[0], 0, 1 + k] for own in passages.tolist() for k in range(DARK)]
    np.testing.assert_array_equal(found.dark.slices, expected)
    # D_eval has lists of all its queries.
    assert sorted(round_files.load_lists(run, 1, 'eval').query) == [0, 1]
    first, second, on_eval = drawn
    assert first['passages'] + second['passages'] == passages.tolist()
    assert [len(part['passages']) for part in drawn] == [4, 2, 2]
    assert [*first['copies'], *second['copies']] == copies.tolist()
    assert first['query_ids'] + second['query_ids'] == [f'train{i}' for i in rows]
    assert {q[:3] for q in on_eval['query_ids']} == {'dev'}
    for part in drawn:
        assert (part['room'], part['seed'], part['round_index']) == (2, 5, 1)
        assert part['config'] == run.config.dark and part['tokenizer'] is Encoder.tokenizer


def test_tokens_of_dark_examples_are_cut_as_in_training(run, drawn):
    keep(run)
    found = round_files.load_dark_tokens(run, 1, 'train')
    assert found.shape == (6, DARK, 4)
    assert found[0].tolist() == [[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 0]]
    assert found[1].tolist() == [[1, 2, 3, 4], [1, 2, 3, 99], [1, 2, 3, 99]]
    assert found[4].tolist() == found[0].tolist()  # The next part.


def test_without_dark_examples_there_are_lists_alone(run, drawn):
    config = run.config.replace(dark=DarkConfig(reinforced=0, noisy=0))
    run = dataclasses.replace(run, config=config)
    keep(run)
    assert not drawn and round_files.load_dark_tokens(run, 1, 'train') is None
    assert round_files.load_lists(run, 1, 'train').num_dark == 0


def test_drawing_goes_on_after_an_interrupt(run, drawn, monkeypatch):
    generate, interrupted = mining.dark.generate, []

    def stop(passages, *args, **kwargs):
        if len(drawn) == 1 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return generate(passages, *args, **kwargs)

    monkeypatch.setattr(mining.dark, 'generate', stop)
    with pytest.raises(KeyboardInterrupt):
        keep(run)
    keep(run)
    assert [len(part['passages']) for part in drawn] == [4, 2, 2]


def test_what_decides_lists_decides_their_stage(run, drawn):
    keep(run)
    for differs, changes in (
        ('active', {'active': np.array([0, 1])}),
        ('runs', {'mined': {'digest': 'other'}}),
        ('scored', {'scored': {'pairs': 'x'}}),
    ):
        with pytest.raises(ValueError, match=rf'\({differs} differ\)'):
            keep(run, **changes)
    config = run.config
    for differs, changed in (
        ('dark', config.replace(dark=DarkConfig(reinforced=1, noisy=2))),
        ('length', config.replace(train_passage_length=5)),
        ('seed', config.replace(seed=6)),
        ('lists', config.replace(steps_per_round=4)),
    ):
        with pytest.raises(ValueError, match=rf'\({differs} differ\)'):
            keep(dataclasses.replace(run, config=changed))


def test_mined_passages_are_of_the_retrievers_and_their_depth(run):
    ranks = np.arange(PASSAGES)
    first = tables.make_system(run, 'a', np.tile(ranks, (3, 1)))
    second = tables.make_system(run, 'b', np.tile(-ranks, (3, 1)))
    mining.mine(run, 2, [first, second], [first])
    pool = np.load(run.workdir / 'rounds/02/runs/train.npy')
    # Turn by turn, without the positives 0 and 1, whose turns are lost.
    assert pool[0, :4].tolist() == [8, 7, 1, 6] and 0 not in pool[0]
    assert pool[1, :4].tolist() == [8, 0, 7, 6] and 1 not in pool[1]
    with pytest.raises(ValueError, match=r'\(systems differ\)'):
        mining.mine(run, 2, [first], [first])
    deeper = run.config.replace(candidates=run.config.candidates.replace(depth=3))
    with pytest.raises(ValueError, match=r'\(depth differ\)'):
        mining.mine(dataclasses.replace(run, config=deeper), 2, [first, second], [first])

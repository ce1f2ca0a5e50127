"""Pseudo-queries: what they are made of, what is left out, and that they repeat exactly."""

import json
import math

import numpy as np
import pytest

from jdkd.config import PseudoQueriesConfig
from jdkd.corpus import pseudo_queries as lib
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages

TEXTS = [
    'The red moon shines. The old crater lies on the moon in the dark and cold north.',
    'The red sun shines. The hot sun warms the dark and old north.',
    'The red star shines. A hot crater is cold.',
]


def make(texts=TEXTS, titles=None, queries=None) -> Collection:
    ids = [f'p{i}' for i in range(len(texts))]
    passages = Passages.from_columns(ids, titles or [''] * len(texts), texts)
    return Collection('tiny', passages, queries or {'test': {'t': 'what shines'}}, {})


def load(directory, collection=None, seed=0, **spec):
    spec = PseudoQueriesConfig(**spec)
    return lib.load_pseudo_queries(collection or make(), spec, directory, seed=seed)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_weights_are_those_of_bm25_by_hand():
    statistics = lib.Statistics.count(make(['a b b', 'a 7 7', 'a b c d']).passages)
    assert statistics.average_length == pytest.approx(10 / 3)
    weights = statistics.weights(['a', 'b', 'b', 'c', '7'])
    norm = 0.9 * (0.6 + 0.4 * 5 / (10 / 3))
    # "a" is in 3 of 3 passages and "b" in 2; no other passage has "c", and "7" has no letter.
    assert weights['a'] == pytest.approx(math.log(1 + 0.5 / 3.5) / (1 + norm))
    assert weights['b'] == pytest.approx(math.log(1 + 1.5 / 2.5) * 2 / (2 + norm))
    assert weights['c'] == weights['7'] == 0


def test_keyphrases_are_the_heaviest_words_in_the_order_of_the_passage():
    statistics = lib.Statistics(10, {'the': 10, 'crater': 2, 'moon': 3, 'red': 4, 'old': 5}, 6.0)
    found = lib.keyphrases('Old Moon', 'the red crater the', statistics, rng())
    heaviest = ['crater', 'moon', 'red', 'old', 'the']  # By document frequency; each occurs once.
    count = len(found.split())
    assert 3 <= count <= 5
    assert found == ' '.join(
        word for word in ['old', 'moon', 'the', 'red', 'crater'] if word in heaviest[:count]
    )


def test_a_sentence_is_the_most_telling_and_lacks_words():
    statistics = lib.Statistics.count(make().passages)
    found = lib.telling_sentence('', TEXTS[0], statistics, rng()).split()
    whole = 'The old crater lies on the moon in the dark and cold north'.split()
    assert len(found) == round(0.7 * len(whole)) == 9
    rest = iter(whole)
    assert all(word in rest for word in found)  # In order.
    assert not lib.telling_sentence('', 'Too short. e.g. this.', statistics, rng())


def test_a_title_comes_with_words_that_it_lacks():
    statistics = lib.Statistics(10, {'moon': 2, 'crater': 2, 'red': 4}, 6.0)
    found = lib.titled('The  Moon', 'red moon crater', statistics, rng())
    assert found in ('The Moon crater', 'The Moon red crater')
    assert not lib.titled('', 'red moon crater', statistics, rng())


def words(text):
    return ' '.join(lib.split_words(text))


def test_queries_are_distinct_and_never_in_their_passage_or_in_another_split(tmp_path):
    texts = [f'{text} {word} {text[::-1]}' for text in TEXTS for word in ('big', 'small')]
    first = load(tmp_path / 'a', make(texts), count=100)
    taken = {'dev': {'d': f'  {first[0].text.upper()}!'}, 'test': {first[1].id: 'other'}}
    found = load(tmp_path / 'b', make(texts, queries=taken), count=100)
    assert [q.text for q in found] == [q.text for q in first[2:]]
    passages = make(texts).passages
    for query in found:
        own = passages[passages.id_index[query.passage]]
        assert f' {words(query.text)} ' not in f' {words(own)} '
    assert len({words(q.text) for q in found}) == len(found) > 6
    assert {q.id.split(':')[1] for q in found} == {'keyphrases', 'sentence'}
    # Ids are taken too: of other ids, what was made before is not these.
    with pytest.raises(ValueError, match=r'other inputs \(queries differ\)'):
        load(tmp_path / 'b', make(texts, queries=taken | {'test': {'new': 'other'}}), count=100)


def test_a_query_that_its_passage_holds_is_left_out(tmp_path, caplog):
    # The heaviest words stand side by side, whatever their number.
    texts = ['alpha beta gamma', 'alpha beta gamma the', 'the the the of', 'of']
    with caplog.at_level('WARNING'):
        assert load(tmp_path / 'a', make(texts), count=5, kinds=('keyphrases',)) == []
    assert 'no pseudo-query could be made from the 4 passages' in caplog.text


def test_they_repeat_and_follow_the_seed_and_the_passages_of_equal_text_count_once(tmp_path):
    collection = make([*TEXTS, TEXTS[0].upper()])
    first = load(tmp_path / 'a', collection, count=4)
    assert (
        first
        == load(tmp_path / 'a', collection, count=4)
        == load(tmp_path / 'b', collection, count=4)
    )
    assert first != load(tmp_path / 'c', collection, count=4, seed=1)
    assert first[:2] == load(tmp_path / 'd', collection, count=2)
    assert {q.passage for q in load(tmp_path / 'e', collection, count=9)} == {'p0', 'p1', 'p2'}


def test_ids_stay_short_enough_to_be_read(tmp_path):
    ids = [f'{"x" * 1020}{i}' for i in range(3)]
    passages = Passages.from_columns(ids, [''] * 3, TEXTS)
    found = load(tmp_path / 'a', Collection('tiny', passages, {}, {}), count=4)
    assert {q.passage for q in found} <= set(ids) and all(len(q.id) < 100 for q in found)


def test_none_by_default(tmp_path):
    assert load(tmp_path / 'a') == [] and not (tmp_path / 'a').exists()


def test_a_file_of_any_generator(tmp_path):
    lines = [
        {'_id': 'g1', 'text': 'where is\tthe crater', 'passage': 'p0'},
        {'_id': 7, 'text': 'how hot is the sun'},
        {'_id': 'g2', 'text': 'What SHINES?'},  # A test query.
        {'_id': 'g3', 'text': 'the hot sun', 'passage': 'p1'},  # Word for word.
    ]
    file = tmp_path / 'generated.jsonl'
    file.write_text('\n'.join(map(json.dumps, lines)))
    found = load(tmp_path / 'a', file=str(file))
    assert found == [
        lib.PseudoQuery('g1', 'where is the crater', 'p0'),
        lib.PseudoQuery('7', 'how hot is the sun', None),
    ]
    table = tmp_path / 'generated.tsv'
    table.write_text('g1\twhere is the crater\tp0\n7\thow hot is the sun\n')
    assert load(tmp_path / 'b', file=str(table)) == found
    # Those made from passages come after them.
    both = load(tmp_path / 'c', file=str(table), count=1)
    assert both[:2] == found and both[2].id.startswith('pseudo:')
    # What the stage writes can be read as such a file.
    assert load(tmp_path / 'd', file=str(tmp_path / 'c' / lib.FILE)) == both


@pytest.mark.parametrize(
    ('name', 'line', 'message'),
    [
        ('a.jsonl', '{"_id": "g", "text": 3}', r'a.jsonl:1: field .text. must be a string'),
        ('a.jsonl', '{"text": "moon"}', r'a.jsonl:1: field ._id. must be a string'),
        ('a.jsonl', '{"_id": "g", "text": " "}', "a.jsonl:1: query 'g' has no text"),
        (
            'a.jsonl',
            '{"_id": "g g", "text": "moon"}',
            "query id 'g g' is empty or holds",
        ),
        ('a.jsonl', '{"_id": "g", "text": "moon", "passage": "x"}', "has no passage 'x'; name one"),
        ('a.tsv', 'moon', r'a.tsv:1: expected id, text and, if known, passage .* found 1 field'),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, name, line, message):
    (tmp_path / name).write_text(line)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'a', file=str(tmp_path / name))


def test_the_passage_is_the_positive_only_if_asked_for():
    queries = [lib.PseudoQuery('g', 'where', 'p0'), lib.PseudoQuery('h', 'how', None)]
    before = make(queries={'train': {'q': 'who'}})
    after = lib.add_pseudo_queries(before, 'train', queries, positive=False)
    assert after.queries['train'] == {'q': 'who', 'g': 'where', 'h': 'how'}
    assert after.labelled('train') == []
    after = lib.add_pseudo_queries(before, 'train', queries, positive=True)
    assert after.labelled('train') == ['g'] and after.qrels['train'] == {'g': {'p0': 1}}
    assert lib.add_pseudo_queries(before, 'new', queries, positive=False).queries['new'] == {
        'g': 'where',
        'h': 'how',
    }

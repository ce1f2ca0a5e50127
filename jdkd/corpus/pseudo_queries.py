"""Pseudo-queries: queries for collections that have few or none (ours).

They are made from passages without a model, or read from a file that any generator, such as a
doc2query model, has written. The words of a passage are weighted as BM25 does, with document
frequencies of the collection:

    keyphrases  the passage's words of most weight, in their order
    sentence    its sentence of most mean weight, with words left out
    title       its title and the words of most weight that the title lacks

Each remembers its passage, which never holds it word for word: such a query would only teach to
find copies. None has the words of another query of any split.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from jdkd.config import PseudoQueriesConfig
from jdkd.corpus.collection import Collection
from jdkd.corpus.lengths import evenly_spaced
from jdkd.corpus.passages import Passages
from jdkd.corpus.sources import base, parsing
from jdkd.runtime import progress, stages
from jdkd.runtime.messages import shown

FILE = 'pseudo_queries.jsonl'
_K1, _B = 0.9, 0.4  # As BM25Spec has them.
_COUNTED = 200_000  # Passages that document frequencies are counted over, at most.
_SENTENCE_WORDS = range(6, 31)
_KEPT = 0.7  # Share of a sentence's words that stay.
_WORD = re.compile(r'\w+')
_SENTENCE_END = re.compile(r'(?<=[.!?])\s+(?=[^a-z])|(?<=[。！？])|\n+')


@dataclasses.dataclass(frozen=True)
class PseudoQuery:
    id: str
    text: str
    passage: str | None  # Id of the passage that it was made from; None if a file does not say.


def load_pseudo_queries(
    collection: Collection,
    spec: PseudoQueriesConfig,
    directory: pathlib.Path,
    *,
    seed: int,
    kept: bool = False,
) -> list[PseudoQuery]:
    """Makes the pseudo-queries of a config, or reads its file, as a stage in `directory`.

    The stage's `pseudo_queries.jsonl` has the format of `spec.file`. With `kept`, a finished stage
    is used, with a warning, where the file has changed.

    Raises:
        ValueError: The file is bad; the message names the line, the error and the remedy.
        FileNotFoundError: The file is missing.
    """
    if not spec.count and not spec.file:
        return []
    file = pathlib.Path(spec.file).expanduser().resolve() if spec.file else None

    def build(out: pathlib.Path) -> dict:
        distinct = _Distinct(collection)
        kept = list(filter(distinct.add, _read(file, collection) if file else ()))
        if spec.count:
            made = filter(distinct.add, _make(collection.passages, spec, seed))
            kept += itertools.islice(made, spec.count)
        dropped = dict(distinct.dropped)
        if not kept:  # Whether other queries are enough, `importing` knows.
            logging.warning(
                'no pseudo-query could be made from the %d passages of collection %r, whose words '
                'may not be told apart by spaces; collection.pseudo_queries.file takes those of '
                'another generator.',
                len(collection),
                collection.name,
            )
        with (out / FILE).open('w', encoding='utf-8') as f:
            for query in kept:
                entry = {'_id': query.id, 'text': query.text, 'passage': query.passage}
                f.write(json.dumps(entry, ensure_ascii=False) + '\n')
        logging.info('%s: %d pseudo-queries; left out: %s', collection.name, len(kept), dropped)
        return {'queries': len(kept), 'dropped': dropped}

    inputs = {
        'passages': collection.passages.fingerprint,
        'queries': stages.digest(collection.queries),
        'spec': spec.to_dict(),
        'seed': seed,
    }
    stages.build_stage_from_files(directory, [file] if file else [], inputs, build, kept=kept)
    return list(_read(directory / FILE, collection))


def add_pseudo_queries(
    collection: Collection, split: str, queries: Sequence[PseudoQuery], *, positive: bool
) -> Collection:
    """Adds pseudo-queries to a split, which need not exist.

    Args:
        positive: Whether the passage that a query was made from becomes its positive; otherwise
            they have no label.
    """
    texts = {**collection.queries.get(split, {}), **{q.id: q.text for q in queries}}
    qrels = collection.qrels
    if positive:
        own = {q.id: {q.passage: 1} for q in queries if q.passage is not None}
        qrels = {**qrels, split: {**qrels.get(split, {}), **own}}
    made = collection.made | {q.id for q in queries}
    return dataclasses.replace(
        collection, queries={**collection.queries, split: texts}, qrels=qrels, made=made
    )


def _make(passages: Passages, spec: PseudoQueriesConfig, seed: int) -> Iterator[PseudoQuery]:
    """Makes pseudo-queries from passages in random order, of all kinds in turn.

    Each text is used once before any is used for another kind.
    """
    statistics = Statistics.count(passages)
    texts = np.flatnonzero(passages.group == np.arange(len(passages)))
    order = np.random.default_rng(seed).permutation(texts).tolist()
    for turn in range(len(spec.kinds)):
        for i, row in enumerate(order):
            kind = spec.kinds[(i + turn) % len(spec.kinds)]
            passage_id = passages.ids[row]
            digest = hashlib.sha256(f'{seed}:{kind}:{passage_id}'.encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], 'big'))
            text = _KINDS[kind](passages.titles[row], passages.texts[row], statistics, rng)
            if text:
                name = f'pseudo:{kind}:{passage_id}'
                if parsing.id_error('query', name):  # Too long.
                    name = f'pseudo:{kind}:{digest.hex()}'
                yield PseudoQuery(name, text, passage_id)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts of a collection's words, to weigh those of one passage."""

    num_passages: int
    frequencies: Mapping[str, int]  # Passages that hold each word.
    average_length: float  # Words of a passage.

    @classmethod
    def count(cls, passages: Passages) -> 'Statistics':
        """Counts up to 200,000 passages, evenly spaced."""
        rows = evenly_spaced(len(passages), _COUNTED)
        frequencies, total = Counter(), 0
        with progress.bar(len(rows), 'count words', 'passages') as bar:
            for row in rows.tolist():
                words = split_words(passages[row])
                frequencies.update(set(words))
                total += len(words)
                bar.update()
        return cls(len(rows), frequencies, total / len(rows))

    def weights(self, words: Sequence[str]) -> dict[str, float]:
        """BM25 weight of each distinct word of a passage.

        0 for words without a letter and for those that no other passage has: they tell nothing
        about any other.
        """
        norm = _K1 * (1 - _B + _B * len(words) / self.average_length)
        return {
            word: self._idf(word) * count / (count + norm) for word, count in Counter(words).items()
        }

    def _idf(self, word: str) -> float:
        count = self.frequencies.get(word, 0)
        if count < 2 or not any(map(str.isalpha, word)):
            return 0.0
        return math.log(1 + (self.num_passages - count + 0.5) / (count + 0.5))


def split_words(text: str) -> list[str]:
    """The words of a text, casefolded, without punctuation."""
    return _WORD.findall(text.casefold())


def keyphrases(title: str, text: str, statistics: Statistics, rng: np.random.Generator) -> str:
    """The three to six words of most weight, in the order of the passage."""
    words = split_words(f'{title} {text}')
    best = _heaviest(statistics.weights(words), int(rng.integers(3, 7)))
    return ' '.join(word for word in dict.fromkeys(words) if word in best)


def telling_sentence(
    title: str, text: str, statistics: Statistics, rng: np.random.Generator
) -> str:
    """The sentence of most mean weight, of 6 to 30 words, with three tenths of them left out."""
    weights = statistics.weights(split_words(f'{title} {text}'))
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE_END.split(text)]
    sentences = [words for words in sentences if len(words) in _SENTENCE_WORDS]
    if not sentences:
        return ''

    def mean_weight(words):
        return sum(weights.get(word.casefold(), 0.0) for word in words) / len(words)

    words = max(sentences, key=mean_weight)
    kept = np.sort(rng.choice(len(words), round(_KEPT * len(words)), replace=False))
    return ' '.join(words[i] for i in kept)


def titled(title: str, text: str, statistics: Statistics, rng: np.random.Generator) -> str:
    """The title, then the one to three words of most weight that it lacks."""
    words, own = split_words(f'{title} {text}'), set(split_words(title))
    if not own:
        return ''
    others = {word: w for word, w in statistics.weights(words).items() if word not in own}
    best = _heaviest(others, int(rng.integers(1, 4)))
    return ' '.join([*title.split(), *(word for word in dict.fromkeys(words) if word in best)])


_KINDS = {'keyphrases': keyphrases, 'sentence': telling_sentence, 'title': titled}


def _heaviest(weights: Mapping[str, float], count: int) -> set[str]:
    """The words of most weight, the first of equal ones, and none without weight."""
    order = sorted((w for w in weights if weights[w] > 0), key=lambda w: -weights[w])
    return set(order[:count])


class _Distinct:
    """Tells queries with words of their own, which their passage does not hold word for word."""

    def __init__(self, collection: Collection):
        self._collection = collection
        queries = [pair for split in collection.queries.values() for pair in split.items()]
        self._ids = {query_id for query_id, _ in queries}
        self._words = {' '.join(split_words(text)) for _, text in queries} | {''}
        self.dropped = Counter()  # {reason: queries}

    def add(self, query: PseudoQuery) -> bool:
        """Whether a query is to be kept, beside those kept before."""
        words = ' '.join(split_words(query.text))
        if words in self._words or query.id in self._ids:
            self.dropped['repeated'] += 1
            return False
        if query.passage is not None:
            row = self._collection.id_index[query.passage]
            own = ' '.join(split_words(self._collection.passages[row]))
            if f' {words} ' in f' {own} ':
                self.dropped['verbatim'] += 1
                return False
        self._words.add(words)
        self._ids.add(query.id)
        return True


def _read(file: pathlib.Path, collection: Collection) -> Iterator[PseudoQuery]:
    """Reads JSON lines {"_id", "text", "passage"} or tab-separated id, text and passage.

    The passage, the id of that which a query was made from, may be missing.
    """
    is_table = file.name.removesuffix('.gz').endswith(('.tsv', '.txt'))
    for where, query_id, text, passage in (_read_table if is_table else _read_json)(file):
        error = parsing.id_error('query', query_id)
        if not text.strip():
            error = f'query {shown(query_id)} has no text; write one or remove the line.'
        elif parsing.SURROGATE.search(text):
            error = parsing.HOLDS_SURROGATE
        elif passage is not None and collection.id_index.get(passage) is None:
            error = f'the collection has no passage {shown(passage)}; name one of its ids, or none.'
        if error:
            raise ValueError(f'{where}: {error}')
        yield PseudoQuery(query_id, ' '.join(text.split()), passage)


def _read_table(file: pathlib.Path) -> Iterator[tuple[str, str, str, str | None]]:
    for where, line in parsing.read_lines(file, base.raise_error):
        fields = line.split('\t')
        if len(fields) not in (2, 3):
            raise ValueError(
                f'{where}: expected id, text and, if known, passage with tabs between them, found '
                f'{len(fields)} field(s).'
            )
        yield where, fields[0], fields[1], (fields[2] if fields[2:] else None)


def _read_json(file: pathlib.Path) -> Iterator[tuple[str, str, str, str | None]]:
    for where, entry in parsing.read_json_lines(file, base.raise_error):
        query_id = parsing.check_id(where, '_id', entry.get('_id'))
        text = parsing.check_text(where, 'text', entry.get('text'))
        passage = entry.get('passage')
        if passage is not None:
            passage = parsing.check_id(where, 'passage', passage)
        yield where, query_id, text, passage

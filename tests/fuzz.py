"""Damaged and hostile files for everything that reads files: parsed, or refused by name.

`python -m tests.fuzz --minutes 30` tries new ones all that time and prints a table; test_fuzz.py
tries the same few each time. A file begins as a valid one and is edited at random: bytes changed,
parts cut out, repeated or filled with what has hurt parsers before.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import gzip
import json
import multiprocessing
import pathlib
import shutil
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from hypothesis import strategies as st

from jdkd import config as configs
from jdkd.corpus import building, importing, storage
from jdkd.corpus.sources import base, registry
from jdkd.models import pretrained
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.retrieval import trec
from jdkd.runtime import checkpoint_files
from jdkd.tokens.tokenizer import load_tokenizer
from tests.helpers import toy

CONFIG = str(pathlib.Path(__file__).parents[1] / 'configs/mta4dpr.py')
FRAGMENTS = [
    *(b'\0', b'\xff\xfe', b'\xed\xa0\x80', b'\x1f\x8b', b'\xef\xbb\xbf', b'../', b'/etc/passwd'),
    *(b'\n', b'\r', b'\r\n', b'\t', b' ', b'"', b"'", b'\\', b'{', b'}', b'[', b']', b',', b':'),
    *(b'null', b'true', b'[]', b'{}', b'""', b'NaN', b'-Infinity', b'1e999', b'-1', b'0', b'2.5'),
    *(b'1' * 400, b'9' * 5000, b'-9223372036854775809', b'[' * 3000, b'{"a":' * 3000, b'-' * 3000),
    *(b'\\ud800', b'\\u0000', b'\\u202e', '\u202e\u0627\u0644'.encode(), b'<script>', b'$(id)'),
    *(struct.pack('<Q', size) for size in (0, 2**31, 2**63)),
]


@st.composite
def edits(draw, seed: bytes) -> bytes:
    """The seed after up to five edits."""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 5]))):
        at = draw(st.integers(0, len(seed)))
        kind = draw(st.sampled_from(['insert', 'insert', 'change', 'cut', 'repeat', 'end', 'swap']))
        length = draw(st.integers(1, 40))
        if kind == 'insert':
            seed = seed[:at] + draw(st.sampled_from(FRAGMENTS)) + seed[at:]
        elif kind == 'change':
            new = draw(st.binary(min_size=1, max_size=4))
            seed = seed[:at] + new + seed[at + len(new) :]
        elif kind == 'cut':
            seed = seed[:at] + seed[at + length :]
        elif kind == 'repeat':
            seed = seed[:at] + seed[at : at + length] * draw(st.integers(2, 5)) + seed[at:]
        elif kind == 'swap':  # A whole token for another.
            words = seed.split(b' ')
            words[at % len(words)] = draw(st.sampled_from(FRAGMENTS))
            seed = b' '.join(words)
        else:
            seed = seed[:at]
    return seed


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes:
        make: Writes valid input into an empty directory.
        file: That of it which is edited, by its path there.
        read: Reads the directory, may write into another, and asserts of what it has read.
        named: What an error's message must contain, beside the directory: one of them does.
    """

    make: Callable[[pathlib.Path], None]
    file: str
    read: Callable[[pathlib.Path, pathlib.Path], None]
    named: tuple[str, ...] = ()

    @contextlib.contextmanager
    def session(self) -> Iterator[tuple[bytes, Callable[[bytes], bool]]]:
        """The valid file, and a function that says whether an edited one was parsed.

        That function raises AssertionError if an error names no place or if files were touched
        that should not be, and passes on errors that no reader should raise.
        """
        with tempfile.TemporaryDirectory() as root:
            given, out = pathlib.Path(root, 'given'), pathlib.Path(root, 'out')
            given.mkdir()
            self.make(given)
            file = given / self.file
            seed = file.read_bytes()
            before = {path: path.stat().st_size for path in given.rglob('*') if path != file}

            def attempt(content: bytes) -> bool:
                file.write_bytes(content)
                out.mkdir()
                try:
                    self.read(given, out)
                except (ValueError, OSError) as error:
                    names = (str(given), *self.named)
                    assert any(name in str(error) for name in names), f'no place: {error}'
                    assert len(str(error)) < 2000 + len(root), 'a message to fill the screen'
                    parsed = False
                else:
                    parsed = True
                finally:
                    shutil.rmtree(out)
                after = {p: p.stat().st_size for p in given.rglob('*') if p != file}
                assert after == before and list(given.parent.iterdir()) == [given], 'files touched'
                return parsed

            assert attempt(seed), f'{self.file} as it was made is refused'
            yield seed, attempt


def _collection(source: str, directory: pathlib.Path, out: pathlib.Path, **options) -> None:
    for on_error in ('stop', 'skip'):
        built = out / on_error
        built.mkdir()
        source_ = registry.open_source(f'{source}:{directory}', name='fuzzed', **options)
        result = building.build_collection(source_, built, on_error=on_error)
        found = storage.open_collection(built)
        assert list(found.id_index.find(list(found.passage_ids))) == list(range(len(found)))
        for split, grades in found.qrels.items():
            for query, judged in grades.items():
                assert query in found.queries[split]
                assert all(p in found.missing or p in found.id_index for p in judged)
        if on_error == 'stop':
            assert not result['skipped']


def _beir(directory: pathlib.Path) -> None:
    toy.write_collection(directory, passages=8)


def _beir_gz(directory: pathlib.Path) -> None:
    _beir(directory)
    for name in ('corpus.jsonl', 'queries.jsonl'):
        (directory / f'{name}.gz').write_bytes(gzip.compress((directory / name).read_bytes()))
        (directory / name).unlink()


def _msmarco(directory: pathlib.Path) -> None:
    for name, text in {
        'collection.tsv': '0\tthe cat runs\n1\ta dog sleeps\n2\tthe bird sings\n',
        'queries.train.tsv': '10\tcat\n11\twhat dog sleeps\n',
        'qrels.train.tsv': '10 0 0 1\n11\t0\t1\t1\n11 0 2 0\n',
    }.items():
        (directory / name).write_text(text)


_PAIRS = [
    {'id': i, 'query': f'q{i}', 'title': 't', 'text': f'text {i}', 'answers': ['a', f'b{i}']}
    for i in range(4)
]
_OPTIONS = {'fields': {'query_id': 'id', 'answers': 'answers', 'title': 'title'}}


def _jsonl(directory: pathlib.Path) -> None:
    (directory / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, _PAIRS)))


def _parquet(directory: pathlib.Path) -> None:
    pq.write_table(pa.Table.from_pylist(_PAIRS), directory / 'pairs.parquet')


def _questions(name: str, text: str) -> Callable[[pathlib.Path], None]:
    def make(directory: pathlib.Path) -> None:
        _beir(directory)
        (directory / name).write_text(text)

    return make


def _read_questions(name: str, directory: pathlib.Path, out: pathlib.Path) -> None:
    _collection('beir', directory, out, questions={'nq': str(directory / name)})


def _scores(text: str) -> Callable[[pathlib.Path], None]:
    return lambda directory: directory.joinpath('scores').write_text(text) and None


@functools.cache
def _known() -> importing.Collection:
    with tempfile.TemporaryDirectory() as root:
        directory = toy.write_collection(pathlib.Path(root, 'given'))
        built = pathlib.Path(root, 'built')
        built.mkdir()
        building.build_collection(registry.open_source(f'beir:{directory}'), built)
        return storage.open_collection(built)


def _read_scores(directory: pathlib.Path, out: pathlib.Path) -> None:
    for fault in (base.raise_error, base.count_errors({})):
        scores = trec.read(directory / 'scores', _known(), fault)
        scores.save(out)
        again = trec.load(out)
        np.testing.assert_array_equal(again.values, scores.values)
        assert again.queries == scores.queries and np.isfinite(scores.values).all()
        assert scores.starts[-1] == len(scores.rows) and (np.diff(scores.starts) > 0).all()
        assert (scores.rows >= 0).all() and (scores.rows < len(_known())).all()


_RUNS = {
    'TREC run': '\n'.join(
        f'train{q} Q0 p{p} {p} {9 - p / 2} tag' for q in (0, 1) for p in range(5)
    ),
    'MS MARCO run': '\n'.join(f'train{q}\tp{p}\t{p}' for q in (0, 1) for p in range(5)),
    'top 1000': '\n'.join(f'train0\tp{p}\tcat\tred cat' for p in range(5)),
    'scores JSONL': '\n'.join(
        [
            '{"query_id": "train0", "passage_id": "p1", "score": 0.5}',
            '{"query_id": "train1", "passage_ids": ["p1", "p2"], "scores": [1, -2.5e3]}',
        ]
    ),
}


def _checkpoint(directory: pathlib.Path) -> None:
    work = directory.parent / 'making'
    toy.write_model(work / 'model', DualEncoder(toy.TRANSFORMER, projection=Projection(4)))
    shutil.copytree(work / 'model', directory, dirs_exist_ok=True)
    shutil.rmtree(work)


def _sharded_checkpoint(directory: pathlib.Path) -> None:
    _checkpoint(directory)
    shard = 'model-00001-of-00001.safetensors'
    (directory / 'model.safetensors').rename(directory / shard)
    content = {'weight_map': {'anything': shard}}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(content))


def _read_checkpoint(directory: pathlib.Path, out: pathlib.Path) -> None:
    del out
    read = pretrained.read_pretrained(directory)
    assert read.config.num_layers >= 1 and 1 <= read.max_length <= read.config.max_positions
    _read_tokenizer(directory, None)


def _read_tokenizer(directory: pathlib.Path, out: pathlib.Path | None) -> None:
    del out
    encoded = load_tokenizer(directory).encode(['cat dog', '\0 \u202e \U0001f600 cat'], 8)
    assert len(encoded) == 2 and encoded.lengths.max() <= 8


def _read_tensors(directory: pathlib.Path, out: pathlib.Path) -> None:
    del out
    for tensor in checkpoint_files.open_tensors(directory / 'model.safetensors').values():
        assert tensor.read().shape == tensor.shape


def _overrides(directory: pathlib.Path) -> None:
    (directory / 'argv').write_text('--config.rounds=3 --config.student.dtype=float32')


def _read_overrides(directory: pathlib.Path, out: pathlib.Path) -> None:
    del out
    argv = (directory / 'argv').read_bytes().decode(errors='surrogateescape')
    configs.check_overrides(argv.split(' '), CONFIG)


_HERE = ("'fuzzed'",)  # Faults of a whole collection.
TARGETS = {
    **{
        f'BEIR {file}': Target(_beir, file, functools.partial(_collection, 'beir'), _HERE)
        for file in ('corpus.jsonl', 'queries.jsonl', 'qrels/train.tsv')
    },
    'BEIR corpus.jsonl.gz': Target(
        _beir_gz, 'corpus.jsonl.gz', functools.partial(_collection, 'beir'), _HERE
    ),
    **{
        f'MS MARCO {file}': Target(_msmarco, file, functools.partial(_collection, 'msmarco'), _HERE)
        for file in ('collection.tsv', 'queries.train.tsv', 'qrels.train.tsv')
    },
    **{
        f'table {file.rpartition(".")[2]}': Target(
            make,
            file,
            functools.partial(_collection, 'tables', queries={'train': file}, **_OPTIONS),
            _HERE,
        )
        for make, file in ((_jsonl, 'pairs.jsonl'), (_parquet, 'pairs.parquet'))
    },
    **{
        f'questions {name}': Target(
            _questions(name, text), name, functools.partial(_read_questions, name), _HERE
        )
        for name, text in {
            'nq.qa.csv': "who sings\t['bird', 'the bird']\nwho runs\t['cat']\n",
            'nq.jsonl': '{"question": "who sings", "answer": ["bird"]}\n',
        }.items()
    },
    **{name: Target(_scores(text), 'scores', _read_scores) for name, text in _RUNS.items()},
    **{
        f'checkpoint {file}': Target(_checkpoint, file, _read_checkpoint)
        for file in (
            'config.json',
            'modules.json',
            'model.safetensors',
            '1_Pooling/config.json',
            '2_Dense/config.json',
            'tokenizer_config.json',
            'config_sentence_transformers.json',
        )
    },
    'checkpoint index': Target(
        _sharded_checkpoint, 'model.safetensors.index.json', _read_checkpoint
    ),
    'safetensors': Target(_checkpoint, 'model.safetensors', _read_tensors),
    'tokenizer.json': Target(_checkpoint, 'tokenizer.json', _read_tokenizer),
    'config overrides': Target(_overrides, 'argv', _read_overrides, ('config', 'flag')),
}


def run(name: str, examples: int, seed: int | None = None) -> collections.Counter:
    """Tries edited files; counts those that were `parsed` and those that were `refused`.

    Args:
        name: Of TARGETS.
        examples: How many to try.
        seed: Of the edits; None for the same ones each time.
    """
    counts: collections.Counter = collections.Counter()
    with TARGETS[name].session() as (valid, attempt):

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=seed is None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(edits(valid))
        def try_one(content: bytes) -> None:
            counts['parsed' if attempt(content) else 'refused'] += 1

        (try_one if seed is None else hypothesis.seed(seed)(try_one))()
    return counts


def _work(name: str, seed: int, examples: int, results: multiprocessing.Queue) -> None:
    try:
        results.put((run(name, examples, seed), None))
    except BaseException:  # A finding, whatever it is.
        results.put((collections.Counter(), traceback.format_exc(chain=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--minutes', type=float, default=30)
    parser.add_argument('--seed', type=int, default=0, help='of the first round')
    parser.add_argument('--examples', type=int, default=400, help='of each reader in a round')
    parser.add_argument('--only', default='', help='readers whose name contains this')
    flags = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    names = [name for name in TARGETS if flags.only in name]
    totals = {name: collections.Counter() for name in names}
    end, seed = time.monotonic() + 60 * flags.minutes, flags.seed
    while time.monotonic() < end:
        for name in names:
            if time.monotonic() > end:
                break
            start, total = time.monotonic(), totals[name]
            # In a process of its own, which a library may crash.
            results: multiprocessing.Queue = multiprocessing.Queue()
            process = multiprocessing.Process(
                target=_work, args=(name, seed, flags.examples, results)
            )
            process.start()
            process.join(600)
            if process.is_alive() or process.exitcode:
                counts, found = {}, f'exit code {process.exitcode} (None: hangs)'
                process.kill()
            else:
                counts, found = results.get()
            total.update(counts)
            total['seconds'] += time.monotonic() - start
            if found:
                total['findings'] += 1
                print(f'{name}, seed {seed}: {found}', flush=True)
        seed += 1
    columns = ('parsed', 'refused', 'findings', 'seconds')
    print(f'{"":40}{"".join(f"{c:>10}" for c in columns)}')
    totals['all'] = sum(totals.values(), collections.Counter())
    for name, total in totals.items():
        print(f'{name:40}{"".join(f"{total[c]:10.0f}" for c in columns)}')


if __name__ == '__main__':
    main()

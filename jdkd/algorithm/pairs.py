"""Pairs to score: what a round asks of a teacher, for rankers that jdkd does not run.

An LLM, or a service, reads the pairs of a query and a passage that are written here; its scores
come back as a system of kind `scores`.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from jdkd.algorithm import pseudo_labels, student
from jdkd.algorithm.align import align
from jdkd.algorithm.round_files import split_queries
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.config import Config, ScoresSpec
from jdkd.lists import candidates
from jdkd.run import Queries, Run
from jdkd.runtime import distributed, files
from jdkd.systems import imported, roles, scoring
from jdkd.systems.build import build
from jdkd.systems.system import System

SPLITS = ('train', 'eval', 'test')
_FIELDS = {'query_id', 'query', 'passage_id', 'text'}  # Of a line, and perhaps `title`.


def write(run: Run, path: pathlib.Path, splits: Sequence[str]) -> int:
    """Writes the pairs that round 0 draws lists from, each once, as JSON lines; returns how many.

    Those are the positives and the mined passages of train queries and D_eval, and the first
    stage's top passages of test queries. A line has query_id, query, passage_id, text and, if there
    is one, title. Pairs that the files of the teacher and the assistants have scores for already
    are left out; a file need not be there yet.

    Raises:
        ValueError: if no round is trained that would read them, or there are no test queries.
    """
    config, count, train = run.config, 0, any(split != 'test' for split in splits)
    if train and not run.num_rounds:
        raise ValueError(
            'no round is trained that would read scores of train queries or D_eval: rounds=0, or '
            'all queries of D_eval were made from passages; write those of test alone '
            '(--splits=test).'
        )
    if train or config.first_stage in roles.trained(config):
        run = pseudo_labels.label(run)
    retrievers = _retrievers(run) if train else []
    scorers = _imported(run)
    rankings = {split: _passages(run, split, retrievers) for split in splits}
    if not distributed.is_primary():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as f:
        for split, passages in rankings.items():
            queries, own = _queries(run, split), 0
            for row, rows in enumerate(passages):
                for line in _lines(run, queries, row, _unscored(scorers, queries, row, rows)):
                    f.write(line)
                    own += 1
            logging.info('%d pairs of %d queries of split %r', own, len(queries), queries.split)
            count += own
    if not count:
        logging.info('the files of %s have all of them', ', '.join(s.name for s in scorers))
    logging.info('wrote %d pairs to %s; first stage %s', count, path, config.first_stage)
    return count


def check_output(path: pathlib.Path) -> None:
    """Raises a FileExistsError if there is something else than an earlier file of pairs."""

    def holds_pairs(path):
        try:
            with path.open(encoding='utf-8') as f:
                first = f.readline()
            return not first or json.loads(first).keys() - {'title'} == _FIELDS
        except (OSError, ValueError, AttributeError):
            return False

    files.check_output(path, holds_pairs, 'exists and is no file of pairs')


def _retrievers(run: Run) -> list[System]:
    """What mines in round 0, but for files of scores that are yet to be made."""
    names = [n for n in dict.fromkeys(_miners(run.config)) if not _is_missing(run, n)]
    miners = [build(run, name) for name in names]
    model = student.load(run)
    return [*miners, align(run, model, EmbeddingTargets.build(run, model.start))]


def _miners(config: Config) -> list[str]:
    """Systems that mine, in the order of a run."""
    return [config.first_stage, *config.candidates.retrievers, *config.assistants]


def _is_missing(run: Run, name: str) -> bool:
    """Whether a system is a file of scores that is yet to be made."""
    spec = run.config.systems[name]
    return isinstance(spec, ScoresSpec) and not pathlib.Path(spec.path).expanduser().is_file()


def _imported(run: Run) -> list[System]:
    """The teacher's members and assistants whose scores have been imported."""
    names = dict.fromkeys([*run.config.teacher.members, *run.config.assistants])
    specs = {name: run.config.systems[name] for name in names if not _is_missing(run, name)}
    return [
        imported.load(run, name, spec.replace(missing=None))
        for name, spec in specs.items()
        if isinstance(spec, ScoresSpec)
    ]


def _queries(run: Run, split: str) -> Queries:
    return run.require_test() if split == 'test' else split_queries(run, split)


def _passages(run: Run, split: str, retrievers: Sequence[System]) -> list[np.ndarray]:
    """Rows of the passages of each query, each once."""
    queries, config = _queries(run, split), run.config.candidates
    if split == 'test':
        top = build(run, run.config.first_stage).rank(queries)[0].passages
        return [rows[rows >= 0] for rows in top]
    rankings = [r.rank(queries)[0].passages for r in retrievers]
    pool = candidates.mined_passages(
        rankings, queries.positives, run.collection.group, config.depth
    )
    if config.hardest:  # Of each query's mined passages, the teacher scores the first.
        pool = pool[:, : config.scored]
    pairs = zip(queries.best, pool, strict=True)
    return [np.concatenate([best, rows[rows >= 0]]).astype(np.int32) for best, rows in pairs]


def _unscored(
    scorers: Sequence[System], queries: Queries, row: int, passages: np.ndarray
) -> np.ndarray:
    """Those of a query's passages that some file has no score for; all without any file."""
    if not scorers:
        return passages
    lists = candidates.Lists.from_originals(np.array([row], np.int32), passages[None])
    return passages[~scoring.covered(scorers, queries, lists)[0]]


def _lines(run: Run, queries: Queries, row: int, passages: np.ndarray) -> Iterator[str]:
    """JSON lines of a query's pairs."""
    titles, texts = run.passages.titles, run.passages.texts
    for passage in map(int, passages):
        title = titles[passage]
        pair = {
            'query_id': queries.ids[row],
            'query': queries.texts[row],
            'passage_id': run.collection.passage_ids[passage],
            **({'title': title} if title else {}),
            'text': texts[passage],
        }
        yield json.dumps(pair, ensure_ascii=False) + '\n'

"""`jdkd compare`: two finished runs on the same collection, side by side."""

import contextlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jdkd import config as configs
from jdkd.commands.setup import hold_workdir, load_config
from jdkd.corpus import storage
from jdkd.corpus.collection import Collection
from jdkd.report import drawing, examples, finished, page, pictures, tables
from jdkd.report.examples import Duel
from jdkd.report.finished import Finished
from jdkd.retrieval import significance
from jdkd.run import STUDENT
from jdkd.runtime import distributed, files, stages


def compare(workdir: pathlib.Path, other: str, output: str | None = None) -> None:
    """Holds the workdir and, on process 0, writes the comparison; see `write_comparison`."""
    load_config(workdir)
    directory = pathlib.Path(output) if output else None
    with hold_workdir(workdir):
        distributed.from_primary(
            lambda: str(write_comparison(workdir, pathlib.Path(other), directory)), 'the comparison'
        )


def write_comparison(
    workdir: pathlib.Path, other: pathlib.Path, output: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes report.json, report.html and pictures/ of two finished runs; prints their measures.

    Returns the directory: `output`, or `<workdir>/compared/<name of the other>`.

    Raises:
        FileNotFoundError: if a workdir holds no finished run.
        FileExistsError: if the directory holds something else than a comparison.
        ValueError: if their collections differ, or they share no test query or measure.
    """
    if output is not None:
        files.check_output(output, _is_replaceable, 'holds something else than a comparison')
    paths = dict(zip(_names(workdir, other), (workdir, other), strict=True))
    runs = {name: finished.read(path) for name, path in paths.items()}
    split, _ = (run.test_split for run in runs.values())
    collection = _shared_collection(runs.values())
    ours, theirs = (
        examples.load(run.workdir / 'test', STUDENT, name) for name, run in runs.items()
    )
    common = [query_id for query_id in ours.per_query if query_id in theirs.per_query]
    if not common:
        raise ValueError(
            f'{workdir} and {other} were tested on disjoint sets of queries; give two runs with '
            'the same collection.test_split.'
        )
    x, y = ({i: results.per_query[i] for i in common} for results in (ours, theirs))
    differences = significance.paired_tests(x, y)
    a, b = runs.values()
    measure = a.config.compare if a.config.compare in differences else next(iter(differences), '')
    duel = examples.duel(collection, split, measure, ours, theirs)
    if duel is None:
        raise ValueError(f'{workdir} and {other} share no measure; give two runs with the same.')
    report = {
        'runs': {name: str(run.workdir.absolute()) for name, run in runs.items()},
        'config': configs.differences(a.config, b.config),
        'test': {name: run.report['test'] for name, run in runs.items()},
        'common_queries': len(common),
        'significance': {f'{ours.name} less {theirs.name}': differences},
        'collection': collection.name,
    }
    directory = output or workdir / 'compared' / theirs.name
    _write(directory, report, runs, duel)
    print(f'{tables.table(_measures(report))}\n')
    print(tables.table(tables.differences(report['significance']), 'students'))
    print(f'\nthe page is {directory / "report.html"}')
    return directory


def _is_replaceable(directory: pathlib.Path) -> bool:
    """Whether a directory holds nothing that is written, or an earlier comparison."""
    if not directory.is_dir():
        return False
    if not any((directory / name).exists() for name in (finished.FILE, 'report.html', 'pictures')):
        return True
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return 'runs' in stages.read_json(directory / finished.FILE)
    return False


def _names(workdir: pathlib.Path, other: pathlib.Path) -> tuple[str, str]:
    """Names two runs by the shortest ends of their paths that differ."""
    ours, theirs = workdir.resolve().parts, other.resolve().parts
    if ours == theirs:
        raise ValueError(f'{workdir} and {other} are the same run; give another with --with.')
    length = 1
    while ours[-length:] == theirs[-length:]:
        length += 1
    return '_'.join(ours[-length:]).strip('/'), '_'.join(theirs[-length:]).strip('/')


def _shared_collection(runs: Iterable[Finished]) -> Collection:
    """The imported collection of all runs; their D_eval may differ."""
    opened = {run.workdir: storage.open_collection(run.workdir / 'collection') for run in runs}
    if len({collection.fingerprint for collection in opened.values()}) > 1:
        shown = ' and '.join(
            f'{collection.name!r} (sha256 {collection.fingerprint[:12]}...) in {workdir}'
            for workdir, collection in opened.items()
        )
        raise ValueError(
            f'the collections differ: {shown}; only runs on the same texts and judgements can be '
            'compared.'
        )
    return next(iter(opened.values()))


def _measures(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Table cells of all systems of both runs, students last."""
    rows = {
        (system, name): measures
        for name, test in report['test'].items()
        for system, measures in test.items()
    }
    order = sorted(rows, key=lambda row: (row[0] == STUDENT, row[0]))
    return tables.percents({f'{system}, {name}': rows[system, name] for system, name in order})


def _write(
    directory: pathlib.Path, report: Mapping[str, Any], runs: Mapping[str, Finished], duel: Duel
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    drawn = [*pictures.draw_training(runs), pictures.draw_duels([duel])]
    shown = {picture.name: page.picture(picture) for picture in drawn}
    changed = {
        field: dict(zip(runs, map(str, values), strict=True))
        for field, values in report['config'].items()
    }
    names = ' and '.join(runs)
    parts = [
        page.paragraph(f'{report["collection"]}: measures of the test queries, times 100.'),
        page.table(_measures(report)),
        page.paragraph(
            f'The difference of the two students over the {report["common_queries"]} test queries '
            'that both runs have, times 100; paired t-test.'
        ),
        page.table(tables.differences(report['significance'])),
        shown.pop('queries'),
        page.duel(duel),
        page.heading('Where the configs differ'),
        page.table(changed, words=True) if changed else page.paragraph('Nowhere.'),
        *shown.values(),
    ]
    stages.write_json(directory / finished.FILE, report)
    with files.atomic_write(directory / 'report.html') as f:
        f.write(page.document(f'{names}, compared', parts))
    drawing.write(directory / 'pictures', drawn)

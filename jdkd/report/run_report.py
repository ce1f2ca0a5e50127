"""Writes the report of a training run: report.json, report.html, pictures and a table."""

import functools
from collections.abc import Iterator, Mapping, Sequence

from absl import logging

from jdkd import config as configs
from jdkd import diagnostics
from jdkd.report import costs as cost_report
from jdkd.report import drawing, examples, finished, page, pictures, tables
from jdkd.report.examples import Duel
from jdkd.report.finished import Finished
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed, files, stages

TEACHER = 'teacher_rerank'
_ROUND_FIELDS = (
    'student assistants references selected replaced hard_queries score_histogram one_hot '
    'mean_cosine teacher scales eval_loss entered learning_rate'
).split()


def write(
    run: Run,
    *,
    test: Mapping[str, Mapping[str, float]],
    significance: Mapping[str, Mapping[str, Mapping]],
    final: str,
    reranking: Mapping[str, Mapping[str, float]],
    rounds: Sequence[Mapping],
    warnings: Sequence[diagnostics.RunWarning],
    costs: Mapping,
) -> dict:
    """Writes report.json, report.html and pictures/, logs the table, and returns the report.

    Args:
        run: The run, with a finished stage `test` if it has test queries.
        test: {system: {measure: value}} on the test split; empty without one.
        significance: {system: {measure: test of the student's difference}}; see
            `significance.paired_tests`.
        final: Name of the student that the run ends with, such as `student_01`.
        reranking: {system: {measure: value}} on D_eval of `teacher` and assistants, re-ranking the
            first stage.
        rounds: One entry per round; see `_ROUND_FIELDS`.
        warnings: Those of all rounds.
        costs: Of the systems, and the student's sizes; see `costs.measure`.
    """
    report = {
        'test': test,
        'significance': significance,
        'final': final,
        'warnings': list(warnings),
        'rounds': [{key: r[key] for key in _ROUND_FIELDS} for r in rounds],
        'teacher_eval': reranking.get('teacher', {}),
        'assistants_eval': {s: measured for s, measured in reranking.items() if s != 'teacher'},
        'costs': costs,
        'config_sha256': configs.digest(run.asked or run.config),
        'collection': {
            'name': run.collection.name,
            'passages': len(run.collection),
            'queries': {q.split: len(q) for q in (run.train, run.held_out, run.test) if len(q)},
            'unlabelled': int((~run.train.is_labelled).sum()),
            'pseudo_labels': len(run.pseudo_labels.queries) if run.pseudo_labels else 0,
            'eval_labels': run.eval_has_labels,
            'sha256': run.collection.fingerprint,
        },
        'tokens': _token_stores(run),
        'wall_seconds': stages.read_seconds(run.workdir),
    }
    if not distributed.is_primary():
        return report
    stages.write_json(run.workdir / finished.FILE, report)
    done = Finished.of(run.workdir, run.config, report)
    duels = _duels(run, done)
    drawn = [
        *pictures.draw_training({'': done}),
        *([pictures.draw_duels(duels)] if duels else []),
        *cost_report.draw(costs, test, run.config.compare),
        *(pictures.draw_histogram(i, r['score_histogram']) for i, r in enumerate(report['rounds'])),
    ]
    with files.atomic_write(run.workdir / 'report.html') as f:
        f.write(render(done, {p.name: page.picture(p) for p in drawn}, duels))
    drawing.write(run.workdir / 'pictures', drawn)
    shown = [f'{run.collection.name}: there are no test queries']
    if test:
        shown = [f'test queries of {run.collection.name}', tables.measures_table(test), '']
        shown += [tables.table(tables.differences(significance), 'student less')]
    if warnings:
        shown += ['', 'warnings', *diagnostics.lines(warnings)]
    logging.info('%s', '\n'.join(shown))
    return report


def _token_stores(run: Run) -> list[dict]:
    """Of each token store of the run: its split and length, and how many texts are cut to it."""
    manifests = [
        manifest
        for name, manifest in stages.read_manifests(run.workdir).items()
        if name.startswith('tokens/')
    ]
    return [
        {'split': m['inputs']['split'], 'length': m['inputs']['length'], **m['result']}
        for m in manifests
        if m['result']  # None in workdirs of older versions.
    ]


def _duels(run: Run, done: Finished) -> list[Duel]:
    """The student against the first stage, the teacher and the best assistant on D_eval."""
    config, directory, test = run.config, run.workdir / 'test', done.report['test']
    if not test:
        return []
    rounds = done.report['rounds']
    pool = rounds[0]['assistants'] if rounds else {name: test[name] for name in config.assistants}
    best = max(pool, key=lambda name: pool[name][config.compare], default=config.first_stage)
    ours, *others = (
        examples.load(directory, name)
        for name in dict.fromkeys([STUDENT, config.first_stage, TEACHER, best])
        if name in test
    )
    contrast = functools.partial(
        examples.duel, run.collection, run.test.split, config.compare, ours
    )
    return [duel for duel in map(contrast, others) if duel]


def render(done: Finished, drawn: Mapping[str, str], duels: Sequence[Duel]) -> str:
    """Renders the page of a run, with its pictures as {name: HTML} and the student's duels."""
    report, collection = done.report, done.report['collection']
    costs = report['costs']
    queries = ', '.join(f'{n} {split}' for split, n in collection['queries'].items())
    count = collection['pseudo_labels']
    pseudo = f', of which assistants learned {count} from pseudo-labels' if count else ''
    return page.document(
        collection['name'],
        [
            page.paragraph(
                f'{collection["passages"]} passages; queries: {queries}; '
                f'{collection["unlabelled"]} train queries have no label{pseudo}. '
                f'{_about_student(done)}'
            ),
            *_tests(done),
            *_rerankings(done),
            *_warnings(report['warnings']),
            *_pictures(drawn, 'rounds', 'queries'),
            *map(page.duel, duels),
            *_pictures(drawn, 'alignment', 'loss', 'selected', 'self_paced'),
            *(
                part
                for i, r in enumerate(report['rounds'])
                for part in _round(i, r, drawn, collection['eval_labels'])
            ),
            *cost_report.render_sizes(costs, drawn),
            page.heading('Seconds by stage'),
            page.paragraph('Of the call that finished each stage, without interrupted ones.'),
            page.table({k: {'seconds': f'{v:.1f}'} for k, v in report['wall_seconds'].items()}),
            *cost_report.render_speeds(costs, report['test'], drawn),
            *_cut_texts(report['tokens']),
        ],
    )


def _cut_texts(stores: Sequence[Mapping]) -> Iterator[str]:
    cut = [
        f'{s["split"]} to {s["length"]} tokens: {s["cut"]} of {s["texts"]}'
        for s in stores
        if s['cut']
    ]
    if cut:
        yield page.heading('Texts that are cut')
        yield page.listing(cut)


def _rerankings(done: Finished) -> Iterator[str]:
    report = done.report
    teacher = {'teacher': report['teacher_eval']} if report['teacher_eval'] else {}
    if measured := teacher | report['assistants_eval']:
        yield page.paragraph(
            f'On D_eval, re-ranking the same top passages of {done.config.first_stage}.'
        )
        yield page.table(tables.percents(measured))


def _tests(done: Finished) -> Iterator[str]:
    test, first = done.report['test'], done.config.first_stage
    if not test:
        yield page.paragraph('There are no test queries, so nothing says how good the student is.')
        return
    teacher = f'; {TEACHER} is the teacher, re-ranking the top passages of {first}'
    shown = teacher if TEACHER in test else ''
    yield page.paragraph(f'Measures of the test queries, times 100{shown}.')
    yield page.table(tables.percents(test))
    yield page.paragraph('The student less other systems; paired t-test over the queries.')
    yield page.table(tables.differences(done.report['significance']))


def _about_student(done: Finished) -> str:
    name = done.report['final']
    is_best = done.config.final == 'best' and done.report['rounds']
    best = f', the best by {done.config.compare} on D_eval' if is_best else ''
    return f'The student is {name}{best}.'


def _round(i: int, r: Mapping, drawn: Mapping[str, str], has_labels: bool) -> Iterator[str]:
    yield page.heading(f'Round {i}')
    found = '' if has_labels else ', against the passages that the teacher ranks first'
    yield page.paragraph(f'Measures on D_eval, times 100{found}.')
    yield page.table(tables.percents({STUDENT: r['student'], **r['assistants']}))
    chosen = ', '.join(f'{n} {100 * s:.0f}%' for n, s in r['selected'].items() if s)
    count = r['hard_queries']
    hard = '' if count is None else f' Hard train queries, for the next round: {count}.'
    yield page.paragraph(
        f'Selected assistants: {chosen or "none"}. Replaced: {r["replaced"] or "none"}.{hard}'
    )
    yield drawn[f'scores_{i:02d}']


def _pictures(drawn: Mapping[str, str], *names: str) -> Iterator[str]:
    """HTML of the pictures among these names that were drawn."""
    return (drawn[name] for name in names if name in drawn)


def _warnings(warnings: Sequence[diagnostics.RunWarning]) -> list[str]:
    return [page.heading('Warnings'), page.listing(diagnostics.lines(warnings))] if warnings else []

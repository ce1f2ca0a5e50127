"""What a run found: report.json, report.html, the table on the screen."""

import html
import io
from collections.abc import Mapping, Sequence

import matplotlib
from absl import logging

from jdkd import cautions
from jdkd.run import Run
from jdkd.runtime import config as configs
from jdkd.runtime import distributed, files, stages

matplotlib.use('Agg')
matplotlib.rcParams['svg.hashsalt'] = 'jdkd'  # Else each page has ids of its own.
import matplotlib.pyplot as plt  # noqa: E402

_ROUND_FIELDS = (
    'student',
    'assistants',
    'selected',
    'replaced',
    'hard_queries',
    'score_histogram',
    'one_hot',
    'mean_cosine',
    'teacher',
    'scales',
    'eval_loss',
)


def write(
    run: Run,
    *,
    test: Mapping[str, Mapping[str, float]],
    significance: Mapping[str, Mapping[str, Mapping]],
    rounds: Sequence[Mapping],
    warnings: Sequence[cautions.Caution],
) -> dict:
    """Writes report.json and report.html and logs the table.

    Args:
        run: The run.
        test: {system: {measure: value}} on the test split.
        significance: {system: {measure: how the student differs}}; see `significance.compare`.
        rounds: One entry a round; see `_ROUND_FIELDS`.
        warnings: What the user should know of the numbers.

    Returns:
        The report.
    """
    report = {
        'test': test,
        'significance': significance,
        'warnings': list(warnings),
        'rounds': [{key: r[key] for key in _ROUND_FIELDS} for r in rounds],
        'config_sha256': configs.digest(run.config),
        'collection': {
            'name': run.collection.name,
            'passages': len(run.collection),
            'queries': {q.split: len(q) for q in (run.train, run.eval, run.test)},
            'sha256': run.collection.fingerprint,
        },
        'wall_seconds': stages.seconds(run.workdir),
    }
    if not distributed.is_first():
        return report
    stages.write_json(run.workdir / 'report.json', report)
    with files.replacing(run.workdir / 'report.html') as f:
        f.write(_page(report))
    shown = f'{measures_table(test)}\n\n{table(differences(significance), "student less")}'
    if warnings:
        shown += '\n\nwarnings\n' + '\n'.join(cautions.lines(warnings))
    logging.info('test queries of %s\n%s', run.collection.name, shown)
    return report


def measures_table(test: Mapping[str, Mapping[str, float]]) -> str:
    """The test measures as a text table, times 100, the student last."""
    order = sorted(test, key=lambda name: (name == 'student', test[name].get('MRR@10', 0)))
    return table(percents({name: test[name] for name in order}))


def percents(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """Measures as cells of a table."""
    return {
        name: {column: f'{100 * value:.1f}' for column, value in values.items()}
        for name, values in rows.items()
    }


def differences(significance: Mapping[str, Mapping[str, Mapping]]) -> dict[str, dict[str, str]]:
    """Differences and the p of their t-test as cells of a table: `+1.2 (p = 0.034)`."""
    return {
        name: {column: _difference(found) for column, found in values.items()}
        for name, values in significance.items()
    }


def table(rows: Mapping[str, Mapping[str, str]], corner: str = '') -> str:
    """Rows of cells by column as a text table; the first row has all columns."""
    columns = list(next(iter(rows.values())))
    first = max(map(len, [corner, *rows]))
    widths = {c: max(8, len(c), *(len(r.get(c, '')) for r in rows.values())) for c in columns}
    lines = []
    for name, cells in {corner: {c: c for c in columns}, **rows}.items():
        shown = (f'  {cells.get(c, ""):>{width}}' for c, width in widths.items())
        lines.append(f'{name:{first}}{"".join(shown)}'.rstrip())
    return '\n'.join(lines)


def _difference(found: Mapping) -> str:
    p = found['p']
    shown = 'p unknown' if p is None else 'p < 0.001' if p < 0.001 else f'p = {p:.3f}'
    return f'{100 * found["difference"]:+.1f} ({shown})'


def _page(report: Mapping) -> str:
    """A self-contained page; all text from the run is escaped."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>jdkd report</title>',
        '<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}'
        'table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;'
        'text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%}'
        '</style>',
        f'<h1>{html.escape(report["collection"]["name"])}</h1>',
        f'<p>{report["collection"]["passages"]} passages; test measures times 100.</p>',
        _html_table(percents(report['test'])),
        '<p>The student less other systems, times 100; paired t-test over the queries.</p>',
        _html_table(differences(report['significance'])),
        *_warnings(report['warnings']),
    ]
    for i, r in enumerate(report['rounds']):
        parts.append(f'<h2>Round {i}</h2><p>Measures on D_eval, times 100.</p>')
        parts.append(_html_table(percents({'student': r['student'], **r['assistants']})))
        chosen = ', '.join(f'{n} {100 * s:.0f}%' for n, s in r['selected'].items() if s)
        parts.append(
            f'<p>Selected assistants: {html.escape(chosen or "none")}. Replaced: '
            f'{html.escape(r["replaced"] or "none")}. Train queries that the student gets wrong: '
            f'{r["hard_queries"]}.</p>'
        )
        parts.append(_histogram(r['score_histogram']))
    parts.append('<h2>Seconds by stage</h2><table>')
    parts += [
        f'<tr><td>{html.escape(name)}</td><td>{seconds:.1f}</td></tr>'
        for name, seconds in report['wall_seconds'].items()
    ]
    return '\n'.join([*parts, '</table></html>'])


def _warnings(found: Sequence[cautions.Caution]) -> list[str]:
    items = [f'<li>{html.escape(line)}</li>' for line in cautions.lines(found)]
    return ['<h2>Warnings</h2><ul>', *items, '</ul>'] if items else []


def _html_table(rows: Mapping[str, Mapping[str, str]]) -> str:
    columns = list(next(iter(rows.values())))
    head = ''.join(f'<th>{html.escape(c)}</th>' for c in columns)
    body = ''.join(
        f'<tr><td>{html.escape(name)}</td>'
        + ''.join(f'<td>{html.escape(cells.get(c, ""))}</td>' for c in columns)
        + '</tr>'
        for name, cells in rows.items()
    )
    return f'<table><tr><th></th>{head}</tr>{body}</table>'


def _histogram(histogram: Mapping) -> str:
    """ADAM's figure: the teacher's scores of each kind of candidate, as inline SVG."""
    figure, axes = plt.subplots(figsize=(8, 3))
    for kind, counts in histogram['counts'].items():
        total = max(sum(counts), 1)
        between = 100 * histogram['between'][kind]
        label = f'{kind.replace("_", " ")} ({between:.0f}% between)'
        axes.stairs([c / total for c in counts], histogram['edges'], label=label)
    axes.set_xlabel("teacher's logit")
    axes.set_ylabel('share of its kind')
    axes.legend()
    out = io.StringIO()
    figure.savefig(out, format='svg', bbox_inches='tight', metadata={'Date': None})
    plt.close(figure)
    return out.getvalue()[out.getvalue().index('<svg') :]

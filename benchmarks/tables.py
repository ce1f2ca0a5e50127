"""Writes the tables of ablations, peers and plans into the documentation.

python -m benchmarks.tables

replaces everything between `<!-- NAME -->` and `<!-- end -->` by a table of
benchmarks/results/NAME.json.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from absl import app

from jdkd.planning.roofline import bound_by
from jdkd.report.tables import p_value
from jdkd.runtime import files

RESULTS = pathlib.Path(__file__).parent / 'results'
_DOCS = pathlib.Path(__file__).parents[1] / 'docs'
PAGES = (_DOCS / 'explanation/ablations.md', _DOCS / 'guides/full_scale.md')
_PLACE = re.compile(r'(<!-- ((?:ablation|peers|plans)_\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def _mean(entry: Mapping, measure: str) -> str:
    spread = entry['spread'][measure]
    shown = f'{100 * entry["mean"][measure]:.1f}'
    return shown if spread is None else f'{shown} ± {100 * spread:.1f}'


def _less(entry: Mapping, reference: str, measure: str) -> str:
    compared = entry.get(f'less_{reference}', {}).get(measure)
    if compared is None:
        return ''
    shown = f'{100 * compared["difference"]:+.1f}'
    return shown if compared['p'] is None else f'{shown} ({p_value(compared["p"])})'


def _by_seed(entry: Mapping, measure: str) -> str:
    differences = entry.get('by_seed', {}).get(measure, {}).values()
    return ', '.join(f'{100 * difference:+.1f}' for difference in differences)


def table(results: Mapping, reference: str) -> str:
    """Formats variants as a Markdown table, measures times 100.

    Args:
        results: Results of benchmarks/ablation.py or benchmarks/peers.py.
        reference: The variant that the others are compared with.
    """
    variants = results['variants']
    measures = list(variants[reference]['mean'])
    first = measures[0]
    rows = [['', first, f'less `{reference}`', 'each seed', *measures[1:]]]
    for name, entry in variants.items():
        mean, *others = (_mean(entry, m) for m in measures)
        differences = _less(entry, reference, first), _by_seed(entry, first)
        rows.append([f'`{name}`', mean, *differences, *others])
    return _markdown(rows)


def plans_table(results: Mapping) -> str:
    """Formats plans as a Markdown table: the student's train step, and the run's hours.

    Args:
        results: Results of benchmarks/plans.py.
    """
    head = ['', 'memory used', 'TFLOP', 'HBM traffic, GB', 'ms a step, bound by']
    head += ['utilisation at most', 'training, h', 'scoring, h', 'encoding, h', 'chip-hours']
    rows = [head]
    for topology, plan in results['plans'].items():
        step = next(s for s in plan['stages'] if s['name'] == 'train student')
        if 'chip_hours' not in plan:
            rows.append([topology, 'not known, or does not fit', *[''] * (len(head) - 2)])
            continue
        hours = [
            sum(s['hours'] for s in plan['stages'] if s['name'].startswith(verb))
            for verb in ('train', 'score', 'encode')
        ]
        rows.append(
            [
                topology,
                f'{step["memory"]["total"] / plan["chip"]["memory"]:.1%}',
                f'{step["flops"] / 1e12:.2f}',
                f'{step["main_memory"] / 1e9:.1f}',
                f'{1e3 * step["seconds"]["bound"]:.1f}, {bound_by(step["seconds"])}',
                f'{step["utilisation_bound"]:.0%}',
                *(f'{h:.2f}' for h in hours),
                f'{plan["chip_hours"]:.1f}',
            ]
        )
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as a Markdown table with the first as its head."""
    lines = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    return ''.join(f'| {" | ".join(row)} |\n' for row in lines)


def filled(text: str, results: Mapping[str, Mapping]) -> str:
    """Fills a page's places with their tables; places without results stay as they are.

    Args:
        text: The page, with `<!-- NAME -->` and `<!-- end -->` around each place.
        results: Results by name.
    """

    def fill(match):
        name = match[2]
        if name not in results:
            return match[0]
        if name.startswith('plans'):
            shown = plans_table(results[name])
        else:
            shown = table(results[name], 'full' if name.startswith('ablation') else 'jdkd')
        return f'{match[1]}{shown}{match[3]}'

    return _PLACE.sub(fill, text)


def load() -> dict[str, dict]:
    """Reads all results, by name."""
    paths = [p for kind in ('ablation', 'peers', 'plans') for p in RESULTS.glob(f'{kind}_*.json')]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def update() -> None:
    """Rewrites the tables of all pages."""
    results = load()
    for page in PAGES:
        text = filled(page.read_text(), results)
        with files.atomic_write(page) as f:
            f.write(text)


def main(_):
    update()


if __name__ == '__main__':
    app.run(main)

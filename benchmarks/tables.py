"""What variants are worth, and the README's tables of ablations, peers and plans.

python -m benchmarks.tables

rewrites what stands in README.md between `<!-- NAME -->` and `<!-- end -->`, out of
benchmarks/results/NAME.json.
"""

import json
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from absl import app

from jdkd.data.collection import Collection
from jdkd.planning.cost import bound_by
from jdkd.report.tables import p_value
from jdkd.retrieval import significance

RESULTS = pathlib.Path(__file__).parent / 'results'
README = pathlib.Path(__file__).parent.parent / 'README.md'
_PLACE = re.compile(r'(<!-- ((?:ablation|peers|plans)_\w+) -->\n).*?(<!-- end -->)', re.DOTALL)

PerQuery = Mapping[str, Mapping[str, float]]


def mean_per_query(seeds: Sequence[PerQuery]) -> dict[str, dict[str, float]]:
    """Each query's measures, averaged over seeds."""
    return {
        query: {m: statistics.fmean(s[query][m] for s in seeds) for m in values}
        for query, values in seeds[0].items()
    }


def means(queries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means of measures, each over the queries that have it: some lack judgements or answers."""
    found: dict[str, list[float]] = {}
    for values in queries:
        for measure, value in values.items():
            found.setdefault(measure, []).append(value)
    return {measure: statistics.fmean(values) for measure, values in found.items()}


def titles(collection: Collection, split: str) -> dict[str, str]:
    """The title of each judged query's first positive: the article that it was asked about."""
    found = {}
    for query in collection.labelled(split):
        grades = collection.qrels[split][query]
        row = collection.row.find([next(p for p, grade in grades.items() if grade > 0)])[0]
        found[query] = collection.titles[int(row)]
    return found


def mean_per_title(per_query: PerQuery, titles: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Each title's measures, averaged over its queries; queries without a title are left out."""
    queries: dict[str, list] = {}
    for query, measured in per_query.items():
        if query in titles:
            queries.setdefault(titles[query], []).append(measured)
    return {title: means(of) for title, of in queries.items()}


def summary(
    measured: Mapping[str, Mapping[str, PerQuery]],
    reference: str,
    titles: Mapping[str, str] | None = None,
) -> dict[str, dict]:
    """What variants are worth.

    Args:
        measured: {variant: {seed: {query: {measure: value}}}}.
        reference: The variant that the others are compared with, on the seeds that both have:
            each query's values are averaged over these seeds, then paired by query. So p tells of
            other queries, and the spread of other seeds.
        titles: {query: title}. Queries of one title are alike; with these, what is compared is
            also the mean of each.

    Returns:
        {variant: `seeds`, `mean` {measure: value}, `spread` over seeds (standard deviation, None
        for one seed), `less_<reference>` as from `significance.compare`, and
        `less_<reference>_by_title`, the same with titles for queries}.
    """
    found = {}
    for variant, by_seed in measured.items():
        of_seeds = [means(queries.values()) for queries in by_seed.values()]
        values = {measure: [of[measure] for of in of_seeds] for measure in of_seeds[0]}
        found[variant] = {
            'seeds': list(by_seed),
            'mean': {m: statistics.fmean(v) for m, v in values.items()},
            'spread': {m: statistics.stdev(v) if len(v) > 1 else None for m, v in values.items()},
        }
        both = [seed for seed in by_seed if seed in measured.get(reference, {})]
        if variant != reference and both:
            sides = [mean_per_query([of[s] for s in both]) for of in (by_seed, measured[reference])]
            found[variant][f'less_{reference}'] = significance.compare(*sides)
            if titles:
                found[variant][f'less_{reference}_by_title'] = significance.compare(
                    *(mean_per_title(side, titles) for side in sides)
                )
    return found


def _mean(entry: Mapping, measure: str) -> str:
    spread = entry['spread'][measure]
    shown = f'{100 * entry["mean"][measure]:.1f}'
    return shown if spread is None else f'{shown} ± {100 * spread:.1f}'


def _less(entry: Mapping, reference: str, measure: str) -> str:
    compared = entry.get(f'less_{reference}', {}).get(measure)
    if compared is None:
        return ''
    shown = f'{100 * compared["difference"]:+.1f}'
    by_title = entry.get(f'less_{reference}_by_title', {}).get(measure, {'p': None})
    ps = [p_value(found['p']) for found in (compared, by_title) if found['p'] is not None]
    return f'{shown} ({"; ".join(ps)})' if ps else shown


def table(results: Mapping, reference: str) -> str:
    """A table of variants in Markdown, measures times 100.

    Args:
        results: Of benchmarks/ablation.py or benchmarks/peers.py.
        reference: The variant that the others are compared with.
    """
    variants = results['variants']
    measures = list(variants[reference]['mean'])
    first = measures[0]
    rows = [['', 'seeds', first, f'less `{reference}`', *measures[1:]]]
    for name, entry in variants.items():
        shown = [_mean(entry, m) for m in measures]
        seeds = str(len(entry['seeds']))
        rows.append([f'`{name}`', seeds, shown[0], _less(entry, reference, first), *shown[1:]])
    return _markdown(rows)


def plans_table(results: Mapping) -> str:
    """A table of plans in Markdown: the student's train step, and hours of the run by what it does.

    Args:
        results: Of benchmarks/plans.py.
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
    """A table, whose first row is the head."""
    lines = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    return ''.join(f'| {" | ".join(row)} |\n' for row in lines)


def filled(text: str, results: Mapping[str, Mapping]) -> str:
    """A text whose places for tables hold them; places without results stay as they are.

    Args:
        text: With `<!-- NAME -->` and `<!-- end -->` around each place.
        results: By name.
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
    """The results that there are, by name."""
    paths = [p for kind in ('ablation', 'peers', 'plans') for p in RESULTS.glob(f'{kind}_*.json')]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def update() -> None:
    """Rewrites the README's tables."""
    README.write_text(filled(README.read_text(), load()))


def main(_):
    update()


if __name__ == '__main__':
    app.run(main)

"""What each part of the method is worth: variants of one run, over seeds, against the full method.

python -m benchmarks.ablation --name=squad --workdir=runs/ablation_squad --seeds=0,1 -- \
    --config=configs/ablation.py:beir=squad_1k

What stands after `--` is given to jdkd.main as it is. A variant begins as a copy of the full run of
its seed, by hard links, so that all stages which it does not touch are shared; the full run of
another seed begins as one of the first seed. The same command goes on where it was stopped, and
with more seeds or variants it makes those. Figures go to benchmarks/results/ablation_<name>.json
after every run, and from there into the README (benchmarks/tables.py).
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import ml_collections
from absl import app, flags, logging

from benchmarks import measure, tables
from jdkd.retrieval import evaluate, significance
from jdkd.runtime import config as configs
from jdkd.runtime import files, stages

FULL = 'full'
_NO_DARK = {'dark.reinforced': 0, 'dark.noisy': 0}
_NO_ASSISTANTS = {'assistants': (), 'loss.assistant': 0.0, 'loss.in_batch': 0.0}


def _dark(config, kind: str) -> dict[str, int]:
    """As many dark examples in all, of one kind."""
    return _NO_DARK | {f'dark.{kind}': config.dark.reinforced + config.dark.noisy}


# Fields that differ from the full method's, given its config.
VARIANTS: dict[str, Callable[[ml_collections.FrozenConfigDict], dict]] = {
    FULL: lambda c: {},
    'no_assistants': lambda c: _NO_ASSISTANTS,
    'single_assistant': lambda c: {'assistants': c.assistants[:1]},
    'no_fusion': lambda c: {'selection.fusion': 'none'},
    'footrule': lambda c: {'selection.distance': 'footrule'},
    'rbo': lambda c: {'selection.distance': 'rbo'},
    'per_query': lambda c: {'selection.per': 'query'},
    'no_in_batch': lambda c: {'loss.in_batch': 0.0},
    'no_iteration': lambda c: {'rounds': 1, 'steps_per_round': c.rounds * c.steps_per_round},
    'no_harder_data': lambda c: {'replay': 1.0},
    'no_dark': lambda c: _NO_DARK,
    'reinforced_only': lambda c: _dark(c, 'reinforced'),
    'noisy_only': lambda c: _dark(c, 'noisy'),
    'no_self_pacing': lambda c: {'self_paced.share': 1.0},
    'contrastive_only': lambda c: _NO_ASSISTANTS | _NO_DARK | {'loss.teacher': 0.0},
    'teacher_only': lambda c: _NO_ASSISTANTS | _NO_DARK | {'loss.contrastive': 0.0},
}

_NAME = flags.DEFINE_string('name', None, 'Of the results.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the runs are kept.', required=True)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'One run of every variant each.')
_VARIANTS = flags.DEFINE_list(
    'variants', list(VARIANTS), f'Those to run; {FULL} always is. The order is kept.'
)


def overridden(
    config: ml_collections.FrozenConfigDict, variant: str
) -> ml_collections.FrozenConfigDict:
    """The config of a variant, given that of the full method."""
    changed = ml_collections.ConfigDict(config.to_dict())
    with changed.ignore_type():
        changed.update_from_flattened_dict(VARIANTS[variant](config))
    return ml_collections.FrozenConfigDict(changed)


def arguments(config: ml_collections.FrozenConfigDict, variant: str) -> list[str]:
    """The same on a command line."""
    found = []
    for field, value in VARIANTS[variant](config).items():
        shown = ','.join(value) if isinstance(value, tuple) else value
        found.append(f'--config.{field}={shown}')
    return found


def share(source: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a new workdir the stages of a finished one by hard links.

    Stages replace files and never write into them, so that neither workdir changes the other.
    """
    temporary = target.with_name(f'{target.name}.tmp')
    files.remove(temporary)
    temporary.mkdir(parents=True)
    shutil.copyfile(source / configs.FILE, temporary / configs.FILE)
    for name in ('collection', 'tokens', 'systems', 'rounds'):
        shutil.copytree(source / name, temporary / name, copy_function=os.link)
    temporary.rename(target)


def _run(workdir: pathlib.Path, args: Sequence[str]) -> None:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'jdkd.main', *args, f'--workdir={workdir}', '--update']
    log = workdir.with_name(f'{workdir.name}.log')
    logging.info('%s: see %s', workdir, log)
    with log.open('a', encoding='utf-8') as f:
        done = subprocess.run(command, stdout=f, stderr=f, check=False)
    if done.returncode:
        told = log.read_text(encoding='utf-8').splitlines()[-1]
        raise RuntimeError(f'{workdir} stopped: {told}; the same command goes on.')


def _finished(workdir: pathlib.Path, expected: ml_collections.FrozenConfigDict) -> bool:
    there = (workdir / 'report.json').exists()
    return there and configs.digest(configs.load(workdir)) == configs.digest(expected)


def run_variant(root: pathlib.Path, seed: str, variant: str, args: Sequence[str]) -> pathlib.Path:
    """Makes one run, unless it is there.

    Args:
        root: Of all runs.
        seed: Its seed.
        variant: Its name.
        args: Of jdkd.main, for the full method.

    Returns:
        Its workdir.
    """
    full, workdir = root / f'seed_{seed}' / FULL, root / f'seed_{seed}' / variant
    if variant == FULL:
        others = (path.parent for path in sorted(root.glob(f'seed_*/{FULL}/report.json')))
        other = next(others, None)
        if other and not workdir.exists():
            share(other, workdir)
        _run(workdir, [*args, f'--config.seed={seed}'])
    else:
        config = configs.load(full)
        if _finished(workdir, overridden(config, variant)):
            return workdir
        if not workdir.exists():
            share(full, workdir)
        (workdir / 'report.json').unlink(missing_ok=True)
        _run(workdir, [*args, f'--config.seed={seed}', *arguments(config, variant)])
        # Some hundred megabytes a variant; its figures, run and student stay.
        for path in workdir.glob('rounds/*/train/checkpoints'):
            shutil.rmtree(path)
    files.remove(workdir / 'replaced')
    return workdir


PerQuery = Mapping[str, Mapping[str, float]]


def mean_per_query(seeds: Sequence[PerQuery]) -> dict[str, dict[str, float]]:
    """Each query's measures, averaged over seeds."""
    return {
        query: {m: statistics.fmean(s[query][m] for s in seeds) for m in values}
        for query, values in seeds[0].items()
    }


def summary(
    measured: Mapping[str, Mapping[str, PerQuery]], reference: str = FULL
) -> dict[str, dict]:
    """What variants are worth.

    Args:
        measured: {variant: {seed: {query: {measure: value}}}}.
        reference: The variant that the others are compared with, on the seeds that both have:
            each query's values are averaged over these seeds, then paired by query. So p tells of
            other queries, and the spread of other seeds.

    Returns:
        {variant: `seeds`, `mean` {measure: value}, `spread` over seeds (standard deviation, None
        for one seed) and `less_<reference>` as from `significance.compare`}.
    """
    found = {}
    for variant, by_seed in measured.items():
        names = list(next(iter(next(iter(by_seed.values())).values())))
        means = {
            m: [statistics.fmean(v[m] for v in queries.values()) for queries in by_seed.values()]
            for m in names
        }
        found[variant] = {
            'seeds': list(by_seed),
            'mean': {m: statistics.fmean(values) for m, values in means.items()},
            'spread': {
                m: statistics.stdev(values) if len(values) > 1 else None
                for m, values in means.items()
            },
        }
        both = [seed for seed in by_seed if seed in measured.get(reference, {})]
        if variant != reference and both:
            found[variant][f'less_{reference}'] = significance.compare(
                mean_per_query([by_seed[seed] for seed in both]),
                mean_per_query([measured[reference][seed] for seed in both]),
            )
    return found


def _diagnosis(workdir: pathlib.Path) -> dict:
    """What a run says of itself that explains its figures."""
    report = stages.read_json(workdir / 'report.json')
    keys = ('selected', 'eval_loss', 'student', 'assistants', 'replaced', 'hard_queries', 'one_hot')
    return {
        'rounds': [
            {key: r[key] for key in keys} | {'between': r['score_histogram']['between']}
            for r in report['rounds']
        ],
        'seconds': round(sum(report['wall_seconds'].values())),
    }


def finished(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
    """{variant: {seed: workdir}} of all runs that have ended, also of earlier commands."""
    seeds = sorted(path.name.removeprefix('seed_') for path in root.glob('seed_*'))
    found = {
        variant: {
            seed: path
            for seed in seeds
            if ((path := root / f'seed_{seed}' / variant) / 'report.json').exists()
        }
        for variant in VARIANTS
    }
    return {variant: runs for variant, runs in found.items() if runs}


def write(name: str, runs: Mapping[str, Mapping[str, pathlib.Path]]) -> None:
    """Writes the results of {variant: {seed: workdir}}."""
    measured = {
        variant: {
            seed: evaluate.load_per_query(path / 'test', 'student') for seed, path in seeds.items()
        }
        for variant, seeds in runs.items()
    }
    first = next(iter(runs[FULL].values()))
    config, report = configs.load(first), stages.read_json(first / 'report.json')
    found = summary(measured)
    for variant, seeds in runs.items():
        found[variant] |= {
            'overrides': VARIANTS[variant](config),
            'first_seed': _diagnosis(next(iter(seeds.values()))),
        }
    measure.write(
        f'ablation_{name}',
        {
            'queries': len(next(iter(measured[FULL].values()))),
            'systems': {s: v for s, v in report['test'].items() if s != 'student'},
            'variants': found,
        },
    )


def main(argv):
    root = pathlib.Path(_WORKDIR.value).absolute()
    unknown = [v for v in _VARIANTS.value if v not in VARIANTS]
    if unknown:
        raise ValueError(f'there is no variant {unknown[0]!r}; there are {", ".join(VARIANTS)}.')
    for seed in _SEEDS.value:
        for variant in dict.fromkeys([FULL, *_VARIANTS.value]):
            run_variant(root, seed, variant, argv[1:])
            write(_NAME.value, finished(root))
    tables.update()


if __name__ == '__main__':
    app.run(main)

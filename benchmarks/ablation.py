"""Measures what each part of the method is worth: variants against the full method, over seeds.

python -m benchmarks.ablation --name=squad --workdir=runs/ablation_squad --seeds=0,1 \
    --config=configs/ablation.py:beir=squad_1k

All other flags are passed to jdkd.main. A variant starts as a copy of its seed's full run, by hard
links, so that it shares every stage that it does not touch; the full run of another seed starts as
a copy of the first seed's. The same command continues after a stop, and adds seeds or variants.
Figures go to benchmarks/results/ablation_<name>.json after every run, and from there into the docs
(benchmarks/tables.py). --test measures on the test split of another collection, such as more
queries or other texts.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import ml_collections

from benchmarks import compared, tables
from jdkd import config as configs
from jdkd.commands import setup
from jdkd.config import Config
from jdkd.corpus import importing
from jdkd.report import finished as finished_runs
from jdkd.runtime import files, metrics, stages

FULL = 'full'
LABELLED_ONLY = 'labelled_only'  # Where some queries have no label.
_NO_DARK = {'dark.reinforced': 0, 'dark.noisy': 0}
_NO_ASSISTANTS = {'assistants': (), 'loss.assistant': 0.0, 'loss.in_batch': 0.0}
_CONTRASTIVE = _NO_ASSISTANTS | _NO_DARK | {'loss.embedding': 0.0}
_LABELLED = {'collection.unlabelled': 'skip'}


def _dark(config, kind: str) -> dict[str, int]:
    """As many dark examples in all, of one kind."""
    return _NO_DARK | {f'dark.{kind}': config.dark.reinforced + config.dark.noisy}


def _one_round(steps: int) -> dict[str, int]:
    return {'rounds': 1, 'steps_per_round': steps, 'optimizer.cycle_steps': steps}


# Fields that differ from the full method's, given its config.
VARIANTS: dict[str, Callable[[Config], dict]] = {
    FULL: lambda c: {},
    'no_assistants': lambda c: _NO_ASSISTANTS,
    'single_assistant': lambda c: {'assistants': c.assistants[:1]},
    'no_fusion': lambda c: {'selection.fusion': 'none'},
    'footrule': lambda c: {'selection.distance': 'footrule'},
    'rbo': lambda c: {'selection.distance': 'rbo'},
    'per_query': lambda c: {'selection.per': 'query'},
    'no_in_batch': lambda c: {'loss.in_batch': 0.0},
    'no_iteration': lambda c: _one_round(c.rounds * c.steps_per_round),
    'no_harder_data': lambda c: {'replay': 1.0},
    'no_dark': lambda c: _NO_DARK,
    'reinforced_only': lambda c: _dark(c, 'reinforced'),
    'noisy_only': lambda c: _dark(c, 'noisy'),
    'no_self_pacing': lambda c: {'self_paced.share': 1.0},
    'no_alignment': lambda c: {'align.epochs': 0.0, 'loss.embedding': 0.0},
    'embedding': lambda c: {'loss.embedding': 1.0},  # The default has none.
    'uniform_negatives': lambda c: {'candidates.hardest': 0, 'candidates.margin': 0.0},
    # From the same aligned start; it has no use for queries without a label.
    'contrastive_only': lambda c: _CONTRASTIVE | _LABELLED | {'loss.teacher': 0.0},
    'teacher_only': lambda c: _CONTRASTIVE | {'loss.contrastive': 0.0},
    LABELLED_ONLY: lambda c: _LABELLED,
}


def overridden(config: Config, variant: str) -> Config:
    """The config of a variant, given that of the full method."""
    changed = ml_collections.ConfigDict(config.to_dict())
    with changed.ignore_type():
        changed.update_from_flattened_dict(VARIANTS[variant](config))
    return setup.resolve_training(changed)


def arguments(config: Config, variant: str) -> list[str]:
    """The same on a command line."""
    found = []
    for field, value in VARIANTS[variant](config).items():
        shown = ','.join(value) if isinstance(value, tuple) else value
        found.append(f'--config.{field}={shown}')
    return found


def share(source: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a new workdir the stages of a finished one by hard links.

    Stages and metrics are replaced and never written into, so that neither workdir changes the
    other.
    """
    temporary = target.with_name(f'{target.name}.tmp')
    files.remove(temporary)
    temporary.mkdir(parents=True)
    shutil.copyfile(source / configs.FILE, temporary / configs.FILE)
    os.link(source / metrics.FILE, temporary / metrics.FILE)  # Of the rounds that it shares.
    for name in ('collection', 'tokens', 'systems', 'align', 'rounds'):
        if not (source / name).exists():  # Not every run aligns its student.
            continue
        shutil.copytree(source / name, temporary / name, copy_function=os.link)
    temporary.rename(target)


def _run(workdir: pathlib.Path, args: Sequence[str]) -> None:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'jdkd.main', *args, f'--workdir={workdir}', '--update']
    log = workdir.with_name(f'{workdir.name}.log')
    print(f'{workdir}: see {log}', flush=True)
    with log.open('a', encoding='utf-8') as f:
        done = subprocess.run(command, stdout=f, stderr=f, check=False)
    if done.returncode:
        told = log.read_text(encoding='utf-8').splitlines()[-1]
        raise RuntimeError(f'{workdir} stopped: {told}; the same command goes on.')


def _finished(workdir: pathlib.Path, expected: Config) -> bool:
    report = workdir / 'report.json'
    return report.exists() and (
        stages.read_json(report)['config_sha256'] == configs.digest(expected)
    )


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
        config = setup.load_config(full)
        if _finished(workdir, overridden(config, variant)):
            return workdir
        if not workdir.exists():
            share(full, workdir)
        _run(workdir, [*args, f'--config.seed={seed}', *arguments(config, variant)])
        # Some hundred megabytes a variant; its figures, run and student stay.
        for path in workdir.glob('rounds/*/train/checkpoints'):
            shutil.rmtree(path)
    files.remove(workdir / 'replaced')
    return workdir


def _diagnosis(workdir: pathlib.Path) -> dict:
    """What a run says of itself that explains its figures."""
    report = stages.read_json(workdir / 'report.json')
    keys = ('selected', 'eval_loss', 'student', 'assistants', 'replaced', 'hard_queries', 'one_hot')
    return {
        'rounds': [{key: r[key] for key in keys} for r in report['rounds']],
        'seconds': round(sum(report['wall_seconds'].values())),
    }


def finished(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
    """{variant: {seed: workdir}} of all runs that have ended, also of earlier commands.

    Those of another full method than their seed's are left out.
    """
    found: dict[str, dict[str, pathlib.Path]] = {variant: {} for variant in VARIANTS}
    for directory in sorted(root.glob('seed_*')):
        config = setup.load_config(directory / FULL)
        for variant, seeds in found.items():
            if _finished(directory / variant, overridden(config, variant)):
                seeds[directory.name.removeprefix('seed_')] = directory / variant
    return {variant: seeds for variant, seeds in found.items() if seeds}


def write(
    name: str, runs: Mapping[str, Mapping[str, pathlib.Path]], test: compared.Test | None
) -> None:
    """Writes the results of {variant: {seed: workdir}}, on other test queries than their own."""
    measured = {
        variant: {
            seed: compared.of_run(test, f'seed_{seed}/{variant}', path)
            for seed, path in seeds.items()
        }
        for variant, seeds in runs.items()
    }
    first = next(iter(runs[FULL].values()))
    full = finished_runs.read(first)
    collection = test.collection() if test else importing.load_collection(full.config, first)
    compared.write(
        f'ablation_{name}',
        measured,
        FULL,
        collection,
        test.split if test else full.test_split,
        variants={
            variant: {
                'overrides': VARIANTS[variant](full.config),
                'first_seed': _diagnosis(next(iter(seeds.values()))),
            }
            for variant, seeds in runs.items()
        },
        systems={s: v for s, v in full.report['test'].items() if s != 'student'},
    )


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--name', required=True, help='Of the results.')
    parser.add_argument('--workdir', required=True, help='Where the runs are kept.')
    parser.add_argument('--seeds', default='0', help='One run of every variant each.')
    every = ','.join(v for v in VARIANTS if v != LABELLED_ONLY)
    parser.add_argument(
        '--variants', default=every, help=f'Beside {FULL}; {LABELLED_ONLY} where labels are few.'
    )
    parser.add_argument('--test', help="KIND:PATH, the runs' own if it is not set.")
    options, args = parser.parse_known_args()
    root = pathlib.Path(options.workdir).absolute()
    test = compared.Test(options.test, 'test', root / 'tested') if options.test else None
    variants = dict.fromkeys([FULL, *options.variants.split(',')])
    if unknown := [v for v in variants if v not in VARIANTS]:
        parser.error(f'there is no variant {unknown[0]!r}; there are {", ".join(VARIANTS)}.')
    for seed in options.seeds.split(','):
        for variant in variants:
            run_variant(root, seed, variant, args)
            write(options.name, finished(root), test)
    tables.update()


if __name__ == '__main__':
    main()

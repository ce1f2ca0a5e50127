"""The ablation runner: its variants, and its arithmetic."""

import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import ablation, compared, sample, tables
from jdkd import config as configs
from jdkd import validation
from jdkd.configs import ablation as ablation_config
from jdkd.configs import mta4dpr
from jdkd.runtime import files, lock
from tests.helpers import tiny

RECIPES = {
    'python_docs': ablation_config.get_config,
    'paragraphs': lambda: ablation_config.get_config('beir=some/corpus'),
    'default': mta4dpr.get_config,
    'msmarco': lambda: mta4dpr.get_config('msmarco'),
}


def of_command_line(monkeypatch, *args):
    """The config that jdkd.main would work with."""
    monkeypatch.setattr(sys, 'argv', ['main', *args])  # Where config_flags looks for overrides.
    found = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=found, lock_config=True)
    found(sys.argv)
    return configs.resolve(found.config)


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_variant_changes_what_it_says_and_nothing_else(recipe):
    full = configs.resolve(RECIPES[recipe]())
    for variant, changes in ablation.VARIANTS.items():
        found = ablation.overridden(full, variant)
        assert type(found) is type(full)
        changed = set(configs.differences(full, found))
        assert changed <= changes(full).keys()
        assert bool(changed) == (variant != ablation.FULL) or recipe == 'msmarco'
        # As many steps, and the same systems to mine negatives.
        assert found.rounds * found.steps_per_round == found.optimizer.total_steps
        same = {'hardest': full.candidates.hardest, 'margin': full.candidates.margin}
        assert found.candidates.replace(**same) == full.candidates
        dark = found.dark.reinforced + found.dark.noisy
        assert dark in (0, full.dark.reinforced + full.dark.noisy)


@pytest.mark.parametrize('variant', ablation.VARIANTS)
def test_a_variant_is_the_same_on_the_command_line(variant, tmp_path, monkeypatch):
    tiny.write(tmp_path)
    config = f'--config=tests/helpers/tiny.py:{tmp_path}'
    full = of_command_line(monkeypatch, config)
    expected = ablation.overridden(full, variant)
    found = of_command_line(monkeypatch, config, *ablation.arguments(full, variant))
    assert configs.digest(found) == configs.digest(expected)
    validation.validate(found)


def test_a_copy_shares_stages_and_leaves_the_rest(tmp_path):
    source, target = tmp_path / 'full', tmp_path / 'other'
    for name in ('collection', 'tokens', 'systems', 'align', 'rounds'):
        (source / name / 'stage').mkdir(parents=True)
        (source / name / 'stage/data').write_text(name)
    for name in ('config.json', 'report.json', 'metrics.jsonl', 'lock'):
        (source / name).write_text('{}')
    ablation.share(source, target)
    assert {p.name for p in target.iterdir()} == {
        'collection',
        'tokens',
        'systems',
        'align',
        'rounds',
        'config.json',
        'metrics.jsonl',
    }
    assert (target / 'systems/stage/data').samefile(source / 'systems/stage/data')
    assert not (target / 'config.json').samefile(source / 'config.json')


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    base = ablation_config.get_config()
    ran = []

    def run(workdir, args):
        """Leaves what jdkd.main would."""
        ran.append((workdir.parent.name, workdir.name, workdir.exists()))
        full = base.copy_and_resolve_references()
        full.seed = int(next(a for a in args if '.seed=' in a).partition('=')[2])
        config = ablation.overridden(configs.resolve(full), workdir.name)
        with lock.hold(workdir, update=True):
            configs.save(workdir, config)
        for name in ('collection', 'tokens', 'systems', 'rounds/00/train/checkpoints'):
            (workdir / name).mkdir(parents=True, exist_ok=True)
        report = {'config_sha256': configs.digest(config)}
        (workdir / 'report.json').write_text(json.dumps(report))
        files.remove(workdir / 'metrics.jsonl')  # Which copies share.
        (workdir / 'metrics.jsonl').write_text('')

    monkeypatch.setattr(ablation, '_run', run)

    def all_of(seed):
        ran.clear()
        for variant in ('full', 'no_dark'):
            ablation.run_variant(tmp_path, seed, variant, [])
        return ran

    # A variant and another seed begin as copies; the full run sees for itself that it is there.
    assert all_of('0') == [('seed_0', 'full', False), ('seed_0', 'no_dark', True)]
    assert all_of('1') == [('seed_1', 'full', True), ('seed_1', 'no_dark', True)]
    assert all_of('0') == [('seed_0', 'full', True)]
    found = ablation.finished(tmp_path)
    assert {v: list(seeds) for v, seeds in found.items()} == {
        'full': ['0', '1'],
        'no_dark': ['0', '1'],
    }
    assert not (found['no_dark']['0'] / 'rounds/00/train/checkpoints').exists()
    # Variants of another full method count no more, until they are made again.
    base.batch_size += 1
    ablation.run_variant(tmp_path, '0', 'full', [])
    assert list(ablation.finished(tmp_path)['no_dark']) == ['1']
    assert all_of('0') == [('seed_0', 'full', True), ('seed_0', 'no_dark', True)]


def queries(*values):
    return {f'q{i}': {'MRR@10': value} for i, value in enumerate(values)}


def test_a_table_shows_spread_and_significance():
    found = compared.summary(
        {
            'full': {'0': queries(1.0, 0.5), '1': queries(0.5, 0.0)},
            'same': {'0': queries(1.0, 0.5), '1': queries(0.5, 0.5)},
        },
        'full',
    )
    text = 'a\n<!-- ablation_toy -->\nold\n<!-- end -->\nb <!-- ablation_none -->\n<!-- end -->\n'
    filled = tables.filled(text, {'ablation_toy': {'variants': found}})
    assert filled == (
        'a\n<!-- ablation_toy -->\n'
        '|  | MRR@10 | less `full` | each seed |\n'
        '| --- | --- | --- | --- |\n'
        '| `full` | 50.0 ± 35.4 |  |  |\n'
        '| `same` | 62.5 ± 17.7 | +12.5 (p = 0.500) | +0.0, +25.0 |\n'
        '<!-- end -->\nb <!-- ablation_none -->\n<!-- end -->\n'
    )


def test_the_docs_show_the_committed_results():
    results = tables.load()
    pages = [page.read_text() for page in tables.PAGES]
    assert [tables.filled(text, results) for text in pages] == pages
    for name in results:
        assert sum(f'<!-- {name} -->' in text for text in pages) == 1


def test_a_sample_keeps_all_judgements_of_some_queries():
    lines = ['query-id\tcorpus-id\tscore\n', 'a\t1\t1\n', 'a\t2\t1\n', 'b\t1\t1\n', 'c\t3\t1\n']
    found = sample.sample(lines, 2, seed=0)
    assert found[0] == lines[0] and found == [line for line in lines if line in found]
    ids = [line[0] for line in found[1:]]
    assert len(set(ids)) == 2 and all(lines[1:].count(x) for x in found[1:])
    assert sorted(ids) == sorted(line[0] for line in lines[1:] if line[0] in ids)
    assert found == sample.sample(lines, 2, seed=0)
    with pytest.raises(ValueError, match='only 3 are judged'):
        sample.sample(lines, 4, seed=0)

"""The ablation runner: its variants, and its arithmetic."""

import sys

import pytest
import tiny
from absl import flags
from ml_collections import config_flags

from benchmarks import ablation, sample, tables
from configs import ablation as ablation_config
from configs import mta4dpr
from jdkd import validation
from jdkd.runtime import config as configs

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
        fields = dict(configs._flat(found.to_dict()))
        before = dict(configs._flat(full.to_dict()))
        assert fields.keys() == before.keys()
        changed = {k for k in fields if fields[k] != before[k]}
        assert changed <= changes(full).keys()
        assert bool(changed) == (variant != ablation.FULL) or recipe == 'msmarco'
        # As many steps, and the same systems to mine negatives.
        assert found.rounds * found.steps_per_round == found.optimizer.total_steps
        assert found.candidates == full.candidates
        dark = found.dark.reinforced + found.dark.noisy
        assert dark in (0, full.dark.reinforced + full.dark.noisy)


@pytest.mark.parametrize('variant', ablation.VARIANTS)
def test_a_variant_is_the_same_on_the_command_line(variant, tmp_path, monkeypatch):
    tiny.write(tmp_path)
    config = f'--config=tests/tiny.py:{tmp_path}'
    full = of_command_line(monkeypatch, config)
    expected = ablation.overridden(full, variant)
    found = of_command_line(monkeypatch, config, *ablation.arguments(full, variant))
    assert configs.digest(found) == configs.digest(expected)
    validation.validate(found)


def test_a_copy_shares_stages_and_leaves_the_rest(tmp_path):
    source, target = tmp_path / 'full', tmp_path / 'other'
    for name in ('collection', 'tokens', 'systems', 'rounds'):
        (source / name / 'stage').mkdir(parents=True)
        (source / name / 'stage/data').write_text(name)
    for name in ('config.json', 'report.json', 'metrics.jsonl', 'lock'):
        (source / name).write_text('{}')
    ablation.share(source, target)
    assert {p.name for p in target.iterdir()} == {
        'collection',
        'tokens',
        'systems',
        'rounds',
        'config.json',
    }
    assert (target / 'systems/stage/data').samefile(source / 'systems/stage/data')
    assert not (target / 'config.json').samefile(source / 'config.json')


def queries(*values):
    return {f'q{i}': {'MRR@10': value} for i, value in enumerate(values)}


def test_values_are_averaged_over_seeds_and_then_paired():
    measured = {
        'full': {'0': queries(1.0, 0.5, 0.0), '1': queries(1.0, 0.5, 1.0)},
        'less': {'0': queries(0.5, 0.0, 0.0), '1': queries(0.5, 0.0, 0.5)},
        'once': {'1': queries(1.0, 0.5, 0.5)},
    }
    found = tables.summary(measured, 'full')
    assert found['full']['mean']['MRR@10'] == pytest.approx(2 / 3)
    assert found['full']['spread']['MRR@10'] == pytest.approx(2**0.5 / 6)  # Of 1/2 and 5/6.
    less = found['less']['less_full']['MRR@10']
    # Means over seeds: 1, 0.5, 0.5 and 0.5, 0, 0.25.
    assert less['difference'] == pytest.approx(-1.25 / 3)
    assert (less['wins'], less['losses']) == (0, 3)
    # Against the seed that it has alone.
    assert found['once']['seeds'] == ['1'] and found['once']['spread']['MRR@10'] is None
    assert found['once']['less_full']['MRR@10']['difference'] == pytest.approx(-0.5 / 3)
    assert 'less_full' not in found['full']


def test_a_table_shows_spread_and_significance():
    found = tables.summary(
        {
            'full': {'0': queries(1.0, 0.5), '1': queries(0.5, 0.0)},
            'same': {'0': queries(1.0, 0.5)},
        },
        'full',
    )
    text = 'a\n<!-- ablation_toy -->\nold\n<!-- end -->\nb <!-- ablation_none -->\n<!-- end -->\n'
    filled = tables.filled(text, {'ablation_toy': {'variants': found}})
    assert filled == (
        'a\n<!-- ablation_toy -->\n'
        '|  | seeds | MRR@10 | less `full` |\n'
        '| --- | --- | --- | --- |\n'
        '| `full` | 2 | 50.0 ± 35.4 |  |\n'
        '| `same` | 1 | 75.0 | +0.0 (p = 1.000) |\n'
        '<!-- end -->\nb <!-- ablation_none -->\n<!-- end -->\n'
    )


def test_the_readme_shows_the_committed_results():
    text = tables.README.read_text()
    assert tables.filled(text, tables.load()) == text
    for name in tables.load():
        assert f'<!-- {name} -->' in text


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

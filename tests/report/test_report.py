"""Tables, pictures and pages: what they say, the same each time, and without markup of others."""

import dataclasses
import html
import json
import pathlib
import re

import numpy as np
import pytest

from jdkd import config as configs
from jdkd.commands import compare
from jdkd.corpus import building, importing, storage
from jdkd.corpus.sources import registry
from jdkd.report import costs, drawing, examples, finished, page, pictures, run_report, tables
from jdkd.retrieval import measures
from jdkd.runtime import metrics, stages
from tests.helpers import toy

SCRIPT = '</h1><script>alert("1")</script>'
MEASURED = {'MRR@10': 0.5}


def paired_test(difference, p):
    return {'difference': difference, 'p': p, 'wins': 0, 'ties': 0, 'losses': 0}


def test_differences_say_how_sure_they_are():
    rows = {'bm25': {'MRR@10': paired_test(0.0123, 0.0405), 'R@100': paired_test(-0.2, 1e-9)}}
    assert tables.differences(rows) == {
        'bm25': {'MRR@10': '+1.2 (p = 0.041)', 'R@100': '-20.0 (p < 0.001)'}
    }
    assert tables.differences({'x': {'m': paired_test(0.5, None)}})['x']['m'] == '+50.0 (p unknown)'


def test_columns_are_as_wide_as_their_cells():
    rows = {'a': {'m': '1.0', 'wide': '+1.2 (p = 0.041)'}, 'longer name': {'m': '10.0'}}
    assert tables.table(rows, 'x').splitlines() == [
        'x                   m              wide',
        'a                 1.0  +1.2 (p = 0.041)',
        'longer name      10.0',
    ]


def test_the_student_stands_last_in_the_table_of_measures():
    test = {name: {'MRR@10': x} for name, x in (('student', 0.1), ('a', 0.6), ('b', 0.55))}
    lines = tables.measures_table(test).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ['b', '55.0'],
        ['a', '60.0'],
        ['student', '10.0'],
    ]


def test_windows_of_selection_follow_from_the_shares_so_far():
    # Two rounds of 4 steps; of a+b, in the first: 2 of 2 steps, then 0 of 2; in the second 1 of 4.
    records = [
        {'step': 2, 'selected/a': 0.0, 'selected/a+b': 1.0},
        {'step': 4, 'selected/a': 0.5, 'selected/a+b': 0.5},
        {'step': 7, 'selected/a': 1.0, 'selected/a+b': 0.0},
        {'step': 8, 'selected/a': 0.75, 'selected/a+b': 0.25},
    ]
    edges, shares = pictures.selection_windows(records, 4)
    np.testing.assert_array_equal(edges, [0, 2, 4, 7, 8])
    np.testing.assert_allclose(shares['a'], [0, 1, 1, 0])
    np.testing.assert_allclose(shares['a+b'], [1, 0, 0, 1])


def test_windows_begin_with_the_records():
    records = [
        {'step': 6, 'selected/a': 0.5, 'selected/b': 0.5},
        {'step': 8, 'selected/a': 0.25, 'selected/b': 0.75},
    ]
    edges, shares = pictures.selection_windows(records, 4)
    np.testing.assert_array_equal(edges, [4, 6, 8])
    np.testing.assert_allclose(shares['a'], [0.5, 0])


def test_many_windows_of_selection_are_put_together(monkeypatch):
    monkeypatch.setattr(pictures, '_WINDOWS', 2)
    records = [{'step': s, 'selected/a': 1 / s, 'selected/b': 1 - 1 / s} for s in range(1, 9)]
    edges, shares = pictures.selection_windows(records, 8)
    np.testing.assert_array_equal(edges, [0, 4, 8])  # a in the first step alone
    np.testing.assert_allclose(shares['a'], [0.25, 0], atol=1e-9)
    assert pictures.selection_windows([{'step': 1, 'loss': 2.0}], 8)[1] == {}


def collection(tmp_path) -> importing.Collection:
    home = toy.write_collection(tmp_path / 'toy')
    (tmp_path / 'built').mkdir()
    building.build_collection(registry.open_source(f'beir:{home}'), tmp_path / 'built')
    return storage.open_collection(tmp_path / 'built')


def system(name, values, first=()):
    return examples.Tested(name, {q: {'MRR@10': v} for q, v in values.items()}, dict(first))


def test_a_duel_shows_where_two_systems_differ_most(tmp_path):
    texts = collection(tmp_path)
    queries = list(texts.queries['test'])
    top = [(queries[0], 'p3')]
    ours = system('ours', dict(zip(queries, (1.0, 0.5, 0.5, 0.2), strict=True)), top)
    theirs = system('theirs', dict(zip(queries, (0.2, 0.25, 0.5, 1.0), strict=True)))
    duel = examples.duel(texts, 'test', 'MRR@10', ours, theirs)
    np.testing.assert_allclose(list(duel.differences.values()), [0.8, 0.25, 0, -0.8])
    assert [e.query for e in duel.wins] == [texts.queries['test'][q] for q in queries[:2]]
    assert [(e.ours, e.theirs) for e in duel.losses] == [(0.2, 1.0)]
    assert duel.wins[0].top == {'ours': texts.passages[3], 'theirs': ''}
    grades = texts.qrels['test'][queries[0]]
    assert duel.wins[0].wanted == texts.passages[texts.id_index[max(grades, key=grades.get)]]
    assert examples.duel(texts, 'test', 'MRR@10', ours, system('theirs', {})) is None
    drawn = pictures.draw_duels([duel])
    assert drawn.alt == 'ours less theirs: 2 better, 1 equal, 1 worse'


def finished_run(workdir=pathlib.Path(), name='dense', value=0.5) -> finished.Finished:
    """Of two rounds of four steps, in which a system is everything."""
    measured = {'MRR@10': value}
    r = {
        'student': measured,
        'assistants': {name: measured},
        'references': {'student_init': measured, name: measured},
        'selected': {name: 1.0},
        'replaced': name,
        'hard_queries': 1,
        'score_histogram': {
            'counts': {'positive': [0, 2], 'hard_negative': [3, 1]},
            'between': {'positive': 1, 'hard_negative': 0.25},
            'edges': [0, 1, 2],
            'gap': [0.5, 1.5],
        },
        'eval_loss': {'loss': value, 'loss/teacher': value},
    }
    report = {
        'test': {name: measured, 'student': measured},
        'significance': {name: {'MRR@10': paired_test(0.1, 0.5)}},
        'final': name,
        'warnings': [{'message': name, 'round': 0}],
        'rounds': [r, r],
        'teacher_eval': measured,
        'assistants_eval': {name: measured},
        'collection': {
            'name': name,
            'passages': 3,
            'queries': {name: 4},
            'unlabelled': 0,
            'pseudo_labels': 0,
            'eval_labels': True,
        },
        'tokens': [{'split': name, 'length': 8, 'texts': 3, 'cut': 2}],
        'wall_seconds': {name: 1.0},
    }
    speeds = {'milliseconds_per_search': 2.0, 'bytes_per_passage': 9.0}
    report['costs'] = {
        'machine': {'device': name, 'devices': 1, 'cpus': 2},
        'systems': {name: speeds, 'student': {'parameters': 1_000, **speeds}},
        'sizes': [
            {'width': w, 'store': s, 'bytes_per_passage': b * w, 'test': measured}
            for w in (8, 4)
            for s, b in ((name, 4), ('int8', 1))
        ],
    }
    config = configs.Config(compare='MRR@10', steps_per_round=4, first_stage=name, replay=value)
    records = [
        {'step': step, 'loss': value, 'loss/teacher': value, f'selected/{name}': 1.0}
        | {'kept_share': 0.5, 'threshold': 0.1}
        for step in range(1, 9)
    ]
    return finished.Finished(workdir, config, report, records)


def drawings(runs):
    r = next(iter(runs.values())).report['rounds'][0]
    return [*pictures.draw_training(runs), pictures.draw_histogram(0, r['score_histogram'])]


def test_pictures_are_the_same_bytes_each_time_and_say_their_numbers(tmp_path):
    once, again = (drawings({'': finished_run()}) for _ in range(2))
    assert once == again
    assert [p.name for p in once] == ['rounds', 'loss', 'selected', 'self_paced', 'scores_00']
    assert 'student: 50.0 at the start, 50.0 after round 0' in once[0].alt
    assert once[2].alt == 'Over the training: dense: 100%'
    assert 'hard negative (25% between)' in once[4].alt
    drawing.write(tmp_path / 'pictures', once)
    drawing.write(tmp_path / 'pictures', once[:2])
    left = sorted(p.name for p in (tmp_path / 'pictures').iterdir())
    assert left == ['loss.png', 'rounds.png']
    assert (tmp_path / 'pictures/loss.png').read_bytes().startswith(b'\x89PNG')


def test_curves_of_an_earlier_config_are_no_part_of_a_run(tmp_path):
    run = finished_run(tmp_path)
    for name, steps in (('student', 12), ('student_align', 2)):
        with metrics.MetricsWriter(
            tmp_path, name, resume_step=0, last_step=steps, total_steps=steps
        ) as writer:
            for step in range(1, steps + 1):
                writer.write(step, {'loss': 1.0})
    done = finished.Finished.of(tmp_path, run.config, run.report)  # Without alignment.
    assert [r['step'] for r in done.records] == [*range(1, 9)] and not done.alignment
    config = run.config.replace(align=run.config.align.replace(epochs=1.0))
    assert len(finished.Finished.of(tmp_path, config, run.report).alignment) == 2


def test_a_run_whose_metrics_are_lost_has_no_curves():
    run = dataclasses.replace(finished_run(), records=[])
    assert [p.name for p in pictures.draw_training({'': run})] == ['rounds']


def test_the_report_shows_markup_and_does_not_hold_it():
    run = finished_run(name=SCRIPT)
    example = examples.Example(SCRIPT, 1.0, 0.0, SCRIPT, {SCRIPT: SCRIPT})
    duel = examples.Duel(SCRIPT, SCRIPT, 'MRR@10', {SCRIPT: 1.0}, [example], [])
    drawn = [*drawings({SCRIPT: run}), *drawings({'': run}), pictures.draw_duels([duel])]
    drawn += [dataclasses.replace(drawn[-2], name='scores_01')]
    report = run.report
    drawn += costs.draw(report['costs'], report['test'], 'MRR@10')
    assert f'student: 50.0 in 2.0 ms. {SCRIPT}: 50.0' in drawn[-2].alt
    assert 'int8: 50.0 at 8, 50.0 at 4 dimensions' in drawn[-1].alt
    # Labels of logarithmic axes are numbers: SVG's comments name the texts.
    assert '<!-- 10 -->' in drawn[-1].svg and not any('$' in p.svg for p in drawn[-2:])
    text = run_report.render(run, {p.name: page.picture(p) for p in drawn}, [duel])
    assert '<script' not in text and text.count(html.escape(SCRIPT)) >= 20
    # Nothing is fetched: all links stay inside the page.
    assert not re.search(r'(src|href)\s*=\s*"(?!#)|url\((?!#)|@import', text)
    assert text.count('<svg role="img" aria-label="') == text.count('<svg') == 9


def keep(workdir, *, value=0.5, per_query=(1.0, 0.5, 0.5, 0.0), seed=0, test_split='test'):
    """Writes what a comparison reads of a finished run."""
    run = finished_run(workdir, value=value)
    configs.save(workdir, run.config)
    home = toy.write_collection(workdir / 'source/toy', seed=seed)
    source = registry.open_source(f'beir:{home}')

    def build_test(out):
        queries = storage.open_collection(workdir / 'collection').queries[test_split]
        values = {q: {'MRR@10': v} for q, v in zip(queries, per_query, strict=True)}
        mean = {'MRR@10': float(np.mean(per_query))}
        measures.Measurements(mean, values, dict.fromkeys(queries, 'p3')).save(out, 'student')

    stages.build_stage(
        workdir / 'collection', {}, lambda out: building.build_collection(source, out)
    )
    stages.build_stage(workdir / 'test', {}, build_test)
    stages.write_json(workdir / finished.FILE, run.report)
    lines = (json.dumps({'series': 'student', **r}) for r in run.records)
    (workdir / metrics.FILE).write_text('\n'.join(lines))
    return workdir


def test_what_differs_in_pictures_of_two_runs_is_told_apart():
    a, b = finished_run(), finished_run()
    measured = {'student': {'nDCG@10': 0.25}, 'references': {'student_init': {'nDCG@10': 0.125}}}
    rounds = [{**r, **measured} for r in b.report['rounds']]
    config = b.config.replace(compare='nDCG@10')
    b = dataclasses.replace(b, config=config, report={**b.report, 'rounds': rounds})
    drawn = pictures.draw_rounds({'a': a, 'b': b})
    assert 'student (MRR@10), a: 50.0 at the start' in drawn.alt
    assert 'student (nDCG@10), b: 12.5 at the start, 25.0 after round 0' in drawn.alt


def test_a_legend_stays_legible():
    assert drawing.shorten('bm25+minilm') == 'bm25+minilm'
    many = '+'.join(f'retriever_{i:02d}' for i in range(12))
    assert drawing.shorten(many).startswith('retriever_00+') and len(drawing.shorten(many)) == 60
    assert drawing.shorten(many).endswith('+retriever_11')
    looks = [(drawing.color(i), drawing.marker(i)) for i in range(30)]
    assert len(set(looks)) == 30 and 'o' not in {mark for _, mark in looks}


def test_two_runs_are_compared_on_one_page(tmp_path, capsys):
    ours = keep(tmp_path / 'a/w', value=0.6, per_query=(1.0, 1.0, 0.5, 0.0))
    theirs = keep(tmp_path / 'b/w')
    directory = compare.write_comparison(ours, theirs)
    assert directory == ours / 'compared/b_w'
    report = json.loads((directory / 'report.json').read_text())
    assert report['config'] == {'replay': [0.6, 0.5]} and report['common_queries'] == 4
    compared = report['significance']['a_w less b_w']['MRR@10']
    assert compared['difference'] == pytest.approx(0.125)
    assert (compared['wins'], compared['ties'], compared['losses']) == (1, 3, 0)
    shown = (directory / 'report.html').read_text()
    assert 'a_w better than b_w' in shown and '+12.5 (p = ' in shown
    assert {p.name for p in (directory / 'pictures').iterdir()} == {
        f'{name}.png' for name in ('rounds', 'loss', 'selected', 'self_paced', 'queries')
    }
    printed = capsys.readouterr().out
    assert 'student, a_w' in printed and str(directory / 'report.html') in printed
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd/report.json').write_text('1')
    for other in (theirs, ours / 'report.json', tmp_path / 'odd'):
        with pytest.raises(FileExistsError, match='holds something else than a comparison; give'):
            compare.write_comparison(ours, theirs, other)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/notes.txt').write_text('mine')
    compare.write_comparison(ours, theirs, tmp_path / 'out')
    elsewhere = compare.write_comparison(ours, theirs, tmp_path / 'out')
    assert (elsewhere / 'report.html').read_text() == shown


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    ours = keep(tmp_path / 'ours')
    with pytest.raises(ValueError, match='the collections differ: .* in .*ours and .*other'):
        compare.write_comparison(ours, keep(tmp_path / 'other', seed=1))
    with pytest.raises(ValueError, match='disjoint sets of queries'):
        compare.write_comparison(ours, keep(tmp_path / 'split', test_split='train'))
    with pytest.raises(ValueError, match='are the same run'):
        compare.write_comparison(ours, tmp_path / 'other/../ours')
    with pytest.raises(FileNotFoundError, match='holds no run'):
        compare.write_comparison(ours, tmp_path / 'nothing')
    (ours / 'test/student.per_query.json').write_text('{}')
    stages._verified.clear()  # As in another process.
    with pytest.raises(stages.DamagedError, match='is damaged'):
        compare.write_comparison(ours, tmp_path / 'split')
    (ours / finished.FILE).write_text('{"test": {}}')
    with pytest.raises(ValueError, match='is not of a training'):
        compare.write_comparison(ours, tmp_path / 'split')
    (ours / finished.FILE).unlink()
    with pytest.raises(FileNotFoundError, match='run --mode train'):
        compare.write_comparison(ours, tmp_path / 'split')

"""The whole way from the command line, at toy size: real models, real text, real kills."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jdkd.corpus import storage
from jdkd.models import export, pretrained
from jdkd.retrieval import vectors
from tests.helpers import processes, shared, toy

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

# Its first half: `.ci/wheel` runs all of it.
TINY = ['--config', 'configs/mta4dpr.py:tiny', '--config.collection.options.max_passages=300']


def jdkd(*args, stdin='', ok=True):
    done = processes.run_jdkd(*args, stdin=stdin)
    assert (done.returncode == 0) == ok, done.stderr[-4000:]
    return done


def run_as_users_do(home):
    """The command in a new interpreter; `jdkd` forks where all is imported."""
    command = [sys.executable, '-m', 'jdkd.main', *TINY, '--workdir', str(home / 'tiny')]
    env = {**os.environ, **processes.ONE_DEVICE}
    subprocess.run(command, cwd=processes.ROOT, env=env, check=True)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run, which tests of this process may write to."""
    home = shared.build_once(tmp_path_factory, 'finished', run_as_users_do)
    return shutil.copytree(home / 'tiny', tmp_path_factory.mktemp('runs') / 'tiny')


def report(workdir):
    return json.loads((workdir / 'report.json').read_text())


def final_state(workdir, stage=None):
    if stage is None:
        last = report(workdir)['final'].removeprefix('student_')
        stage = 'align' if last == 'aligned' else f'rounds/{last}/train'
    with ocp.CheckpointManager(workdir / stage / 'checkpoints') as manager:
        return manager.restore(
            manager.latest_step(),
            args=ocp.args.Composite(state=ocp.args.StandardRestore()),
        ).state


def test_the_workdir_holds_all_that_a_run_makes(finished):
    for path in (
        'config.json report.json report.html metrics.jsonl run.trec student/model.safetensors '
        'pictures/rounds.png pictures/scores_01.png tensorboard/student '
        'rounds/01/train/checkpoints/20'
    ).split():
        assert (finished / path).exists(), path
    for i in ('00', '01'):
        for stage in 'runs candidates scores dataset train eval'.split():
            assert (finished / 'rounds' / i / stage / 'manifest.json').exists(), stage
    assert [(finished / 'rounds' / i / 'hard_queries').exists() for i in ('00', '01')] == [
        True,
        False,
    ]
    assert not list(finished.rglob('*.tmp'))


def test_the_report_says_what_algorithm_1_did(finished):
    found = report(finished)
    students = {'student_init', 'student_aligned', 'student', 'student_on_minilm_ft'}
    assert set(found['test']) == students | {'bm25', 'minilm_ft', 'teacher_rerank'}
    for measures in found['test'].values():
        assert set(measures) == {'MRR@10', 'nDCG@10', 'R@100'}
        assert all(0 < value <= 1 for value in measures.values())
    assert len(found['rounds']) == 2
    hard, last = (r['hard_queries'] for r in found['rounds'])
    assert 0 < hard < found['collection']['queries']['train'] and last is None
    assert set(found['assistants_eval']) == {'bm25', 'minilm_ft'}
    for r in found['rounds']:
        assert sum(r['selected'].values()) == pytest.approx(1)
        assert set(r['assistants']) == {'bm25', 'minilm_ft'} or r is found['rounds'][1]
        assert r['student']['index_recall'] > 0.9
        worst = min(r['assistants'], key=lambda a, r=r: r['assistants'][a]['MRR@10'])
        beats = r['student']['MRR@10'] > r['assistants'][worst]['MRR@10']
        assert r['replaced'] == (worst if beats else None)
        assert set(r['score_histogram']['counts']) == {
            'positive',
            'hard_negative',
            'reinforced_negative',
            'noisy_positive',
        }


def test_every_step_that_was_logged_is_there_once(finished):
    lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
    steps = [r['step'] for r in lines if r['series'] == 'student' and 'loss' in r]
    assert steps == list(range(2, 21, 2))
    for name in ('loss/contrastive', 'loss/teacher', 'loss/assistant', 'loss/dark'):
        assert all(name in r for r in lines if 'grad_norm' in r and r['series'] == 'student')
    shares = [r['kept_share'] for r in lines if 'kept_share' in r]
    assert all(0 < share <= 1 for share in shares) and shares[0] < shares[-1]


def test_eval_restores_and_gives_the_same_numbers(finished):
    jdkd('--mode', 'eval', '--workdir', finished)
    again = json.loads((finished / 'eval.json').read_text())
    assert again['test']['student'] == report(finished)['test']['student']
    assert (finished / 'eval.trec').read_text() == (finished / 'run.trec').read_text()
    kept = finished / 'test/student.per_query.json'
    assert (finished / 'eval.per_query.json').read_text() == kept.read_text()


def test_eval_sends_the_students_queries_to_the_index_of_its_assistant(finished):
    jdkd('--mode', 'eval', '--workdir', finished, '--index_of=minilm_ft')
    again = json.loads((finished / 'eval.json').read_text())
    name = 'student_on_minilm_ft'
    assert again['test'] == {name: report(finished)['test'][name]}
    done = jdkd('--mode', 'eval', '--workdir', finished, '--index_of=bm25', ok=False)
    assert "cannot search the index of 'bm25'; give --index_of=minilm_ft" in done.stderr
    shown = jdkd(
        '--mode', 'search', '--workdir', finished, '--index_of=minilm_ft', stdin='parse JSON\n'
    )
    assert 'student_on_' in shown.stdout.splitlines()[0]


def stop_before_measuring(workdir):
    from jdkd.systems import measuring

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    measuring.measure = stop
    processes.jdkd('--mode=eval', f'--workdir={workdir}')


def test_a_stopped_eval_goes_on_where_it_was(finished, tmp_path):
    before = {path.name for path in (finished / 'systems').iterdir()}
    stopped = processes.Process(stop_before_measuring, finished, stdout=tmp_path / 'log')
    assert stopped.wait(300) == 75
    (made,) = (finished / 'systems').glob('student_eval-*')
    assert {path.name for path in made.iterdir()} >= {'embeddings-passages', 'ranking-test'}
    other = shutil.copytree(finished, tmp_path / 'other')
    jdkd('--mode', 'eval', '--workdir', other, '--index_of=minilm_ft')  # Another student's files.
    assert {path.name for path in (other / 'systems').iterdir()} == before
    done = jdkd('--mode', 'eval', '--workdir', finished)
    assert 'student_eval' not in done.stderr  # Nothing is built a second time.
    assert {path.name for path in (finished / 'systems').iterdir()} == before


def test_the_student_is_tested_against_every_other_system(finished):
    found = report(finished)
    assert set(found['significance']) == set(found['test']) - {'student'}
    student = json.loads((finished / 'test/student.per_query.json').read_text())
    for name, measures in found['significance'].items():
        theirs = json.loads((finished / f'test/{name}.per_query.json').read_text())
        assert theirs.keys() == student.keys()
        for measure, compared in measures.items():
            difference = found['test']['student'][measure] - found['test'][name][measure]
            assert compared['difference'] == pytest.approx(difference)
            wins = sum(student[q][measure] > theirs[q][measure] for q in student)
            assert compared['wins'] == wins and 0 <= compared['p'] <= 1


def test_eval_compares_with_a_run_file(finished, tmp_path):
    lines = (finished / 'run.trec').read_text().splitlines()
    # Without their first passages, most rankings are worse.
    (tmp_path / 'other.trec').write_text('\n'.join(x for x in lines if x.split()[3] != '1'))
    done = jdkd('--mode', 'eval', '--workdir', finished, '--against', tmp_path / 'other.trec')
    found = json.loads((finished / 'eval.json').read_text())['significance']
    compared = found[str(tmp_path / 'other.trec')]['MRR@10']
    assert compared['difference'] > 0 and compared['p'] < 0.01
    assert compared['wins'] > compared['losses']
    assert 'student less' in done.stdout and '(p < 0.001)' in done.stdout


def test_a_run_beside_its_copy_differs_in_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'copy', ignore=shutil.ignore_patterns('checkpoints'))
    args = ['--workdir', finished, '--with', tmp_path / 'copy', '--output', tmp_path / 'out']
    done = jdkd('--mode', 'compare', *args)
    assert '+0.0 (p = 1.000)' in done.stdout
    found = json.loads((tmp_path / 'out/report.json').read_text())
    assert found['config'] == {} and found['test']['copy'] == report(finished)['test']
    assert 'Where the configs differ' in (tmp_path / 'out/report.html').read_text()


def test_names_of_runs_that_differ_by_an_underscore(finished, tmp_path):
    for name in ('run', 'run_'):
        shutil.copytree(finished, tmp_path / name)
    jdkd('--mode', 'compare', '--workdir', tmp_path / 'run', '--with', tmp_path / 'run_')
    compared = json.loads((tmp_path / 'run/compared/run_/report.json').read_text())
    assert list(compared['runs']) == ['run', 'run_']


def test_a_finished_student_is_measured_on_other_collections(finished, tmp_path):
    home = toy.write_collection(tmp_path / 'toy')
    args = ['--mode', 'eval', '--config', 'configs/eval.py', '--workdir', tmp_path / 'w']
    args += [
        f'--config.model={finished / "student"}',
        f'--config.collections=beir:{home},beir:{home}/',
    ]
    done = jdkd(*args)
    found = json.loads((tmp_path / 'w/report.json').read_text())['test']
    assert set(found) == {'toy', 'toy-2'} and found['toy'] == found['toy-2']
    assert f'{100 * found["toy"]["nDCG@10"]:.1f}' in done.stdout
    refused = jdkd(*args, '--config.depth=200', ok=False)
    assert 'holds a run of another config (depth is 100 there and 200 here)' in refused.stderr
    refused = jdkd('--mode', 'search', '--workdir', tmp_path / 'w', ok=False)
    assert 'holds measurements' in refused.stderr


def test_the_exported_student_is_the_trained_one(finished):
    state = final_state(finished)
    read = pretrained.read_pretrained(finished / 'student')
    trained = state['params']['transformer']
    assert jax.tree.structure(read.params) == jax.tree.structure(trained)
    jax.tree.map(np.testing.assert_array_equal, read.params, trained)
    card = (finished / 'student' / 'README.md').read_text()
    assert f'{100 * report(finished)["test"]["student"]["MRR@10"]:.1f}' in card


def test_sentence_transformers_gives_the_same_embeddings(finished):
    sentence_transformers = pytest.importorskip('sentence_transformers')
    passages = storage.open_collection(finished / 'collection').passages
    model = sentence_transformers.SentenceTransformer(str(finished / 'student'), device='cpu')
    found = model.encode(passages[:64])
    ours = vectors.load(finished / 'systems' / report(finished)['final'] / 'embeddings-passages')[:]
    np.testing.assert_allclose(found, ours[:64], atol=1e-5)


def test_export_adds_onnx_files_and_says_what_they_measure(finished):
    for name in ('onnxruntime', 'onnxscript', 'sentence_transformers'):
        pytest.importorskip(name)
    shown = jdkd('--mode', 'export', '--workdir', finished, '--onnx').stdout
    rows = {line.split()[0]: line.split()[3:] for line in shown.splitlines() if '.onnx' in line}
    expected = [f'{100 * value:.1f}' for value in report(finished)['test']['student'].values()]
    assert rows['model.onnx'] == expected
    assert len(rows['model_quantized.onnx']) == len(expected)
    card = (finished / 'student' / 'README.md').read_text()
    assert '| `onnx/model.onnx` | ' in card and ' | '.join(expected) in card
    assert (finished / 'student/onnx/model_quantized.onnx').stat().st_size < 2e7


def test_export_can_be_repeated(finished):
    before = (finished / 'student' / 'model.safetensors').read_bytes()
    jdkd('--mode', 'export', '--workdir', finished)
    assert (finished / 'student' / 'model.safetensors').read_bytes() == before
    assert (finished / 'student' / export.MARKER).exists()


def test_an_assistant_is_exported_as_it_was_trained(finished, tmp_path):
    mode = ['--mode', 'export', '--workdir', finished]
    jdkd(*mode, '--system=minilm_ft', '--output', tmp_path / 'out')
    read = pretrained.read_pretrained(tmp_path / 'out')
    trained = final_state(finished, 'systems/minilm_ft/train')['params']['transformer']
    jax.tree.map(np.testing.assert_array_equal, read.params, trained)
    assert '| **minilm_ft** |' in (tmp_path / 'out' / 'README.md').read_text()
    for system, message in (
        ('bm25', 'has no weights to export'),
        ('cross', "has no trained 'cross'"),
        ('nobody', "'nobody' is no entry of config.systems"),
    ):
        done = jdkd(*mode, '--system', system, ok=False)
        assert message in done.stderr and 'Traceback' not in done.stderr


def test_search_shows_student_bm25_and_teacher_side_by_side(finished):
    shown = jdkd('--mode', 'search', '--workdir', finished, stdin='How do I parse JSON?\n').stdout
    head = shown.splitlines()[0]
    names = ('student', 'bm25', 'teacher on bm25')
    assert re.fullmatch(''.join(rf' +{name}, \d+ ms' for name in names), head)
    rows = re.findall(r'^ *(-?\d+\.\d{3})  .*? (-?\d+\.\d{3})  .*? (-?\d+\.\d{3})  ', shown, re.M)
    assert len(rows) == 5
    for scores in zip(*rows, strict=True):
        assert sorted(map(float, scores), reverse=True) == list(map(float, scores))


def test_a_finished_run_started_again_changes_nothing(finished):
    before = report(finished)
    state = final_state(finished)
    jdkd(*TINY, '--workdir', finished)
    assert report(finished) == before
    np.testing.assert_array_equal(final_state(finished)['step'], state['step'])


def test_another_config_in_the_same_workdir_is_refused(finished):
    done = jdkd(*TINY, '--config.loss.teacher=0.75', '--workdir', finished, ok=False)
    assert 'holds a run of another config (loss.teacher is 0.5 there and 0.75 here)' in done.stderr
    assert 'Traceback' not in done.stderr


def test_your_own_corpus_with_a_cross_encoder_trained_from_its_labels(finished, tmp_path):
    """Several positives a query, in some queries; no dev split; no assistants (ADAM alone)."""
    collection = storage.open_collection(finished / 'collection')
    ids = collection.passage_ids[:120]
    home = tmp_path / 'corpus'
    (home / 'qrels').mkdir(parents=True)
    columns = ids, collection.passages.titles[:120], collection.passages.texts[:120]
    corpus = [{'_id': i, 'title': t, 'text': x} for i, t, x in zip(*columns, strict=True)]
    (home / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, corpus)))
    queries = {q: text for split in collection.queries.values() for q, text in split.items()}
    queries = {q: text for q, text in queries.items() if q.removeprefix('q:') in ids}
    lines = (json.dumps({'_id': q, 'text': text}) for q, text in queries.items())
    (home / 'queries.jsonl').write_text('\n'.join(lines))
    for i, split in enumerate(('train', 'test')):
        rows = ['query-id\tcorpus-id\tscore']
        for j, query in enumerate(queries):
            if (j % 4 == 0) == (i == 1):
                rows.append(f'{query}\t{query.removeprefix("q:")}\t1')
                if j % 5 == 0:
                    rows.append(f'{query}\t{ids[j - 1]}\t1')
        (home / 'qrels' / f'{split}.tsv').write_text('\n'.join(rows) + '\n')
    overrides = (
        'teacher.members=bm25,cross systems.cross.train.steps=2 systems.cross.train.warmup_steps=1 '
        'systems.cross.train.batch_size=4 systems.cross.train.hard_negatives=2 batch_size=8 '
        'steps_per_round=2 rounds=1 optimizer.warmup_steps=1 student.layers=0,5 '
        'systems.cross.layers=0,5 depth=30 candidates.eval_lists=16 measures=MRR@10,nDCG@10,R@30'
    ).split()
    workdir = tmp_path / 'w'
    jdkd(
        '--config', 'configs/adam.py', f'--config.collection.source=beir:{home}',
        '--workdir', workdir,
        *(f'--config.{o}' for o in overrides),
    )  # fmt: skip
    found = report(workdir)
    assert set(found['test']) == {'bm25', 'teacher_rerank', 'student_init', 'student'}
    assert set(found['rounds'][0]['teacher']) == {'bm25', 'cross'}
    assert found['rounds'][0]['selected'] == {} and found['rounds'][0]['assistants'] == {}
    assert 'loss/dark' in found['rounds'][0]['eval_loss']
    assert found['collection']['queries']['dev'] > 0


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--config.loss.techer=0'], "no field 'loss.techer'; did you mean loss.teacher"),
        (['--config.assistants=minilm,nobody'], "'nobody' is no entry of config.systems"),
        (['--config.collection.source=csv:x'], "unknown collection source 'csv:x'"),
        (['--config.optimizer.warmup_steps=99'], 'leaves nothing of the 10 steps'),
        (['--mode', 'eval'], 'holds no run'),
        (['--mode', 'search', '--system=minilm'], '--system is for --mode export'),
        (['--mode', 'search', '--against=x'], '--against is for --mode eval'),
        (['--mode', 'train', '--onnx'], '--onnx is for --mode export'),
        (['--mode', 'compare'], 'needs another finished run: add --with=WORKDIR'),
        (['--config', 'configs/eval.py'], 'config eval says what to measure; give --mode eval'),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, args, message):
    done = jdkd('--config', 'configs/mta4dpr.py:tiny', '--workdir', tmp_path / 'w', *args, ok=False)
    assert message in done.stderr and 'Traceback' not in done.stderr


def test_a_mistake_without_a_config_file_gets_one_sentence():
    """That of a clone is the default: nothing takes the overrides before they are checked."""
    command = [sys.executable, '-m', 'jdkd.main', 'plan', '--config.student.num_layer=3']
    done = subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True, check=False)
    assert "configs/mta4dpr.py has no field 'student.num_layer'" in done.stderr
    assert 'Traceback' not in done.stderr


def test_all_mistakes_of_a_command_line_are_told_at_once(tmp_path):
    fields = ('rounds=-1', 'assistants=minilm,nobody', 'student.weights=./none', 'mesh.model=2')
    fields += 'optimizer.warmup_steps=99', 'collection.source=beir:no/where'
    args = [f'--config.{field}' for field in fields]
    done = jdkd(*TINY, '--workdir', tmp_path / 'w', *args, ok=False)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    said = done.stderr[done.stderr.index('jdkd: ') :].splitlines()
    assert said[0] == 'jdkd: 6 things are wrong:' and len(said) == 7
    for line, words in zip(
        said[1:],
        (
            'rounds=-1 must be at least 0',
            "'nobody' is no entry of config.systems",
            'optimizer.warmup_steps=99 leaves nothing of the 10 steps',
            'mesh.data=0 times mesh.model=2 is not the number of devices, 1',
            'no/where',
            "student: weights='./none': there is no such directory",
        ),
        strict=True,
    ):
        assert line.startswith('- ') and words in line
    assert not (tmp_path / 'w').exists()

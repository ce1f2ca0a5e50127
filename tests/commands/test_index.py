"""Indexes from the command line."""

import pytest

from tests.helpers import indexes, processes


def jdkd(*args, stdin=''):
    return processes.run_jdkd(*args, stdin=stdin)


@pytest.mark.slow
def test_an_index_is_made_searched_added_to_and_exported(tmp_path):
    indexes.write_student(tmp_path / 'student')
    first = indexes.write(tmp_path / 'first.jsonl', indexes.passages(0, 12))
    more = indexes.write(tmp_path / 'more.jsonl', [{'_id': 'new', 'text': 'red \x1b[2J cat'}])
    index = tmp_path / 'index'
    flags = f'--student={tmp_path / "student"}', f'--output={index}'
    done = jdkd('index', *flags, f'--collection={first}', '--store', 'bfloat16')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'{index}: 12 passages in 8 dimensions, bfloat16 (0.0 MB)',
        f'to search it: jdkd search {index} "your question"',
    ]
    assert f'{index}: 13 passages' in jdkd('add', index, more).stdout
    assert 'nothing is new' in jdkd('add', index, more).stdout
    done = jdkd('search', index, 'red', 'cat', '--k', 13)
    assert done.returncode == 0, done.stderr
    assert '\x1b' not in done.stdout and '  new\n' in done.stdout
    assert done.stdout.count('\n        ') == 13
    typed = jdkd('search', index, '--k=13', stdin='red cat\n')
    assert typed.stdout == done.stdout
    assert f'wrote {tmp_path / "out/vectors.npy"}' in (
        jdkd('export', index, '--vectors=npy', f'--output={tmp_path / "out"}').stdout
    )


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['index'], '--student is missing; say for example jdkd index --student=runs/a'),
        (['index', '--student=x', '--output=y'], '--collection is missing'),
        (['add', 'x'], 'jdkd add takes INDEX COLLECTION and flags'),
        (['add', 'x', 'y.jsonl'], 'x holds no index; make one with `jdkd index --output x`'),
        (['search', 'x', 'cat'], 'x holds no index; make one'),
        (['search', '--store=int8'], '--store is for --mode index'),
        (['search', 'x', '--workdir=y'], "give jdkd search 'x' or --workdir, not both"),
        (['export', 'x'], 'exported by jdkd export INDEX --vectors=faiss'),
        (['export', '--vectors=npy'], 'exported by jdkd export INDEX --vectors=faiss'),
        (['export', 'x', '--vectors=npy', '--system=student'], '--system is for encoders of a run'),
        (['search', 'x', 'cat', '--index_of=minilm_ft'], 'x is an index, which holds one student'),
        (['train', 'x'], "'x' is no flag"),
        (['add', 'x', 'y', '--options={'], '--options='),
        (['add', 'x', 'y', '--options=[]'], "--options='[]' is no JSON object"),
        (['index', '--student=x', '--collection=y', '--output=gs://z'], 'is no local directory'),
    ],
)
def test_mistakes_get_one_sentence(args, message):
    done = jdkd(*args)
    assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr

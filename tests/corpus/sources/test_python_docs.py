"""The default collection, on a small package tree and on a few real modules."""

import importlib
import pathlib
import subprocess
import sys
import tempfile

import pytest

from jdkd.corpus import building, storage
from jdkd.corpus import collection as collection_lib
from jdkd.corpus.sources import base, python_docs

REST = 'It goes on for long enough to be kept, ' + ' '.join(f'{{0}}{i}' for i in range(20)) + '.'


def doc(summary: str, word: str, rest: str = REST) -> str:
    return f'"""{summary}\n\n{rest.format(word)}\n"""'


FILES = {
    '__init__.py': f"""{doc('The fake package of tests.', 'root')}
raise RuntimeError("a source must never be imported")
""",
    'shape.py': f"""{doc('Round things and square things.', 'shape')}
class CircleShape:
    {doc('A circle with a given radius.', 'circle')}
    def area_of(self):
        {doc('Returns the area of the circle.', 'area')}
        def inner():
            {doc('Nothing that a user can call.', 'inner')}
    def _private(self):
        {doc('Nothing that a user should call.', 'private')}
    def short(self):
        '''Returns too little to keep.'''
try:
    import speed
except ImportError:
    def area_of():
        {doc('Computes the area without speed.', 'slow')}
def area_of():
    {doc('Computes the area a second time.', 'second')}
""",
    '_impl/core.py': f"""
def first():
    {doc('Shares its summary with another.', 'first')}
def second():
    {doc('Shares its summary with another.', 'second')}
def third():
    {doc('Shares its text with another.', 'third')}
def fourth():
    {doc('Shares that text with the third.', 'third')}
def fifth():
    {doc('Is published one level up.', 'fifth')}
""",
    '_copy.py': f"""def area():
    {doc('Returns the area of the circle.', 'area')}
""",
    'broken.py': 'def (:\n',
    'latin.py': b'"""Caf\xe9."""',
    'generated.py': f'# Generated: do not edit.\n{doc("A generated file of docs.", "g")}',
    'tests/test_shape.py': doc('Tests of the round things.', 'tests'),
    'shape_test.py': doc('More tests of the round things.', 'more'),
    '_vendor/other.py': doc("Another project's round things.", 'vendor'),
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    for name, content in FILES.items():
        file = tmp_path / 'fakedocs' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / 'lonely.py').write_text(doc('A module of a single file.', 'lonely'))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def load(*args) -> collection_lib.Collection:
    with tempfile.TemporaryDirectory() as directory:
        building.build_collection(python_docs.open_source(*args), pathlib.Path(directory))
        return storage.open_collection(pathlib.Path(directory))


def queries(c: collection_lib.Collection) -> dict[str, str]:
    return {q: text for split in c.queries.values() for q, text in split.items()}


def test_reads_what_is_public_and_imports_nothing(fake):
    c = load(('fakedocs',))  # the package raises when it is imported
    assert not [name for name in sys.modules if name.startswith('fakedocs')]
    assert dict(zip(c.passage_ids, c.passages.titles, strict=True)) == {
        'fakedocs': 'fakedocs',
        'fakedocs._impl.core:fifth': 'fakedocs core fifth',
        'fakedocs.shape': 'fakedocs shape',
        'fakedocs.shape:CircleShape': 'fakedocs shape Circle Shape',
        'fakedocs._copy:area': 'fakedocs area',
        'fakedocs.shape:area_of': 'fakedocs shape area of',
    }
    assert list(c.passage_ids) == sorted(c.passage_ids)
    assert queries(c)['q:fakedocs.shape:CircleShape'] == 'A circle with a given radius.'
    # Of two definitions the first counts, and of two equal entries the first name.
    assert queries(c)['q:fakedocs.shape:area_of'] == 'Computes the area without speed.'
    text = c.passages.texts[c.id_index['fakedocs.shape:CircleShape']]
    assert text.startswith('It goes on for long enough to be kept, circle0 circle1 ')


def test_each_query_has_its_passage_as_its_only_positive(fake):
    c = load(('fakedocs', 'lonely'))
    assert 'lonely' in c.id_index
    for qrels in c.qrels.values():
        for query, grades in qrels.items():
            assert grades == {query.removeprefix('q:'): 1}
    assert len(queries(c)) == len(c)


def test_max_passages_keeps_a_subset_in_the_same_splits(fake):
    whole, part = load(('fakedocs',)), load(('fakedocs',), 3)
    assert len(part) == 3
    assert list(part.passage_ids) == sorted(set(part.passage_ids) & set(whole.passage_ids))
    for split, few in part.queries.items():
        assert few.items() <= whole.queries[split].items()


@pytest.mark.parametrize('package', ['no_such_package', 'sys', 'os.path', 'fakedocs.shape'])
def test_refuses_a_package_without_source(fake, package):
    with pytest.raises(ValueError, match=f"no Python source for the package '{package}'; install"):
        load((package,))


def test_refuses_bad_sizes(fake):
    with pytest.raises(ValueError, match='max_passages must be at least 1, not 0'):
        load(('fakedocs',), 0)
    with pytest.raises(ValueError, match='has no passages'):
        load(())


@pytest.mark.parametrize(
    ('name', 'title'),
    [
        ('scipy.sparse.linalg._eigen.arpack:eigsh', 'scipy sparse linalg arpack eigsh'),
        ('http.client:HTTPResponse.getheader', 'http client HTTP Response getheader'),
        (
            'flax.nnx.nn:BatchNorm2d.use_running_average',
            'flax nnx nn Batch Norm2d use running average',
        ),
        ('_pyio:BytesIO', 'pyio Bytes IO'),
    ],
)
def test_title_is_the_name_in_words(name, title):
    assert python_docs.title(name) == title


def split(summary: str, rest: str) -> tuple[str, str]:
    """Splits a docstring whose rest is long enough, and takes the filling off again."""
    filling = ' '.join(f'w{i}' for i in range(20))
    summary, text = python_docs.split_docstring(f'{summary}\n\n{rest}\n\n{filling}')
    return summary, text.removesuffix(filling).strip()


@pytest.mark.parametrize(
    ('docstring', 'expected'),
    [
        (
            ('Return the next\n  free port.', 'So it says.'),
            ('Return the next free port.', 'So it says.'),
        ),
        # Only the first sentence is the query; an abbreviation does not end one.
        (('Sort by a key, e.g. Name. Stable.', 'X.'), ('Sort by a key, e.g. Name.', 'Stable. X.')),
        # A signature is not a sentence.
        (
            ('sinc(x, /)\n\nReturn the normalized sinc.', 'Y.'),
            ('Return the normalized sinc.', 'Y.'),
        ),
        # No copy of the summary stays in the passage.
        (('Open a new file.', 'We open a new\nfile. Here.'), ('Open a new file.', 'We Here.')),
        # Markup goes, words stay.
        (
            ('Like :func:`~os.open` but *safe* in ``C``.', 'See `this <https://x.y>`_ and [1]_.'),
            ('Like os.open but safe in C.', 'See this and .'),
        ),
        (
            ('Read [the guide](https://x.y) or [`Hub`].', 'Parameters\n----------\nx : `.Axes`'),
            ('Read the guide or Hub.', 'Parameters x : Axes'),
        ),
        (
            ('Add one to a number.', '>>> f(1)\n2\n\n.. versionadded:: 3.1\n\n.. note:: Slow::'),
            ('Add one to a number.', 'f(1) 2 versionadded 3.1 Slow:'),
        ),
    ],
)
def test_split_docstring(docstring, expected):
    assert split(*docstring) == expected


@pytest.mark.parametrize(
    'summary',
    [
        'Too short this.',
        'lower case is seldom a sentence.',
        'Copyright 2020 by the authors of this.',
        'See https://x.y for the documentation.',
        'One of the following four things:',
        'Parameters x : the number to add.',
        'A sentence ' + 'that never ends and ' * 10 + 'is no query.',
    ],
)
def test_split_docstring_refuses_what_is_no_query(summary):
    assert python_docs.split_docstring(f'{summary}\n\n{REST}') is None


def test_split_docstring_refuses_stubs():
    assert python_docs.split_docstring('Return the next free port.') is None
    assert python_docs.split_docstring('Return the next free port.\n\nOr raise.') is None
    assert python_docs.split_docstring('f(x)') is None


REAL = ('json', 'email', 'logging', 'asyncio', 'unittest', 'textwrap')


@pytest.fixture(scope='module')
def real() -> collection_lib.Collection:
    return load(REAL)


def test_real_modules_make_a_sound_collection(real):
    assert len(real) > 100
    assert set(real.queries) == {'train', 'dev', 'test'}
    assert sum(map(len, real.queries.values())) == len(queries(real))  # no query is in two splits
    sizes = {split: len(q) / len(real) for split, q in real.queries.items()}
    assert sizes['train'] == pytest.approx(0.8, abs=0.1)
    for query, text in queries(real).items():
        passage = real.passages[real.id_index[query.removeprefix('q:')]]
        assert text.rstrip('.').casefold() not in passage.casefold()
        assert '\n' not in text and '>>>' not in passage
    assert real.group.tolist() == list(range(len(real)))  # no two passages are equal
    assert all(name.split('.')[0].split(':')[0] in REAL for name in real.passage_ids)


def test_another_process_reads_the_same():
    source = python_docs.open_source(REAL)
    here = [list(source.passages(base.raise_error)), list(source.queries(base.raise_error))]
    code = (
        'from jdkd.corpus.sources import base, python_docs; '
        f'source = python_docs.open_source({REAL!r}); '
        'print([list(source.passages(base.raise_error)), list(source.queries(base.raise_error))])'
    )
    printed = subprocess.run(
        [sys.executable, '-c', code],
        check=True,
        capture_output=True,
        text=True,
        env={'PYTHONHASHSEED': '7', 'PYTHONPATH': ':'.join(sys.path)},
    )
    assert printed.stdout.strip() == str(here)


def test_the_standard_library_has_no_tests_or_packages_in_it():
    names = {module.split('.')[0] for _, module in python_docs._files(python_docs.STDLIB)}
    assert {'argparse', 'json', 'email'} <= names
    assert not names & {'test', 'idlelib', 'lib2to3', 'turtledemo', 'numpy', '__phello__'}

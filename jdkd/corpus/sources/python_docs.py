"""The default collection: the documentation of the Python that runs jdkd.

Every public module, class, function and method of the standard library and of the packages that
jdkd requires gives one passage (its docstring without the summary) and one query (the summary).
Source files are parsed, never imported. Needs no download; equal versions give equal passages.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator

from absl import logging

from jdkd.corpus.sources import base
from jdkd.runtime import progress

STDLIB = 'stdlib'  # In `packages`: the whole standard library.
PACKAGES = (
    STDLIB,
    *'numpy scipy jax flax optax orbax matplotlib tensorflow_datasets huggingface_hub'.split(),
    *'grain ml_collections absl tqdm'.split(),
)
LICENSE = 'PSF-2.0 and the licences of the installed packages'

_SKIPPED = re.compile(  # Directories and files without documentation for users.
    r'_lib|_precompute|__\w+__|tests?|_?test_\w+|\w+_tests?|conftest|examples|benchmarks'
    r'|_?vendor(ed)?|third_party|externs?|externals|\w+_pb2(_grpc)?|_sysconfigdata\w*'
    r'|idlelib|lib2to3|turtledemo|pydoc_data|ensurepip'
)
_GENERATED = re.compile(rb'do not edit|automatically generated|@generated', re.IGNORECASE)
_MIN_SUMMARY_WORDS, _MAX_SUMMARY_WORDS, _MIN_TEXT_WORDS = 4, 40, 20

# A first paragraph that is only a signature: `sinc(x, /, out=None) -> array`.
_SIGNATURE = re.compile(r'[\w.]+\(.*\)( *->.*)?', re.DOTALL)
# The end of a sentence, but not of an abbreviation.
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!\bvs)(?<!\betc)(?<!\bcf)[.?!](?=\s+[A-Z`*\"'(])")
_NOT_A_QUERY = re.compile(
    r'https?:|copyright|\(c\)|[:,]$|^(Parameters|Args:|\w+ attributes:)', re.IGNORECASE
)
_MARKUP = (
    (re.compile(r'^\s*([=\-~^*#\"+.])\1{2,}\s*$', re.MULTILINE), ''),  # Underlines of titles.
    (re.compile(r'^(\s*)(>>>|\.\.\.) ?', re.MULTILINE), r'\1'),  # Doctest prompts.
    (re.compile(r'\.\. (version\w+|deprecated)::'), r'\1'),
    (re.compile(r'\.\. [\w:-]+::|\[\w+\]_|^\s*:\w+:\s*$', re.MULTILINE), ''),  # Directives.
    (re.compile(r'%\(\w+\)s'), ''),  # Placeholders for decorators.
    (re.compile(r':[\w:.+-]+:`~?([^`]+?)(\s*<[^`<>]*>)?`'), r'\1'),  # Roles.
    (re.compile(r'\[(`[^`]+`)\](\(\S+?\))?|\[([^\[\]]+)\]\(\S+?\)'), r'\1\3'),  # Markdown links.
    (re.compile(r'`([^`<]+?)\s*<[^`>]*>`_+'), r'\1'),  # RST links.
    (re.compile(r'(?<!`)`[~.]?([^`]+)`(?!`)'), r'\1'),  # Names.
    (re.compile(r'(?<![\w*])\*(\w+)\*(?![\w*])'), r'\1'),  # Emphasis.
    (re.compile(r'`+|\*\*|(?<=:):(?=\s|$)'), ''),
)


def open_source(packages: tuple[str, ...] = PACKAGES, max_passages: int = 8000) -> base.Source:
    """Opens the documentation of installed packages.

    Args:
        packages: Names of top-level packages or modules, or `stdlib` for the standard library.
        max_passages: Most passages to keep, chosen by a hash of their names.

    Raises:
        ValueError: `max_passages` is not positive; while reading, if a package is not installed or
            has no Python source.
    """
    if max_passages < 1:
        raise ValueError(f'python_docs: max_passages must be at least 1, not {max_passages}.')
    entries = functools.cache(lambda: _read_entries(packages, max_passages))

    def passages(on_error: base.OnError) -> Iterator[base.Passage]:
        for name, (_, text) in entries().items():
            yield name, name, title(name), text

    def queries(on_error: base.OnError) -> Iterator[base.Query]:
        for name, (summary, _) in entries().items():
            yield name, _split(name), f'q:{name}', summary

    def qrels(on_error: base.OnError) -> Iterator[base.Judgement]:
        for name in entries():
            yield name, _split(name), f'q:{name}', name, 1

    return base.Source('python_docs', (), passages, queries, qrels, license=LICENSE)


def _read_entries(packages: tuple[str, ...], max_passages: int) -> dict[str, tuple[str, str]]:
    """Returns {qualified name: (summary, text)}, sorted by name."""
    files = {}  # By module name, so that a file that two packages reach is read once.
    for package in packages:
        for file, module in _files(package):
            files.setdefault(module, file)
    entries: dict[str, tuple[str, str]] = {}
    skipped = 0
    bar = progress.bar(len(files), 'python_docs', 'files', over=sorted(files.items()))
    for module, file in bar:
        docstrings = _docstrings(file)
        skipped += docstrings is None
        for name, docstring in docstrings or ():
            if entry := split_docstring(docstring):
                entries.setdefault(f'{module}:{name}' if name else module, entry)
    num_docstrings = len(entries)
    entries = _drop_ambiguous(entries)
    names = sorted(sorted(entries, key=lambda n: _hash('choice', n))[:max_passages])
    counts = len(files), skipped, num_docstrings, len(entries), len(names)
    logging.info(
        'python_docs: %d files, %d of them unreadable; %d docstrings, %d of them unambiguous, '
        '%d kept.',
        *counts,
    )
    return {name: entries[name] for name in names}


def title(name: str) -> str:
    """Makes a title: `scipy._lib._matrix:spmatrix.toArray` -> `scipy spmatrix to Array`."""
    # Private modules are left out: libraries publish their contents one level up.
    parts = [p for p in re.split(r'[.:]', name.lstrip('_')) if not p.startswith('_')]
    spaced = re.sub(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', ' '.join(parts))
    return ' '.join(spaced.replace('_', ' ').split())


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """Splits a docstring into plain (summary sentence, rest); None if either is too short."""
    paragraphs = re.split(r'\n\s*\n', docstring.strip())
    if _SIGNATURE.fullmatch(paragraphs[0].strip()):
        del paragraphs[0]
    if not paragraphs:
        return None
    first, *rest = (_plain(p) for p in paragraphs)
    end = _SENTENCE_END.search(first)
    summary = first[: end.end()] if end else first
    if not _MIN_SUMMARY_WORDS <= len(summary.split()) <= _MAX_SUMMARY_WORDS:
        return None
    if not re.match(r'\W?[A-Z]', summary) or _NOT_A_QUERY.search(summary):
        return None
    text = ' '.join([first[len(summary) :], *rest])
    bare = summary.rstrip('.')
    if bare.casefold() in text.casefold():  # It would make the passage too easy to find.
        text = re.sub(re.escape(bare) + r'\.?', ' ', text, flags=re.IGNORECASE)
    text = ' '.join(text.split())
    return (summary, text) if len(text.split()) >= _MIN_TEXT_WORDS else None


def _plain(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return ' '.join(text.split())


def _files(package: str) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields (source file, dotted name) of each module of a package."""
    if package == STDLIB:
        roots, prefix = [sysconfig.get_path('stdlib')], ()
    else:
        # A dotted name would make find_spec import the parent.
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec and spec.origin and spec.origin.endswith('.py') and not spec.parent:
            yield pathlib.Path(spec.origin), package
            return
        roots, prefix = list(spec and spec.submodule_search_locations or ()), (package,)
        if not roots:
            raise ValueError(
                f'python_docs: no Python source for the package {package!r}; install it, or leave '
                'it out of `packages` (top-level names only).'
            )
    for root in roots:
        for directory, subdirectories, names in os.walk(root):
            subdirectories[:] = sorted(
                d for d in subdirectories if d.isidentifier() and not _SKIPPED.fullmatch(d)
            )
            inner = prefix + pathlib.Path(directory).relative_to(root).parts
            for name in sorted(names):
                stem = name.removesuffix('.py')
                if stem == '__init__' and name != stem and inner:
                    yield pathlib.Path(directory, name), '.'.join(inner)
                elif name != stem and stem.isidentifier() and not _SKIPPED.fullmatch(stem):
                    yield pathlib.Path(directory, name), '.'.join((*inner, stem))


def _docstrings(file: pathlib.Path) -> list[tuple[str, str]] | None:
    """Returns (qualified name, docstring) pairs of a file; None if it cannot be parsed."""
    try:
        source = file.read_bytes()
        if _GENERATED.search(source[:1000]):
            return []
        with warnings.catch_warnings():  # About invalid escapes in the files.
            warnings.simplefilter('ignore')
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return list(_documented(tree, ''))


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if docstring := ast.get_docstring(node):
            yield name, docstring
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return  # Inner functions are not documentation.
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith('_'):
                yield from _documented(child, f'{name}.{child.name}'.lstrip('.'))
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _documented(child, name)


def _drop_ambiguous(entries: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Keeps one name of each (summary, text), then drops summaries and texts that names share."""
    names = {tuple(map(str.casefold, entries[n])): n for n in sorted(entries, reverse=True)}
    unique = {name: entries[name] for name in names.values()}
    summaries = Counter(_key(summary) for summary, _ in unique.values())
    texts = Counter(_key(text) for _, text in unique.values())
    return {
        name: (summary, text)
        for name, (summary, text) in unique.items()
        if summaries[_key(summary)] == 1 and texts[_key(text)] == 1
    }


def _key(text: str) -> str:
    return text.casefold().rstrip('.')


def _hash(purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f'{purpose}:{name}'.encode()).digest()[:8], 'big')


def _split(name: str) -> str:
    tenth = _hash('split', name) % 10
    return 'test' if tenth == 9 else 'dev' if tenth == 8 else 'train'

"""Directives that generate reference pages from the code: `config-fields` and `command-line`."""

import inspect
import itertools
from collections.abc import Iterator

import docutils.nodes
from absl import flags
from sphinx.util.docutils import SphinxDirective

from jdkd import main
from jdkd.config import BM25Spec, Config, EvalConfig, LLMSpec, ScoresSpec, StudentSpec, schema

# Sections that other sections share have one place on the page.
_SHARED = ('student.', 'index.', 'mesh.', 'encoder.')
_CONFIGS = (
    ('Config', Config, 'Fields of every training config.'),
    (
        'Encoders',
        StudentSpec,
        "Fields of `student` and of `systems.<name>`; `dims` and `freeze` are the student's.",
    ),
    ('BM25', BM25Spec, 'Fields of `systems.<name>`, for BM25.'),
    ('Imported scores', ScoresSpec, 'Fields of `systems.<name>`, for scores made elsewhere.'),
    ('Language models', LLMSpec, 'Fields of `systems.<name>`, for models behind an endpoint.'),
    ('Evaluation', EvalConfig, 'Fields of `configs/eval.py`.'),
)


class ConfigFields(SphinxDirective):
    """Lists the fields of all configs, with default, range and comment."""

    def run(self) -> list[docutils.nodes.Node]:
        text = '\n'.join(itertools.chain.from_iterable(_config(*c) for c in _CONFIGS))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class CommandLine(SphinxDirective):
    """Lists the flags of `jdkd.main`."""

    def run(self) -> list[docutils.nodes.Node]:
        return self.parse_text_to_nodes('\n'.join(_flags()))


def _config(title: str, section: type[schema.Section], about: str) -> Iterator[str]:
    yield from (f'## {title}', '', about, '')
    rows = [r for r in schema.reference(section) if section is Config or not _is_shared(r[0])]
    owners = [row[0] for row in rows if not row[1] and _has_fields(row[0], rows)]
    top = [row for row in rows if row[0].rpartition('.')[0] not in owners]
    yield from _fields(row for row in top if row[0] not in owners)
    for owner in owners:
        if section is Config and owner.split('.')[0] == 'student':
            continue
        comment = next(row[3] for row in rows if row[0] == owner)
        yield from (f'### `{owner}`', '', f'{_sentence(comment)}', '')
        inner = [r for r in rows if r[0].rpartition('.')[0] == owner and r[0] not in owners]
        yield from _fields(inner)


def _is_shared(path: str) -> bool:
    return path.startswith(_SHARED)


def _has_fields(path: str, rows: list[tuple[str, str, str, str]]) -> bool:
    return any(row[0].startswith(f'{path}.') for row in rows)


def _fields(rows) -> Iterator[str]:
    for path, default, allowed, comment in rows:
        yield f'`{path}`' + (f' = `{default}`' if default else '')
        yield f': {_sentence(comment)}' + (f' *({allowed})*' if allowed else '')
        yield ''


def _flags() -> Iterator[str]:
    by_module = flags.FLAGS.flags_by_module_dict()
    ours = itertools.chain.from_iterable(
        defined for module, defined in by_module.items() if module.split('.')[0] == 'jdkd'
    )
    for flag in ours:
        default = main.DEFAULT if flag.name == 'config' else flag.default
        yield f'`--{flag.name}`' + ('' if default in (None, False) else f' = `{default}`')
        choices = getattr(flag.parser, 'enum_values', None)
        shown = f' *({", ".join(choices)})*' if choices else ''
        text = inspect.cleandoc(flag.help.rpartition('>: ')[2]).replace('<', '&lt;')
        yield f': {text}{shown}'
        yield ''


def _sentence(comment: str) -> str:
    return comment[:1].upper() + comment[1:] + ('' if comment.endswith('.') else '.')


def setup(app):
    app.add_directive('config-fields', ConfigFields)
    app.add_directive('command-line', CommandLine)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}

"""Self-contained HTML pages; all text from a run is escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence

from jdkd.report import tables
from jdkd.report.drawing import Picture
from jdkd.report.examples import Duel, Example

_STYLE = """
body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:right;vertical-align:top}
td:first-child,th:first-child,.words td,.words th{text-align:left}
.words td{overflow-wrap:anywhere}
svg{max-width:100%;height:auto}
figure{margin:1rem 0}
figcaption{color:#555;font-size:.9rem}
summary{cursor:pointer;margin:.5rem 0}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A page from parts that are HTML."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1>'
    )
    return '\n'.join([head, *parts, '</body></html>', ''])


def heading(text: str) -> str:
    return f'<h2>{html.escape(text)}</h2>'


def paragraph(text: str) -> str:
    return f'<p>{html.escape(text)}</p>'


def listing(items: Sequence[str]) -> str:
    return '<ul>' + ''.join(f'<li>{html.escape(item)}</li>' for item in items) + '</ul>'


def table(rows: Mapping[str, Mapping[str, str]], *, words: bool = False) -> str:
    """A table of {name: {column: cell}}; `words` cells are texts."""
    columns = tables.columns_of(rows)
    head = ''.join(f'<th scope="col">{html.escape(c)}</th>' for c in columns)
    body = ''.join(
        f'<tr><td>{html.escape(name)}</td>'
        + ''.join(f'<td>{html.escape(cells.get(c, ""))}</td>' for c in columns)
        + '</tr>'
        for name, cells in rows.items()
    )
    kind = ' class="words"' if words else ''
    return f'<table{kind}><tr><td></td>{head}</tr>{body}</table>'


def picture(drawn: Picture) -> str:
    """A picture with its title and caption below."""
    label = html.escape(f'{drawn.title}. {drawn.alt}')
    words = f'<b>{html.escape(drawn.title)}.</b> {html.escape(drawn.caption)}'
    svg = drawn.svg.replace('<svg', f'<svg role="img" aria-label="{label}"', 1)
    return f'<figure>{svg}<figcaption>{words}</figcaption></figure>'


def duel(duel: Duel) -> str:
    """Queries on which two systems differ most, collapsed."""
    shown = ''
    for how, examples in (('better', duel.wins), ('worse', duel.losses)):
        if examples:
            title = html.escape(f'{duel.ours} {how} than {duel.theirs}')
            parts = ''.join(_example(duel, example) for example in examples)
            shown += f'<details><summary>{title}</summary>{parts}</details>'
    return shown


def _example(duel: Duel, example: Example) -> str:
    cells = {
        duel.measure: f'{duel.ours} {example.ours:.2f}, {duel.theirs} {example.theirs:.2f}',
        'wanted': example.wanted,
        **{f'first of {name}': text for name, text in example.top.items()},
    }
    lines = ''.join(
        f'<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>'
        for name, text in cells.items()
    )
    return f'<p><b>{html.escape(example.query)}</b></p><table class="words">{lines}</table>'

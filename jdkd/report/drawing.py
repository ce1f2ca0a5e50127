"""Renders figures as inline SVG for a page and as PNG; the same data gives the same bytes."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jdkd.runtime import files

# The palette of Okabe and Ito, for any kind of colour vision; the student is blue.
_COLORS = '#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #7F7F7F #B8A800'.split()
LINES = ('-', '--', ':', '-.')  # One per run.
MARKERS = ('o', 's', '^', 'D', 'v')
_LONGEST = 60  # Characters of a name in a legend.
_STYLE: dict[Any, Any] = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.prop_cycle': cycler(color=_COLORS),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'grid.color': '#e4e4e4',
    'figure.constrained_layout.use': True,
    'font.size': 10,
    'savefig.dpi': 110,
    'svg.hashsalt': 'jdkd',  # The same ids in every page.
    'text.parse_math': False,  # Names are not formulas.
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered figure with its texts."""

    name: str  # Stem of its file.
    title: str
    caption: str  # Explanation for readers who are new to the method.
    alt: str  # Its main numbers, for screen readers.
    svg: str  # An `<svg>` element.
    png: bytes  # A PNG file.


def write(directory: pathlib.Path, drawn: Sequence[Picture]) -> None:
    """Writes `<name>.png` of each picture and removes those of an earlier report."""
    directory.mkdir(exist_ok=True)
    for picture in drawn:
        with files.atomic_write(directory / f'{picture.name}.png', 'wb') as f:
            f.write(picture.png)
    for left in set(directory.glob('*.png')) - {directory / f'{p.name}.png' for p in drawn}:
        left.unlink()


def new_figure(rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Makes a figure with axes one above the other."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.3 * rows))
        return figure, list(figure.subplots(rows, squeeze=False, sharex=True)[:, 0])


def render(figure: Figure, name: str, title: str, caption: str, alt: str) -> Picture:
    """Renders a figure; see `Picture` for the texts."""
    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        # Neither the time nor the version of the library.
        none = dict.fromkeys(['Date', 'Creator', 'Format', 'Type'])
        figure.savefig(svg, format='svg', metadata=none)
        figure.savefig(png, format='png', metadata={'Software': None})
    text = svg.getvalue()
    return Picture(name, title, caption, alt, text[text.index('<svg') :], png.getvalue())


def label(text: str, run: str = '') -> str:
    """The label of a curve in the legend; matplotlib hides labels that begin with `_`."""
    text = f'{text}, {run}' if run else text
    return f' {text}' if text.startswith('_') else text


def shorten(name: str) -> str:
    """Elides the middle of a long name, as of many fused assistants."""
    return name if len(name) <= _LONGEST else f'{name[: _LONGEST - 16]}…{name[-15:]}'


def color(i: int) -> str:
    return _COLORS[i % len(_COLORS)]


def marker(i: int) -> str:
    """The marker of curve i, which tells curves of one color apart; circles are the student's."""
    return MARKERS[1 + i // len(_COLORS) % (len(MARKERS) - 1)]


def log_x(axes: Axes) -> None:
    """Makes the x axis logarithmic, with numbers as labels: the default's are formulas."""
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:,.10g}'))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def legend(axes: Axes) -> None:
    axes.legend(loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)

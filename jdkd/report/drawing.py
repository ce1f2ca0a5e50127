"""How pictures of a run are drawn: as inline SVG for a page, and as PNG.

The same data gives the same bytes.
"""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jdkd.runtime import files

# Okabe and Ito's, which people with any kind of colour vision tell apart; the student is blue.
_COLORS = '#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #7F7F7F #B8A800'.split()
LINES = ('-', '--', ':', '-.')  # One a run.
MARKERS = ('o', 's', '^', 'D', 'v')
_LONGEST = 60  # Characters of a name in a legend.
_STYLE = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.prop_cycle': matplotlib.cycler(color=_COLORS),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'grid.color': '#e4e4e4',
    'figure.constrained_layout.use': True,
    'font.size': 10,
    'savefig.dpi': 110,
    'svg.hashsalt': 'jdkd',  # Else each page has ids of its own.
    'text.parse_math': False,  # Names are no formulas.
}
_METADATA = ('Date', 'Creator', 'Format', 'Type')


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing with its words.

    Attributes:
        name: Of its file.
        title: What it is about.
        caption: What it shows, for who has not seen one like it.
        alt: Its main numbers, for who cannot see it.
        svg: An `<svg>` element.
        png: A PNG file.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def write(directory: pathlib.Path, drawn: Sequence[Picture]) -> None:
    """Writes `<name>.png` of each picture, and removes those that an earlier report left."""
    directory.mkdir(exist_ok=True)
    for picture in drawn:
        with files.atomic_write(directory / f'{picture.name}.png', 'wb') as f:
            f.write(picture.png)
    for left in set(directory.glob('*.png')) - {directory / f'{p.name}.png' for p in drawn}:
        left.unlink()


def axes(rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, one above the other."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.3 * rows))
        return figure, list(figure.subplots(rows, squeeze=False, sharex=True)[:, 0])


def picture(figure: Figure, name: str, title: str, caption: str, alt: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        # Without the time, and without the version of the library.
        figure.savefig(svg, format='svg', metadata=dict.fromkeys(_METADATA))
        figure.savefig(png, format='png', metadata={'Software': None})
    text = svg.getvalue()
    return Picture(name, title, caption, alt, text[text.index('<svg') :], png.getvalue())


def label(text: str, run: str = '') -> str:
    """What a legend calls something of a run; matplotlib hides labels that begin with `_`."""
    text = f'{text}, {run}' if run else text
    return f' {text}' if text.startswith('_') else text


def short(name: str) -> str:
    """A name that leaves room for the drawing: of a long one, as of many fused, the ends."""
    return name if len(name) <= _LONGEST else f'{name[: _LONGEST - 16]}…{name[-15:]}'


def plain(name: str) -> str:
    return name.replace('_', ' ')


def color(i: int) -> str:
    return _COLORS[i % len(_COLORS)]


def marker(i: int) -> str:
    """Beside a color: squares, then others, since colors come again; the student's is a circle."""
    return MARKERS[1 + i // len(_COLORS) % (len(MARKERS) - 1)]


def legend(axes: Axes) -> None:
    axes.legend(loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)

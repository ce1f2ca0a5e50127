"""Tables and pictures of quality against cost."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jdkd.report import drawing, page, tables
from jdkd.report.drawing import Picture, color, label, legend, render
from jdkd.run import STUDENT

_COLUMNS = {
    'parameters': '{:,.0f}',
    'queries_per_second': '{:,.0f}',
    'passages_per_second': '{:,.0f}',
    'bytes_per_passage': '{:,.0f}',
    'milliseconds_per_search': '{:,.1f}',
}


def draw(costs: Mapping[str, Any], test: Mapping, measure: str) -> list[Picture]:
    """Quality by time of a search, and the student's by bytes of a passage; none without tests."""
    if not test:
        return []
    return [_draw_speeds(costs['systems'], test, measure), _draw_sizes(costs['sizes'], measure)]


def _draw_speeds(systems: Mapping[str, Mapping], test: Mapping, measure: str) -> Picture:
    figure, (axes,) = drawing.new_figure()
    alt = []
    order = sorted(systems, key=lambda name: name != STUDENT)  # The student is blue.
    for i, name in enumerate(order):
        value, time = 100 * test[name][measure], systems[name]['milliseconds_per_search']
        style = {'color': color(i), 'marker': 'o', 'linestyle': '', 'markersize': 8}
        axes.plot([time], [value], label=label(drawing.shorten(name)), **style)
        alt.append(f'{name}: {value:.1f} in {time:.1f} ms')
    drawing.log_x(axes)
    axes.set_xlabel('milliseconds a search')
    axes.set_ylabel(f'{measure}, times 100')
    axes.margins(x=0.1, y=0.15)
    legend(axes)
    return render(
        figure,
        'costs',
        'Quality against time',
        f'{measure} of the test queries, times 100, against the median time of one search on the '
        "machine that made this report: further up and to the left is better. An encoder's search "
        'embeds the question and compares it with every passage.',
        '. '.join(alt),
    )


def _draw_sizes(sizes: list[Mapping], measure: str) -> Picture:
    figure, (axes,) = drawing.new_figure()
    alt = []
    for i, store in enumerate(dict.fromkeys(size['store'] for size in sizes)):
        own = [size for size in sizes if size['store'] == store]
        x = [size['bytes_per_passage'] for size in own]
        y = [100 * size['test'][measure] for size in own]
        axes.plot(x, y, label=store, color=color(i), marker='o')
        shown = ', '.join(f'{v:.1f} at {s["width"]}' for v, s in zip(y, own, strict=True))
        alt.append(f'{store}: {shown} dimensions')
    drawing.log_x(axes)
    axes.set_xlabel("bytes of a passage's embedding")
    axes.set_ylabel(f'{measure}, times 100')
    axes.margins(x=0.05, y=0.15)
    legend(axes)
    return render(
        figure,
        'sizes',
        "Quality against the index' size",
        f"The student's {measure} on the test queries, times 100, by exact search, at each width "
        'of its embeddings and each precision of those of passages; queries are float32.',
        '. '.join(alt),
    )


def size_rows(sizes: Iterable[Mapping]) -> dict[str, dict[str, str]]:
    """Cells of the student's bytes and measures, by width and store."""
    return {
        f'{size["width"]} dimensions, {size["store"]}': {
            'bytes a passage': f'{size["bytes_per_passage"]:,.0f}',
            **tables.percents({'': size['test']})[''],
        }
        for size in sizes
    }


def render_sizes(costs: Mapping[str, Any], drawn: Mapping[str, str]) -> Iterator[str]:
    """The part of a page on the student's sizes; empty without tests."""
    if not costs['sizes']:
        return
    yield page.heading("The student's sizes")
    yield page.table(size_rows(costs['sizes']))
    yield drawn['sizes']


def speed_rows(systems: Mapping[str, Mapping], test: Mapping) -> dict[str, dict[str, str]]:
    """Cells of what systems cost, and their measures."""
    shown = {}
    for name, own in systems.items():
        cells = {key: f.format(own[key]) if key in own else '' for key, f in _COLUMNS.items()}
        cells = {key.replace('_', ' '): cell for key, cell in cells.items()}
        shown[name] = cells | tables.percents({'': test.get(name, {})})['']
    return shown


def heading(test: Mapping) -> str:
    """That of what systems cost, beside their measures if there are any."""
    return 'Quality against cost' if test else 'Cost'


def conditions(costs: Mapping[str, Any]) -> str:
    """Says what speeds were measured on, and of what."""
    machine = costs['machine']
    return (
        f'Measured once, on {machine["devices"]} x {machine["device"]} and {machine["cpus"]} CPU '
        'cores, with whatever else ran there. Encoders embed about a hundred tokenised texts; a '
        'search answers one question by exact search, its encoding included.'
    )


def render_speeds(
    costs: Mapping[str, Any], test: Mapping, drawn: Mapping[str, str]
) -> Iterator[str]:
    """The part of a page on what systems cost."""
    yield page.heading(heading(test))
    yield page.paragraph(conditions(costs))
    yield page.table(speed_rows(costs['systems'], test))
    yield drawn.get('costs', '')

"""Formats measures and differences as table cells, and cells as text tables."""

from collections.abc import Mapping


def measures_table(test: Mapping[str, Mapping[str, float]]) -> str:
    """Text table of test measures, times 100, sorted by the first one, with the student last."""
    order = sorted(test, key=lambda name: (name == 'student', next(iter(test[name].values()), 0)))
    return table(percents({name: test[name] for name in order}))


def percents(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """Formats measures as cells, times 100."""
    return {
        name: {column: f'{100 * value:.1f}' for column, value in values.items()}
        for name, values in rows.items()
    }


def differences(significance: Mapping[str, Mapping[str, Mapping]]) -> dict[str, dict[str, str]]:
    """Formats differences, times 100, with the p of their t-test: `+1.2 (p = 0.034)`."""
    return {
        name: {c: f'{100 * t["difference"]:+.1f} ({p_value(t["p"])})' for c, t in tests.items()}
        for name, tests in significance.items()
    }


def table(rows: Mapping[str, Mapping[str, str]], corner: str = '') -> str:
    """Text table of `{row: {column: cell}}`."""
    columns = columns_of(rows)
    first = max(map(len, [corner, *rows]))
    widths = {c: max(8, len(c), *(len(r.get(c, '')) for r in rows.values())) for c in columns}
    lines = []
    for name, cells in {corner: {c: c for c in columns}, **rows}.items():
        shown = (f'  {cells.get(c, ""):>{width}}' for c, width in widths.items())
        lines.append(f'{name:{first}}{"".join(shown)}'.rstrip())
    return '\n'.join(lines)


def markdown(rows: Mapping[str, Mapping[str, str]], corner: str = '') -> str:
    """Markdown table of `{row: {column: cell}}`."""
    columns = columns_of(rows)
    lines = [[corner, *columns], ['---'] * (1 + len(columns))]
    lines += [[name, *(cells.get(c, '') for c in columns)] for name, cells in rows.items()]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def columns_of(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The columns of `{row: {column: cell}}`, in the order in which they first appear."""
    return list(dict.fromkeys(column for cells in rows.values() for column in cells))


def p_value(p: float | None) -> str:
    """Formats the p value of a test."""
    return 'p unknown' if p is None else 'p < 0.001' if p < 0.001 else f'p = {p:.3f}'

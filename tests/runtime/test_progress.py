"""Progress bars, on a terminal and in a log file."""

import io

import pytest

from jdkd.runtime import progress


class Screen(io.StringIO):
    """Standard error, a terminal or not."""

    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.mark.parametrize('terminal', [True, False])
def test_an_inner_bar_leaves_no_line_and_a_log_has_the_outer_alone(monkeypatch, terminal):
    monkeypatch.setattr('sys.stderr', screen := Screen(terminal))
    with progress.bar(3, 'rounds', 'parts', done=1) as outer:
        for _ in range(2):
            inner = progress.bar(5, 'passages', 'rows', over=range(5))
            assert list(inner) == list(range(5)) and not inner.leave
            outer.update()
    shown = screen.getvalue()
    assert outer.leave and '3/3' in shown[shown.rindex('rounds: 100%') :]
    assert ('passages' in shown) == terminal


def test_small_work_and_other_processes_show_none(monkeypatch):
    monkeypatch.setattr('sys.stderr', screen := Screen(True))
    with progress.bar(3, 'rounds', 'parts', quiet=True) as bar:
        bar.update(3)
    monkeypatch.setattr('jdkd.runtime.distributed.is_primary', lambda: False)
    with progress.bar(3, 'rounds', 'parts') as bar:
        bar.update(3)
    assert screen.getvalue() == ''

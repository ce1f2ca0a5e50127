"""Progress bars: one for a stage, with its end in sight, on process 0."""

import sys
from collections.abc import Iterable

import tqdm

from jdkd.runtime import distributed

_LOG_SECONDS = 30.0  # Between two states of a bar in a log file.


def bar(
    total: int | None,
    desc: str | None,
    unit: str,
    *,
    over: Iterable | None = None,
    done: int = 0,
    quiet: bool = False,
) -> tqdm.tqdm:
    """A progress bar to iterate over, or for a `with` statement; `update` then moves it.

    A bar within another's leaves no line behind. In a log file a bar is written every 30 seconds,
    and one within another's never.

    Args:
        total: Units of work; None if unknown.
        desc: What is done, such as 'minilm: passages'.
        unit: Plural of the unit of work.
        over: What to iterate over.
        done: Units that an earlier call has done.
        quiet: Whether the work is too small for a bar.
    """
    is_terminal = sys.stderr.isatty()
    is_inner = any(not other.disable for other in getattr(tqdm.tqdm, '_instances', ()))
    return tqdm.tqdm(
        over,
        total=total,
        initial=done,
        desc=desc,
        unit=unit,
        leave=not is_inner,
        mininterval=0.1 if is_terminal else _LOG_SECONDS,
        disable=quiet or not distributed.is_primary() or (is_inner and not is_terminal),
    )

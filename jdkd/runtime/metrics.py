"""metrics.jsonl and TensorBoard events of a run."""

import json
import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from jdkd.runtime import distributed, files

# Training series by name, each with its own steps.
STEP = 'step'
SERIES = 'series'
FILE = 'metrics.jsonl'


def read_series(workdir: pathlib.Path, series: str) -> list[dict[str, float]]:
    """The records of a series in metrics.jsonl, in the order of their steps; none without a file.

    Damaged lines are left out: curves are drawn from these, and nothing else depends on them.
    """
    path = pathlib.Path(workdir) / FILE
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else []
    records = filter(None, map(_parse, lines))
    found = {record[STEP]: record for record in records if record[SERIES] == series}
    return [found[step] for step in sorted(found)]


def _parse(line: str) -> dict | None:
    """The record of a line; None of half a line, of a write that was cut off."""
    try:
        record = json.loads(line)
        return record if SERIES in record and isinstance(record[STEP], int) else None
    except (ValueError, KeyError, TypeError):
        return None


class MetricsWriter:
    """Appends scalars by series and step; what is going to be written again is dropped first.

    Of several processes the first writes.

    Args:
        workdir: Gets metrics.jsonl and tensorboard/<series>/.
        series: For example `student` or the name of an assistant in training.
        resume_step: Where writing goes on: records of this series beyond it are dropped, as a
            killed run wrote them after its checkpoint,
        last_step: up to here, since later ones are of another stage, which may be finished,
        total_steps: and beyond here, where an earlier config may have come.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        series: str,
        *,
        resume_step: int,
        last_step: int,
        total_steps: int,
    ):
        self._writes = distributed.is_primary()
        if not self._writes:
            return
        self._series = series
        self._kept = lambda step: step <= resume_step or last_step < step <= total_steps
        self._path = pathlib.Path(workdir) / FILE
        if self._path.exists():
            lines = self._path.read_text(encoding='utf-8', errors='replace').splitlines()
            # Always another file: copies of a workdir may share this one by hard links.
            with files.atomic_write(self._path) as f:
                f.writelines(f'{line}\n' for line in lines if self._keep(line))
        self._file = self._path.open('a', encoding='utf-8')
        directory = pathlib.Path(workdir) / 'tensorboard' / series
        directory.mkdir(parents=True, exist_ok=True)
        # SummaryWriter has a thread of its own, and waits for ever when that meets a full disk.
        self._events = EventsWriter(str(directory / 'events'), f'.{time.time_ns()}')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write_event(step=resume_step + 1, session_log=start)  # TensorBoard drops these too.

    def _write_event(self, **fields) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), **fields))

    def _keep(self, line: str) -> bool:
        record = _parse(line)
        if record is None:
            return False
        return record[SERIES] != self._series or self._kept(record[STEP])

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self._writes:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({SERIES: self._series, STEP: step, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._write_event(step=step, summary=scalar(name, value))
        self._events.flush()

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._events.close()

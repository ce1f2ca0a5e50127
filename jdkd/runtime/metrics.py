"""Writes metrics of trainings to metrics.jsonl and TensorBoard, and reads them back.

`jdkd.runtime.tracking` sends them elsewhere too.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from jdkd.runtime import distributed, files, tracking

STEP = 'step'
SERIES = 'series'  # The training that a record belongs to; each counts its own steps.
FILE = 'metrics.jsonl'


def read_series(workdir: pathlib.Path, series: str) -> list[dict[str, float]]:
    """The records of a series in the order of their steps; none without a file.

    Skips damaged lines, since only curves depend on these records.
    """
    records = _read(workdir / FILE)
    by_step = {record[STEP]: record for _, record in records if record[SERIES] == series}
    return [by_step[step] for step in sorted(by_step)]


class MetricsWriter(contextlib.AbstractContextManager['MetricsWriter']):
    """Appends scalars to a series. Process 0 writes; on other processes, it does nothing.

    A resumed or updated run writes some steps again. Their records, and those beyond the end of the
    training, are dropped first: of this series, only steps up to `resume_step` and the steps of
    later stages, which may be finished, are kept.

    Args:
        workdir: Gets metrics.jsonl and tensorboard/<series>/.
        series: Such as `student`, or the name of a fine-tuned system.
        resume_step: Step of the checkpoint that training resumes from.
        last_step: Last step that this stage writes.
        total_steps: Last step of all stages.
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
        path = workdir / FILE
        if path.exists():
            kept = [
                f'{line}\n'
                for line, record in _read(path)
                if record[SERIES] != series
                or record[STEP] <= resume_step
                or last_step < record[STEP] <= total_steps
            ]
            # A new file: copies of the workdir may share the old one by hard links.
            with files.atomic_write(path) as f:
                f.writelines(kept)
        self._file = path.open('a', encoding='utf-8')
        directory = workdir / 'tensorboard' / series
        directory.mkdir(parents=True, exist_ok=True)
        self._trackers = tracking.start(workdir, series)
        # Not SummaryWriter, whose thread hangs when the disk is full.
        self._events = EventsWriter(str(directory / 'events'), f'.{time.time_ns()}')
        # The start of a session makes TensorBoard drop the later steps too.
        self._write_event(step=resume_step + 1, session_log={'status': 'START'})

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of a step."""
        if not self._writes:
            return
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({SERIES: self._series, STEP: step, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._write_event(step=step, summary=scalar(name, value))
        self._events.flush()
        for tracker in self._trackers:
            tracker.log(step, values)

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._writes:
            self._file.close()
            self._events.close()
            for tracker in self._trackers:
                tracker.close()

    def _write_event(self, **fields: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), **fields)  # pyright: ignore[reportAttributeAccessIssue]
        self._events.write_event(event)


def _read(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines and records of a file; leaves out damaged ones, such as one cut off by a kill."""
    records = []
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if SERIES in record and isinstance(record[STEP], int):
                records.append((line, record))
    return records

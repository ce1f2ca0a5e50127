"""metrics.jsonl and TensorBoard events of a run."""

import json
import pathlib
from collections.abc import Mapping

from tensorboardX import SummaryWriter

# Training series by name, each with its own steps.
STEP = 'step'
SERIES = 'series'


class MetricsWriter:
    """Appends scalars by series and step; what a killed run wrote after its checkpoint is dropped.

    Args:
        workdir: Gets metrics.jsonl and tensorboard/<series>/.
        series: For example `student` or the name of an assistant in training.
        resume_step: Records of this series beyond this step are removed first.
    """

    def __init__(self, workdir: pathlib.Path, series: str, *, resume_step: int):
        self._series = series
        self._path = pathlib.Path(workdir) / 'metrics.jsonl'
        if self._path.exists():
            kept = [
                line
                for line in self._path.read_text().splitlines()
                if self._keep(line, resume_step)
            ]
            temporary = self._path.with_suffix('.tmp')
            temporary.write_text(''.join(line + '\n' for line in kept))
            temporary.replace(self._path)
        self._file = self._path.open('a', encoding='utf-8')
        self._events = SummaryWriter(
            str(pathlib.Path(workdir) / 'tensorboard' / series), purge_step=resume_step + 1
        )

    def _keep(self, line: str, resume_step: int) -> bool:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # The half line of a write that was cut off.
            return False
        return record[SERIES] != self._series or record[STEP] <= resume_step

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({SERIES: self._series, STEP: step, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()

"""metrics.jsonl after a restart holds each step once."""

import json

from jdkd.runtime.metrics import MetricsWriter


def read(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_steps_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    writer = MetricsWriter(tmp_path, 'student', resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, {'loss': step / 2})
    writer.close()
    other = MetricsWriter(tmp_path, 'assistant', resume_step=0)
    other.write(3, {'loss': 9.0})
    other.close()
    with (tmp_path / 'metrics.jsonl').open('a') as f:
        f.write('{"series": "student", "st')  # The write that the kill cut off.
    writer = MetricsWriter(tmp_path, 'student', resume_step=2)
    writer.write(3, {'loss': 7.0})
    writer.close()
    assert [(r['series'], r['step'], r['loss']) for r in read(tmp_path)] == [
        ('student', 1, 0.5),
        ('student', 2, 1.0),
        ('assistant', 3, 9.0),
        ('student', 3, 7.0),
    ]
    assert list((tmp_path / 'tensorboard' / 'student').iterdir())

"""metrics.jsonl after a restart holds each step once."""

import json

from jdkd.runtime.metrics import MetricsWriter

STEPS = {'last_step': 5, 'total_steps': 8}


def read(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_steps_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    writer = MetricsWriter(tmp_path, 'student', resume_step=0, **STEPS)
    for step in (1, 2, 3):
        writer.write(step, {'loss': step / 2})
    writer.close()
    other = MetricsWriter(tmp_path, 'assistant', resume_step=0, **STEPS)
    other.write(3, {'loss': 9.0})
    other.close()
    with (tmp_path / 'metrics.jsonl').open('a') as f:
        f.write('{"series": "student", "st')  # The write that the kill cut off.
    writer = MetricsWriter(tmp_path, 'student', resume_step=2, **STEPS)
    writer.write(3, {'loss': 7.0})
    writer.close()
    assert [(r['series'], r['step'], r['loss']) for r in read(tmp_path)] == [
        ('student', 1, 0.5),
        ('student', 2, 1.0),
        ('assistant', 3, 9.0),
        ('student', 3, 7.0),
    ]
    assert list((tmp_path / 'tensorboard' / 'student').iterdir())


def test_a_round_that_is_trained_again_leaves_those_after_it(tmp_path):
    writer = MetricsWriter(tmp_path, 'student', resume_step=0, last_step=12, total_steps=12)
    for step in (2, 4, 6, 8, 10, 12):
        writer.write(step, {'loss': 0.5})
    writer.close()
    writer = MetricsWriter(tmp_path, 'student', resume_step=2, last_step=5, total_steps=10)
    writer.write(4, {'loss': 1.0})
    writer.close()
    assert [(r['step'], r['loss']) for r in read(tmp_path)] == [
        (2, 0.5),
        (6, 0.5),
        (8, 0.5),
        (10, 0.5),
        (4, 1.0),
    ]


def test_a_copy_by_hard_links_does_not_share_what_is_written(tmp_path):
    for workdir in (tmp_path / 'a', tmp_path / 'b'):
        workdir.mkdir()
    writer = MetricsWriter(tmp_path / 'a', 'student', resume_step=0, **STEPS)
    writer.write(1, {'loss': 0.5})
    writer.close()
    (tmp_path / 'b/metrics.jsonl').hardlink_to(tmp_path / 'a/metrics.jsonl')
    writer = MetricsWriter(tmp_path / 'b', 'student', resume_step=1, **STEPS)
    writer.write(2, {'loss': 0.25})
    writer.close()
    assert len(read(tmp_path / 'a')) == 1 and len(read(tmp_path / 'b')) == 2

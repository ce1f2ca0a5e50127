"""Metrics as Weights & Biases and trackio keep them in their offline modes."""

import json
import struct
import sys
import time

import pytest

from jdkd.runtime import tracking
from jdkd.runtime.metrics import MetricsWriter

SCALARS = [{'loss': 1.5, 'kept': 1.0}, {'loss': 0.25, 'kept': 0.5}]
_BLOCK = 32_768
STAGE = {'resume_step': 0, 'last_step': 2, 'total_steps': 2}


@pytest.fixture
def workdir(tmp_path):
    workdir = tmp_path / 'runs/a'
    workdir.mkdir(parents=True)
    (workdir / 'config.json').write_text('{"rounds": 2}')
    return workdir


def write(workdir, series='student'):
    writer = MetricsWriter(workdir, series, **STAGE)
    for step, scalars in enumerate(SCALARS, 1):
        writer.write(step, scalars)
    writer.close()


def wandb_records(file):
    """The records of an offline run: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b''
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from('<HB', data, at + 4)  # After the checksum.
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # A whole record, or the end of one.
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b''


@pytest.mark.slow
def test_wandb_keeps_the_series_offline(workdir, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('JDKD_TRACK', 'wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    write(workdir)
    (file,) = (workdir / 'wandb').glob('offline-run-*/run-*.wandb')
    identity = json.loads((workdir / tracking.FILE).read_text())['id']
    assert file.name == f'run-{identity}-student.wandb'
    records, end = [], time.monotonic() + 60
    while not any(r.WhichOneof('record_type') == 'exit' for r in records):
        assert time.monotonic() < end  # A process of wandb's own writes the file.
        records = list(wandb_records(file))
    rows = [
        {'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof('record_type') == 'history'
    ]
    (run,) = (r.run for r in records if r.WhichOneof('record_type') == 'run')
    kept = [(row['_step'], row['loss'], row['kept']) for row in rows]
    assert kept == [(1, 1.5, 1.0), (2, 0.25, 0.5)]
    assert (run.project, run.run_group, run.display_name) == ('jdkd', 'a', 'a/student')
    config = {update.key: update.value_json for update in run.config.update}
    assert config['rounds'] == '2' and wandb.run is None


@pytest.mark.slow
def test_trackio_keeps_the_series_locally(workdir, tmp_path, monkeypatch):
    pytest.importorskip('trackio')
    monkeypatch.setenv('JDKD_TRACK', 'trackio')
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, 'TRACKIO_DIR', tmp_path / 'trackio')
    write(workdir)
    identity = json.loads((workdir / tracking.FILE).read_text())['id']
    logs = sqlite_storage.SQLiteStorage.get_logs('jdkd', f'a/student {identity}')
    assert [(row['step'], row['loss'], row['kept']) for row in logs] == [
        (1, 1.5, 1),
        (2, 0.25, 0.5),
    ]


class Recorder:
    made = []

    def __init__(self, workdir, series):
        self.id, self.series, self.logged = tracking._identity(workdir), series, []
        self.made.append(self)

    def log(self, step, values):
        self.logged.append((step, dict(values)))

    def close(self):
        self.logged.append('closed')


def test_every_series_has_a_tracker_under_the_id_of_its_workdir(workdir, monkeypatch):
    monkeypatch.setitem(tracking._TRACKERS, 'json', Recorder)  # A module that is always there.
    monkeypatch.setattr(Recorder, 'made', [])
    write(workdir)
    assert not Recorder.made and not (workdir / tracking.FILE).exists()
    monkeypatch.setenv('JDKD_TRACK', 'json, json')
    write(workdir)
    write(workdir, 'twin')
    first, second = Recorder.made
    assert first.logged == [(1, SCALARS[0]), (2, SCALARS[1]), 'closed']
    assert (first.series, second.series) == ('student', 'twin') and first.id == second.id


def test_a_tracker_that_is_not_there_is_a_sentence(workdir, monkeypatch):
    monkeypatch.setenv('JDKD_TRACK', 'mlflow')
    with pytest.raises(ValueError, match="JDKD_TRACK names 'mlflow'; use wandb or trackio"):
        tracking.names()
    monkeypatch.setenv('JDKD_TRACK', 'trackio')
    monkeypatch.setitem(sys.modules, 'trackio', None)
    with pytest.raises(ImportError, match=r"needs that package .*pip install 'jdkd\[track\]'"):
        tracking.start(workdir, 'student')

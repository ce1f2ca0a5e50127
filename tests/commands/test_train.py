"""`jdkd.distill`: from a config to the report and a student that `jdkd.load` opens."""

import json

import numpy as np
import pytest

import jdkd
from tests.helpers import tiny

CONFIG = """
from tests.helpers import tiny

def get_config(home):
    c = tiny.get_config(home)
    c.index.kind, c.rounds = "exact", 1
    c.align.epochs, c.loss.embedding, c.loss.in_batch = 0.0, 0.0, 0.0
    c.dark.reinforced = c.dark.noisy = 0
    c.loss.dark = 0.0
    c.batch_size = c.systems.tuned.train.batch_size = 8  # One for each device of the tests.
    return c
"""


@pytest.mark.slow
def test_distill_returns_the_report_and_the_student(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG)
    config, workdir = f'{tmp_path}/config.py:{tmp_path}', tmp_path / 'w'
    distilled = jdkd.distill(config, workdir)
    assert distilled.report == json.loads((workdir / 'report.json').read_text())
    assert distilled.student == workdir / 'student'
    # The exported student ranks the test queries as the run did.
    corpus = [json.loads(x) for x in (tmp_path / 'toy/corpus.jsonl').read_text().splitlines()]
    queries = map(json.loads, (tmp_path / 'toy/queries.jsonl').read_text().splitlines())
    texts = {q['_id']: q['text'] for q in queries}
    retriever = jdkd.load(distilled.student).index([p['text'] for p in corpus])
    rows = [line.split() for line in (workdir / 'run.trec').read_text().splitlines()]
    scores = {(query, passage): float(score) for query, _, passage, _, score, _ in rows}
    for query in {row[0] for row in rows}:
        for hit in retriever.search(texts[query], k=5):
            ran = scores[query, corpus[hit.row]['_id']]
            np.testing.assert_allclose(hit.score, ran, rtol=1e-3)
    # Called again it reads what is there.
    written = {path: path.stat().st_mtime_ns for path in (workdir / 'rounds').rglob('*.npy')}
    assert written
    assert jdkd.distill(config, str(workdir)).report['test'] == distilled.report['test']
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_distill_reports_bad_configs_before_the_workdir_exists(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no config file'):
        jdkd.distill('nothing:x', tmp_path / 'w')
    with pytest.raises(ValueError, match='give one to train with'):
        jdkd.distill('eval', tmp_path / 'w')
    config = tiny.get_config(str(tmp_path))
    config.rounds = -1
    with pytest.raises(ValueError, match='rounds'):
        jdkd.distill(config, tmp_path / 'w')
    assert not (tmp_path / 'w').exists()

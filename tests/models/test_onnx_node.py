"""transformers.js embeds, in Node, as the export that it reads.

Skipped without Node and the package `@huggingface/transformers`, which `npm install` puts into the
checkout, or `npm install -g` where NODE_PATH names it.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest

import jdkd
from jdkd.models import onnx_export
from jdkd.models.dual_encoder import DualEncoder
from tests.helpers import toy

pytestmark = pytest.mark.slow
TEXTS = ['cat runs', 'dog', 'red cat sings blue bird sleeps fish swims']
PACKAGE = '@huggingface/transformers'
EMBED = """
const { pipeline, env } = require('@huggingface/transformers');
const [directory, texts] = JSON.parse(process.argv[1]);
env.localModelPath = directory;
env.allowRemoteModels = false;
(async () => {
  const found = {};
  for (const dtype of ['fp32', 'q8']) {
    const embed = await pipeline('feature-extraction', 'student', { dtype });
    found[dtype] = (await embed(texts, { pooling: 'mean', normalize: true })).tolist();
  }
  console.log(JSON.stringify(found));
})();
"""


def run_node(code, *args):
    node = shutil.which('node')
    if node is None:
        pytest.skip('Node is not installed')
    return subprocess.run([node, '-e', code, *args], capture_output=True, text=True)


@pytest.fixture(autouse=True, scope='module')
def needs_node():
    pytest.importorskip('onnxscript')
    pytest.importorskip('sentence_transformers')
    if run_node(f'require.resolve("{PACKAGE}")').returncode:
        pytest.skip(f'the npm package {PACKAGE} is not installed')


def test_transformers_js_gives_the_embeddings_of_the_export(tmp_path):
    toy.write_model(tmp_path / 'student', DualEncoder(toy.TRANSFORMER, 'mean', True))
    expected = jdkd.load(tmp_path / 'student').encode(TEXTS)
    onnx_export.export(tmp_path / 'student')
    # Paths of models in transformers.js end with a slash.
    run = run_node(EMBED, json.dumps([f'{tmp_path}/', TEXTS]))
    assert run.returncode == 0, run.stderr
    found = {name: np.array(rows) for name, rows in json.loads(run.stdout).items()}
    np.testing.assert_allclose(found['fp32'], expected, atol=1e-5)
    assert 1e-5 < np.abs(found['q8'] - expected).max()  # It took the other file.
    assert ((found['q8'] * expected).sum(1) > 0.95).all()

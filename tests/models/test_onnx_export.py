"""ONNX files embed as the export that they lie beside."""

import numpy as np
import pytest

import jdkd
from jdkd.models import onnx_export
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, Projection
from tests.helpers import toy

pytestmark = pytest.mark.slow
TEXTS = ['cat runs', 'dog', 'red cat sings blue bird sleeps fish swims', '']


@pytest.fixture(autouse=True, scope='module')
def needs_onnx():
    for name in ('onnxruntime', 'onnxscript', 'sentence_transformers'):
        pytest.importorskip(name)


@pytest.mark.parametrize(
    'model',
    [
        DualEncoder(toy.TRANSFORMER, 'mean', True),
        DualEncoder(toy.TRANSFORMER, 'cls', False, Projection(5, activation='tanh')),
    ],
    ids=['mean', 'cls and projection'],
)
def test_onnx_gives_the_embeddings_of_the_export(tmp_path, model):
    toy.write_model(tmp_path / 'model', model)
    retriever = jdkd.load(tmp_path / 'model')
    expected = retriever.encode(TEXTS)
    folder = onnx_export.export(tmp_path / 'model')
    tokens = retriever.encoder.encode_passages(TEXTS)
    # Texts of several lengths share a batch.
    found = onnx_export.OnnxEncoder(folder / 'model.onnx').embed(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rounded = onnx_export.OnnxEncoder(folder / 'model_quantized.onnx').embed(tokens)
    cosines = (rounded * expected).sum(1) / np.linalg.norm(rounded, axis=1)
    assert (cosines / np.linalg.norm(expected, axis=1) > 0.95).all()
    assert np.abs(rounded - expected).max() > 1e-5
    again = onnx_export.export(tmp_path / 'model')  # Replaces what is there.
    assert sorted(p.name for p in again.iterdir()) == ['model.onnx', 'model_quantized.onnx']
    assert not list(tmp_path.rglob('*.tmp'))


def test_untied_towers_have_a_folder_each(tmp_path):
    toy.write_towers(tmp_path / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    retriever = jdkd.load(tmp_path / 'model')
    folder = onnx_export.export(tmp_path / 'model')
    tokens = retriever.encoder.encode_passages(TEXTS)
    for tower, kind in (('query', 'query'), ('document', 'passage')):
        found = onnx_export.OnnxEncoder(folder / tower / 'model.onnx').embed(tokens)
        np.testing.assert_allclose(found, retriever.encode(TEXTS, kind=kind), atol=1e-5)


def test_a_cross_encoder_is_refused(tmp_path):
    toy.write_model(tmp_path / 'cross', CrossEncoder(toy.TRANSFORMER, 'linear'))
    with pytest.raises(ValueError, match='is no dual-encoder'):
        onnx_export.export(tmp_path / 'cross')

"""ONNX beside an export: one file a tower, with pooling, projection and normalisation inside.

Needs `pip install "jdkd[onnx]"`: PyTorch traces what sentence-transformers loads, so that ONNX is
of the very model that the export is tested to be.
"""

import contextlib
import importlib
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from jdkd.runtime import files
from jdkd.tokens.store import TokenStore

FOLDER = 'onnx'
MODEL, QUANTISED = 'model.onnx', 'model_quantized.onnx'  # As transformers.js looks for them.
INPUTS = ('input_ids', 'attention_mask', 'token_type_ids')
_BATCH = 32  # Texts that an encoder embeds at once.


def export(directory: pathlib.Path) -> pathlib.Path:
    """Writes a dual-encoder's ONNX files into the folder `onnx` of its export; returns the folder.

    `model.onnx` maps `input_ids`, `attention_mask` and, where the model has them,
    `token_type_ids`, all `[batch, length]` int64, to `last_hidden_state` and to
    `sentence_embedding`, float32. `model_quantized.onnx` has int8 weights. Untied towers have the
    folders `query` and `document`.

    Raises:
        ImportError: if the extra `onnx` is not installed.
        ValueError: if the export is a cross-encoder.
    """
    transformers = _need('sentence_transformers')
    if not (directory / 'modules.json').is_file():
        raise ValueError(f'{directory} is no dual-encoder, and only these are exported to ONNX.')
    model = transformers.SentenceTransformer(
        str(directory), device='cpu', model_kwargs={'attn_implementation': 'eager'}
    )
    first, *others = model.train(False)
    routes = getattr(first, 'sub_modules', {'': [first]})
    target = directory / FOLDER
    # Beside the export: what a kill leaves is no file of it.
    scratch = directory.with_name(f'.{directory.name}.{FOLDER}.tmp')
    files.remove(scratch)
    for name, modules in routes.items():
        folder = scratch / name
        folder.mkdir(parents=True)
        with _quiet():
            _trace([*modules, *others], folder / MODEL)
            _quantise(folder / MODEL, folder / QUANTISED)
    files.remove(target)
    scratch.rename(target)
    return target


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise ImportError(f'ONNX needs {name}: pip install "jdkd[onnx]".') from e


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what exporters say of their own parts, such as models that they cannot export."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _trace(modules: list, path: pathlib.Path) -> None:
    """Writes modules of sentence-transformers, one after another, as one ONNX graph."""
    torch, _ = _need('torch'), _need('onnxscript')
    encoder = modules[0]

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = torch.nn.ModuleList(modules)

        def forward(self, *inputs):
            features = dict(zip(names, inputs, strict=True))
            for step in self.steps:
                features = step(features)
            return features['token_embeddings'], features['sentence_embedding']

    texts = encoder.tokenizer(['a first text', 'two'], padding=True, return_tensors='pt')
    names = [name for name in INPUTS if name in texts]
    sizes = {0: torch.export.Dim('batch'), 1: torch.export.Dim('length')}
    torch.onnx.export(
        Encoder().train(False),
        tuple(texts[name] for name in names),
        str(path),
        input_names=names,
        output_names=['last_hidden_state', 'sentence_embedding'],
        dynamic_shapes=((sizes,) * len(names),),
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def _quantise(path: pathlib.Path, target: pathlib.Path) -> None:
    quantization = _need('onnxruntime.quantization')
    quantization.quantize_dynamic(path, target, weight_type=quantization.QuantType.QInt8)


class OnnxEncoder:
    """Embeds tokens by ONNX Runtime, on the CPU."""

    def __init__(self, path: pathlib.Path):
        self._session = _need('onnxruntime').InferenceSession(
            str(path), providers=['CPUExecutionProvider']
        )
        self._names = [field.name for field in self._session.get_inputs()]

    def embed(self, tokens: TokenStore) -> np.ndarray:
        """`[n, D]` float32 embeddings of texts."""
        order = np.argsort(tokens.lengths, kind='stable')
        out = None
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            length = int(tokens.lengths[rows].max())
            ids = tokens.rows(rows, length).astype(np.int64)
            mask = (np.arange(length) < tokens.lengths[rows][:, None]).astype(np.int64)
            given = dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True))
            feed = {name: given[name] for name in self._names}
            (found,) = self._session.run(['sentence_embedding'], feed)
            if out is None:
                out = np.empty((len(order), found.shape[1]), np.float32)
            out[rows] = found
        return np.zeros((0, 1), np.float32) if out is None else out

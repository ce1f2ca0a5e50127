"""Encoding and training speed against PyTorch: the same checkpoint, rows and loss, in one run.

python -m benchmarks.throughput --weights sentence-transformers/all-MiniLM-L6-v2

Needs torch and transformers beside jdkd. Both sides run on the same device in turns, and the ratio
is of medians, since machines are noisy.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from absl import app, flags

from jdkd.distill import losses
from jdkd.models import pretrained, weights
from jdkd.models.dual_encoder import DualEncoder

_WEIGHTS = flags.DEFINE_string(
    'weights', 'sentence-transformers/all-MiniLM-L6-v2', 'Directory, or name on the hub.'
)
_ROWS = flags.DEFINE_integer('rows', 32, 'Rows a batch.')
_LENGTH = flags.DEFINE_integer('length', 128, 'Tokens a row.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed turns of each side.')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of matrix products.')
_SCALE = 20.0


def jax_sides(path, tokens: np.ndarray, num_queries: int) -> dict[str, Callable[[], None]]:
    """`encode` and `train`, each one call."""
    source = pretrained.read_pretrained(path)
    model = DualEncoder(dataclasses.replace(source.config, dtype=_DTYPE.value))
    params = jax.device_put({'transformer': source.params})
    tx = optax.adamw(1e-5)
    tokens = jax.device_put(tokens)

    def loss_fn(params):
        vectors = model.apply({'params': params}, tokens)
        scores = _SCALE * vectors[:num_queries] @ vectors[num_queries:].T
        return jnp.mean(losses.info_nce(scores, jnp.arange(num_queries)))

    @jax.jit
    def train(params, opt_state):
        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    encode = jax.jit(lambda params: model.apply({'params': params}, tokens))
    state = [params, tx.init(params)]

    def one_step():
        state[:] = jax.block_until_ready(train(*state))

    return {'encode': lambda: jax.block_until_ready(encode(params)), 'train': one_step}


def torch_sides(path, tokens: np.ndarray, num_queries: int) -> dict[str, Callable[[], None]]:
    """The same in PyTorch."""
    device = 'cuda' if torch.cuda.is_available() and jax.default_backend() == 'gpu' else 'cpu'
    model = transformers.AutoModel.from_pretrained(path).to(device).eval()
    ids = torch.tensor(tokens.astype(np.int64), device=device)
    mask = (ids != model.config.pad_token_id).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    autocast = torch.autocast(device, torch.bfloat16, enabled=_DTYPE.value == 'bfloat16')

    def embed():
        with autocast:
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        where = mask[..., None].float()
        pooled = (states.float() * where).sum(1) / where.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def wait():
        if device == 'cuda':
            torch.cuda.synchronize()

    def encode():
        with torch.inference_mode():
            embed()
        wait()

    def train():
        vectors = embed()
        scores = _SCALE * vectors[:num_queries] @ vectors[num_queries:].T
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(num_queries, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait()

    return {'encode': encode, 'train': train}


def main(_):
    path = weights.find_weights(_WEIGHTS.value)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 9000, (_ROWS.value, _LENGTH.value)).astype(np.int32)
    ours = jax_sides(path, tokens, _ROWS.value // 2)
    theirs = torch_sides(path, tokens, _ROWS.value // 2)
    print(f'{jax.devices()[0].device_kind}, {_DTYPE.value}, {_ROWS.value} x {_LENGTH.value} tokens')
    print(f'{"":8}{"jdkd s":>10}{"PyTorch s":>12}{"speed ratio":>14}')
    for name in ours:
        seconds = {'ours': [], 'theirs': []}
        for turn in range(_REPEATS.value + 2):
            for side, run in (('ours', ours[name]), ('theirs', theirs[name])):
                start = time.perf_counter()
                run()
                if turn >= 2:  # The first ones compile and warm up.
                    seconds[side].append(time.perf_counter() - start)
        a, b = (statistics.median(seconds[side]) for side in ('ours', 'theirs'))
        print(f'{name:8}{a:10.3f}{b:12.3f}{b / a:14.2f}')


if __name__ == '__main__':
    app.run(main)

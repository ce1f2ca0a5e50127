"""Measures training, encoding and scoring beside PyTorch, on the same texts and checkpoint.

python -m benchmarks.throughput --weights sentence-transformers/all-MiniLM-L6-v2

Lengths of passages are drawn as MS MARCO's are spread (a gamma distribution, cut off). A train step
takes lists of a positive and negatives, a teacher's scores, InfoNCE over the batch, the listwise KL
divergence and AdamW. PyTorch pads each batch to its longest row, as sentence-transformers does,
which encodes and scores in order of length. Both sides run in turns on the same device; ratios are
of medians, since machines are noisy. Needs torch and transformers beside jdkd.
"""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from benchmarks import measure, train_step
from jdkd.distillation import assistants
from jdkd.models import pretrained, weights
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import encode
from jdkd.runtime import mesh as meshes
from jdkd.tokens.store import TokenStore

_ROWS = flags.DEFINE_integer('rows', 256, 'Passages to encode, and pairs to score.')
_LENGTHS = flags.DEFINE_list('lengths', ['1', '2', '4', '8'], 'Numbers of lengths of rows to try.')
_SHARED = flags.DEFINE_list('shared', ['256'], 'Lengths of shared rows to try.')
_PEAK = flags.DEFINE_float(
    'peak', None, 'TFLOP/s of the device at that dtype, to say how much of it is used.'
)
_NAME = flags.DEFINE_string('name', 'throughput', 'Of the file of results.')
_BATCH = 32  # Rows that PyTorch encodes and scores at once, as sentence-transformers does.


def torch_device() -> str:
    return 'cuda' if torch.cuda.is_available() and jax.default_backend() == 'gpu' else 'cpu'


def torch_encoder(path):
    """The model, and `embed(ids)` of padded rows."""
    device = torch_device()
    model = transformers.AutoModel.from_pretrained(path).to(device).eval()
    autocast = torch.autocast(device, torch.bfloat16, enabled=train_step.DTYPE.value == 'bfloat16')

    def embed(ids: np.ndarray):
        tokens = torch.tensor(ids.astype(np.int64), device=device)
        mask = (tokens != 0).long()
        with autocast:
            states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        where = mask[..., None].float()
        pooled = (states.float() * where).sum(1) / where.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    return model, embed


def wait():
    if torch_device() == 'cuda':
        torch.cuda.synchronize()


def torch_train(path, batches):
    """`run(i)` takes the same step."""
    model, embed = torch_encoder(path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    fn = torch.nn.functional

    def run(i):
        batch = batches[i]
        B, N = batch.lengths.shape
        queries = embed(batch.query)
        passages = embed(batch.tokens.reshape(B * N, -1)[:, : batch.lengths.max()])
        scores = train_step.SCALE * queries @ passages.T
        own = torch.arange(B, device=scores.device)
        lists = scores.reshape(B, B, N)[own, own]
        teacher = fn.log_softmax(torch.tensor(batch.teacher, device=scores.device), dim=-1)
        kl = fn.kl_div(fn.log_softmax(lists, -1), teacher, reduction='batchmean', log_target=True)
        loss = fn.cross_entropy(scores, own * N) + kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wait()

    return run


def by_length(ids: np.ndarray, lengths: np.ndarray):
    """Batches of rows, the longest first, each padded to its longest row."""
    order = np.argsort(-lengths, kind='stable')
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        yield ids[rows, : lengths[rows].max()]


def encoders(path):
    """Both sides of encoding; and the real tokens."""
    ids, lengths = train_step.texts(np.random.default_rng(1), _ROWS.value)
    store, mesh = TokenStore.from_rows(ids, 0), meshes.make_mesh()
    source = pretrained.read_pretrained(path)
    model = DualEncoder(dataclasses.replace(source.config, dtype=train_step.DTYPE.value))
    params = jax.device_put({'transformer': source.params}, meshes.replicated(mesh))
    _, embed = torch_encoder(path)

    def theirs():
        with torch.inference_mode():
            found = [embed(rows).cpu() for rows in by_length(ids, lengths)]
        return len(found)

    ours = functools.partial(encode.embed, model, params, store, mesh=mesh, desc='encode')
    return ours, theirs, int(lengths.sum())


def scorers(path):
    """Both sides of scoring pairs by a cross-encoder with a fresh head; and the real tokens."""
    ids, lengths = train_step.texts(np.random.default_rng(2), _ROWS.value)
    queries = np.random.default_rng(3).integers(1000, 9000, (_ROWS.value, train_step.QUERY.value))
    mesh, source = meshes.make_mesh(), pretrained.read_pretrained(path)
    model = CrossEncoder(
        dataclasses.replace(source.config, dtype=train_step.DTYPE.value), head='linear'
    )
    row = np.ones((1, 8), np.int32)
    fresh = model.init(jax.random.key(0), row, row)['params']
    params = jax.device_put({**fresh, 'transformer': source.params}, meshes.replicated(mesh))
    numbers = np.arange(_ROWS.value)
    ours = functools.partial(
        encode.score_pairs,
        model,
        params,
        TokenStore.from_rows(queries, 0),
        numbers,
        TokenStore.from_rows(ids, 0),
        numbers,
        separators=1,
        mesh=mesh,
        desc='score',
    )
    device = torch_device()
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    judge = judge.to(device).eval()
    autocast = torch.autocast(device, torch.bfloat16, enabled=train_step.DTYPE.value == 'bfloat16')
    pairs = np.concatenate([queries, ids[:, 1:]], axis=1)

    def theirs():
        with torch.inference_mode(), autocast:
            for rows in by_length(pairs, lengths + train_step.QUERY.value - 1):
                tokens = torch.tensor(rows.astype(np.int64), device=device)
                judge(input_ids=tokens, attention_mask=(tokens != 0).long()).logits.float().cpu()

    return ours, theirs, int((lengths + train_step.QUERY.value - 1).sum())


def selection_seconds() -> float:
    """Of selecting the best of three assistants and their fusions for a batch."""
    rng = np.random.default_rng(4)
    shape = (train_step.LISTS.value, train_step.CANDIDATES.value)
    pool = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
    teacher = jnp.asarray(rng.normal(size=shape), jnp.float32)
    rows = assistants.fusion_weights(3, 'subsets')

    @jax.jit
    def select(pool, teacher):
        choices = assistants.fuse(pool, rows, fusion='subsets')
        distance = assistants.distances(choices, teacher, distance='kl', temperature=1.0)
        best = assistants.select(distance)
        return assistants.fuse_selected(pool, rows, best, fusion='subsets')

    sides = {'select': lambda i: jax.block_until_ready(select(pool, teacher))}
    return train_step.timed(sides, 1)['select']


def main(_):
    path = weights.find_weights(train_step.WEIGHTS.value)
    config = pretrained.read_pretrained(path).config
    # Products of a token with the dense layers; twice that for multiply and add.
    dense = config.num_layers * (
        4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    )
    works = {}

    def add(work, name, seconds, real_tokens, flops_per_token, share=None):
        entry = {
            'seconds': round(seconds, 4),
            'real_tokens_per_second': round(real_tokens / seconds),
        }
        if share is not None:
            entry['real_token_share'] = round(share, 3)
        if _PEAK.value:
            entry['utilisation'] = round(
                flops_per_token * real_tokens / seconds / _PEAK.value / 1e12, 4
            )
        works.setdefault(work, {})[name] = entry
        print(work, name, entry, flush=True)

    batches = train_step.train_batches(3)
    kinds = {f'rows of {n} lengths': dict(lengths=int(n)) for n in _LENGTHS.value if n}
    kinds |= {
        f'shared rows of {n}': dict(shared=int(n), texts=max(int(n) // 24, 4))
        for n in _SHARED.value
        if n
    }
    shares: dict[str, float | None] = {'PyTorch': None}
    sides = {'PyTorch': torch_train(path, batches)}
    for name, rows in kinds.items():
        sides[name], shares[name] = train_step.prepared(path, batches, meshes.make_mesh(), **rows)
    real = statistics.mean(b.real_tokens for b in batches)
    for name, seconds in train_step.timed(sides, len(batches)).items():
        add('train', name, seconds, real, 6 * dense, shares[name])
    for work, (ours, theirs, real) in {'encode': encoders(path), 'score': scorers(path)}.items():
        both = {'PyTorch': lambda i, f=theirs: f(), 'jdkd': lambda i, f=ours: f()}
        found = train_step.timed(both, 1)
        for name, seconds in found.items():
            add(work, name, seconds, real, 2 * dense)
    fastest = min(s['seconds'] for name, s in works['train'].items() if name != 'PyTorch')
    best = {'train': fastest, **{w: works[w]['jdkd']['seconds'] for w in ('encode', 'score')}}
    measure.write(
        _NAME.value,
        {
            'dtype': train_step.DTYPE.value,
            'texts': {
                'mean_tokens': round(float(np.mean([b.lengths.mean() for b in batches])), 1),
                'longest': train_step.LONGEST.value,
                'lists': train_step.LISTS.value,
                'candidates': train_step.CANDIDATES.value,
            },
            'versions': {'jax': jax.__version__, 'torch': torch.__version__},
            'works': works,
            'speed_ratio': {
                work: round(works[work]['PyTorch']['seconds'] / s, 2) for work, s in best.items()
            },
            'selection_share_of_a_step': round(selection_seconds() / fastest, 5),
        },
    )


if __name__ == '__main__':
    app.run(main)

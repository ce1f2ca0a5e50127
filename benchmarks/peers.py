"""What sentence-transformers makes of the same student, lists, teacher scores and steps.

python -m benchmarks.peers --name=squad --workdir=runs/peers_squad \
    --runs=runs/ablation_squad/seed_0/full,runs/ablation_squad/seed_1/full

For each finished run, its student is exported as it was before training and trained by losses of
sentence-transformers in float32: batch by batch on the lists that the run itself was trained on,
those of later rounds too, with the same optimizer and schedule, by the same teacher logits, without
dropout; there are no dark examples. Then it is measured by `--mode eval` as any checkpoint is. A
peer such as mnrl@2 has twice the run's learning rate. The command goes on where it was stopped;
figures go to benchmarks/results/peers_<name>.json.

Needs torch and sentence-transformers beside jdkd.
"""

import argparse
import math
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import ml_collections
import numpy as np
import optax
import sentence_transformers
import torch
import tqdm
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import dot_score, pairwise_dot_score

from benchmarks import measure, tables
from jdkd import publish
from jdkd.data import loader, store
from jdkd.retrieval import evaluate
from jdkd.run import Run
from jdkd.runtime import config as configs
from jdkd.runtime import files, stages
from jdkd.runtime import mesh as meshes
from jdkd.systems.encoders import load_encoder

OURS = 'jdkd'


def _scaled(scale: float):
    return lambda a, b: scale * pairwise_dot_score(a, b)


# Given a model and the scale of our student's scores. Those with `default` are as they come: the
# student's scores are cosines, the teacher's are logits. The others have both in logits.
PEERS = {
    'mnrl': lambda model, scale: losses.MultipleNegativesRankingLoss(
        model, scale=scale, similarity_fct=dot_score
    ),
    'kl': lambda model, scale: losses.DistillKLDivLoss(model, similarity_fct=_scaled(scale)),
    'margin_mse': lambda model, scale: losses.MarginMSELoss(model, similarity_fct=_scaled(scale)),
    'kl_default': lambda model, scale: losses.DistillKLDivLoss(model),
    'margin_mse_default': lambda model, scale: losses.MarginMSELoss(model),
}


def parse(peer: str) -> tuple[str, float]:
    """The loss and the factor of the learning rate of `LOSS` or `LOSS@FACTOR`.

    Raises:
        ValueError: There is no such loss, or the factor is no positive number.
    """
    loss, at, factor = peer.partition('@')
    if loss not in PEERS:
        raise ValueError(f'there is no peer {loss!r}; there are {", ".join(PEERS)}')
    try:
        times = float(factor) if at else 1.0
    except ValueError:
        times = math.nan
    if not 0 < times < math.inf:
        raise ValueError(f'{peer!r}: after @ comes the factor of the learning rate, such as 2')
    return loss, times


def batches(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Query rows `[B]`, passage rows `[B, N_o]` and teacher logits `[B, N_o]` of each step."""
    config = run.config
    for i in range(config.rounds):
        root = run.workdir / f'rounds/{i:02d}'
        with np.load(root / 'candidates/train.npz') as f:
            queries, passages = f['query'], f['passages']
        teacher = np.load(root / 'scores/train.teacher.npy')[:, : passages.shape[1]]
        order = loader.Order(config.batch_size, [config.seed, i]).batches(len(queries))
        for k in range(config.steps_per_round):
            yield queries[order[k]], passages[order[k]], teacher[order[k]]


def optimizer(
    model: torch.nn.Module, config: ml_collections.ConfigDict, factor: float = 1.0
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """`jdkd.distill.step.optimizer` but for the clipping, at `factor` times the learning rate."""
    parameters = list(model.parameters())
    groups = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': config.weight_decay},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, config.warmup_steps, config.total_steps)
    adam = torch.optim.AdamW(groups, lr=factor * config.learning_rate)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: float(schedule(step)))


def train_mode(model: torch.nn.Module) -> None:
    """Has a model train as the run's student did: without dropout, which checkpoints come with."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def train(start: pathlib.Path, run: Run, peer: str) -> sentence_transformers.SentenceTransformer:
    """Trains a copy of a checkpoint on the steps of a run."""
    config, texts = run.config, run.passages
    spec = load_encoder(run, config.student).spec
    model = sentence_transformers.SentenceTransformer(str(start), device='cpu')
    name, factor = parse(peer)
    loss = PEERS[name](model, config.student.scale)
    adam, schedule = optimizer(model, config.optimizer, factor)
    train_mode(model)

    def tokens(prefix, texts, length):
        model.max_seq_length = length
        return model.preprocess([prefix + text for text in texts])

    steps = config.rounds * config.steps_per_round
    for queries, passages, teacher in tqdm.tqdm(batches(run), peer, total=steps, mininterval=10):
        asked = [run.train.texts[q] for q in queries]
        columns = [tokens(spec.query_prefix, asked, spec.query_length)]
        for column in passages.T:
            shown = [texts[int(p)] for p in column]
            columns.append(tokens(spec.passage_prefix, shown, config.train_passage_length))
        adam.zero_grad()
        loss(columns, torch.from_numpy(teacher)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        adam.step()
        schedule.step()
    model.max_seq_length = max(config.student.query_length, config.student.passage_length)
    return model


def test(model: pathlib.Path, run: Run, workdir: pathlib.Path) -> None:
    """Measures a checkpoint on the run's test split, as a run's own systems are."""
    config = run.config
    overrides = {
        'model': model,
        'collections': config.collection.source,
        'splits': config.collection.test_split,
        'measures': ','.join(config.measures),
        'index.kind': config.index.kind,
        'depth': config.depth,
        'ignore_identical_ids': config.ignore_identical_ids,
        'encoder.query_length': config.student.query_length,
        'encoder.passage_length': config.student.passage_length,
    }
    command = [sys.executable, '-m', 'jdkd.main', '--mode=eval', '--config=configs/eval.py']
    command += [f'--config.{field}={value}' for field, value in overrides.items()]
    subprocess.run([*command, f'--workdir={workdir}', '--update'], check=True)


def refusal(run: Run, directory: pathlib.Path) -> str | None:
    """Why a run has no peers like it, or none in that directory; None where it has."""
    config, mine = run.config, directory / 'run.json'
    if config.optimizer.accumulate != 1:
        return 'accumulates gradients, which peers do not; set optimizer.accumulate=1'
    if config.student.dropout:
        return 'trains with dropout, which peers do not; set student.dropout=0'
    if config.collection.options:
        return 'has collection.options, with which peers are not measured'
    if not run.train.is_labelled.all():
        return 'has queries without a label, which peers would take for labelled; use all labels'
    if mine.exists() and stages.read_json(mine) != {'config_sha256': configs.digest(config)}:
        return f'is another run than the one whose peers are in {directory}; give another --workdir'
    return None


def run_peer(run: Run, directory: pathlib.Path, peer: str) -> None:
    """Trains and measures one peer, unless that is done: <peer>.per_query.json has the figures."""
    done = directory / f'{peer}.per_query.json'
    if done.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    stages.write_json(directory / 'run.json', {'config_sha256': configs.digest(run.config)})
    start, model = directory / 'start', directory / peer
    if not start.exists():
        encoder = load_encoder(run, run.config.student)
        report = stages.read_json(run.workdir / 'report.json')
        publish.write(run, publish.STUDENT, encoder, report, start)
    if not model.exists():
        trained = train(start, run, peer)
        temporary = directory / f'{peer}.tmp'
        files.remove(temporary)
        trained.save(str(temporary))
        temporary.rename(model)
    test(model, run, directory / 'eval')
    (measured,) = (directory / 'eval').glob('*/test')
    stages.write_json(done, evaluate.load_per_query(measured, 'model'))


def _place(peer: str) -> tuple[int, float]:
    """Its place in tables: those of one loss stand together."""
    loss, factor = parse(peer)
    return list(PEERS).index(loss), factor


def write(name: str, runs: list[tuple[Run, pathlib.Path]]) -> None:
    """Writes the results of the peers that are done, by (run, directory)."""
    measured = {OURS: {}}
    for run, directory in runs:
        seed = str(run.config.seed)
        measured[OURS][seed] = evaluate.load_per_query(run.workdir / 'test', 'student')
        for path in directory.glob('*.per_query.json'):
            peer = path.name.removesuffix('.per_query.json')
            measured.setdefault(peer, {})[seed] = evaluate.load_per_query(directory, peer)
    run = runs[0][0]
    titles = tables.titles(run.collection, run.config.collection.test_split)
    ordered = [OURS, *sorted(measured.keys() - {OURS}, key=_place)]
    found = tables.summary({peer: measured[peer] for peer in ordered}, OURS, titles)
    measure.write(
        f'peers_{name}',
        {
            'queries': len(titles),
            'titles': len(set(titles.values())),
            'versions': {
                'torch': torch.__version__,
                'sentence_transformers': sentence_transformers.__version__,
            },
            'config_sha256': configs.digest(run.config),
            'variants': found,
        },
    )


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--name', required=True, help='Of the results.')
    parser.add_argument('--runs', required=True, help='Workdirs of finished runs, one a seed.')
    parser.add_argument('--workdir', required=True, help='Where checkpoints are kept.')
    parser.add_argument(
        '--peers',
        default='mnrl,kl,margin_mse',
        help=f'Of {", ".join(PEERS)}; with @ and a factor, at that many times the learning rate.',
    )
    options = parser.parse_args()
    try:
        for peer in options.peers.split(','):
            parse(peer)
    except ValueError as e:
        parser.error(f'{e}.')
    runs = []
    for path in map(pathlib.Path, options.runs.split(',')):
        if not (path / 'report.json').exists():
            parser.error(f'{path} holds no finished run; let it end first.')
        config = configs.load(path)
        run = Run(config, path.absolute(), meshes.make_mesh(), store.collect(config, path))
        directory = pathlib.Path(options.workdir).absolute() / f'seed_{config.seed}'
        if why := refusal(run, directory):
            parser.error(f'{path} {why}.')
        if directory in (other for _, other in runs):
            parser.error(f'{path} has the seed of another run; give one run a seed.')
        runs.append((run, directory))
    for run, directory in runs:
        for peer in options.peers.split(','):
            print(f'{directory}: {peer}', flush=True)
            run_peer(run, directory, peer)
            write(options.name, runs)
    tables.update()


if __name__ == '__main__':
    main()

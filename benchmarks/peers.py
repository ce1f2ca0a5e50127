"""Trains the same student by losses of sentence-transformers, on the same lists, scores and steps.

python -m benchmarks.peers --name=squad --workdir=runs/peers_squad \
    --runs=runs/ablation_squad/seed_0/full,runs/ablation_squad/seed_1/full

Exports each run's student as it was before training, and trains it in float32, batch by batch, on
the lists of the run, later rounds included, with its optimizer, schedule and teacher logits, but
without dropout and dark examples. `--mode eval` then measures it like any checkpoint. A peer such
as mnrl@2 has twice the run's learning rate. The command continues after a stop. Figures go to
benchmarks/results/peers_<name>.json.

Needs torch and sentence-transformers beside jdkd.
"""

import argparse
import contextlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import sentence_transformers
import torch
import tqdm
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import dot_score, pairwise_dot_score

from benchmarks import compared, tables
from jdkd import config as configs
from jdkd.algorithm.scores import load_logits
from jdkd.commands import setup
from jdkd.config import OptimizerConfig
from jdkd.distillation.step import learning_rate
from jdkd.lists import loader
from jdkd.report import model_card
from jdkd.run import STUDENT, Run
from jdkd.runtime import files, stages
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
        with np.load(run.workdir / f'rounds/{i:02d}/candidates/train.npz') as f:
            queries, passages = f['query'], f['passages']
        teacher = load_logits(run, i, 'train')['teacher'][:, : passages.shape[1]]
        order = loader.BatchOrder(config.batch_size, [config.seed, i]).batches(len(queries))
        for k in range(config.steps_per_round):
            yield queries[order[k]], passages[order[k]], teacher[order[k]]


def optimizer(
    model: torch.nn.Module, config: OptimizerConfig, factor: float = 1.0
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """`step.optimizer` but for the clipping, at `factor` times the learning rate."""
    parameters = list(model.parameters())
    groups = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': config.weight_decay},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    by_step: Any = learning_rate(config)
    adam = torch.optim.AdamW(groups, lr=factor)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: float(by_step(step)))


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
    if spec.passage_format != 'joined':  # As the checkpoint may say.
        raise ValueError(
            f'{run.workdir}: peers join titles and texts as passage_format=joined does.'
        )
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


def refusal(run: Run, directory: pathlib.Path) -> str | None:
    """Why a run has no peers like it, or none in that directory; None where it has."""
    config, mine = run.config, directory / 'run.json'
    if config.optimizer.accumulate != 1:
        return 'accumulates gradients, which peers do not; set optimizer.accumulate=1'
    if config.student.dropout:
        return 'trains with dropout, which peers do not; set student.dropout=0'
    if config.topic_size:
        return 'draws batches of one topic, which peers do not; set topic_size=0'
    if config.student.passage_format not in (None, 'joined'):
        return 'joins titles and texts otherwise than peers; set student.passage_format=joined'
    entered = [r.get('entered') for r in stages.read_json(run.workdir / 'report.json')['rounds']]
    expected = [f'{STUDENT}_{i:02d}' for i in range(config.rounds - 1)]
    if len(entered) != config.rounds or entered[1:] != expected:
        return 'took rounds back or ended early; set backtrack=0 and patience=0'
    if config.collection.options:
        return 'has collection.options, with which peers are not measured'
    if not run.train.is_labelled.all():
        return 'has queries without a label, which peers would take for labelled; use all labels'
    if mine.exists() and stages.read_json(mine) != {'config_sha256': configs.digest(run.asked)}:
        return f'is another run than the one whose peers are in {directory}; give another --workdir'
    return None


def run_peer(run: Run, directory: pathlib.Path, peer: str) -> None:
    """Trains one peer, unless that is done: <peer> is its checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    stages.write_json(directory / 'run.json', {'config_sha256': configs.digest(run.asked)})
    start, model = directory / 'start', directory / peer
    if not start.exists():
        encoder = load_encoder(run, run.config.student)
        report = stages.read_json(run.workdir / 'report.json')
        model_card.write(run, STUDENT, encoder, report, start)
    if not model.exists():
        trained = train(start, run, peer)
        temporary = directory / f'{peer}.tmp'
        files.remove(temporary)
        trained.save(str(temporary))
        temporary.rename(model)


def trained_peers(directory: pathlib.Path) -> list[str]:
    """The peers that a directory has checkpoints of; those of one loss stand together."""
    found = []
    for path in directory.glob('*'):
        with contextlib.suppress(ValueError):  # Others are no peers.
            loss, factor = parse(path.name)
            found.append((list(PEERS).index(loss), factor, path.name))
    return [peer for *_, peer in sorted(found)]


def write(
    name: str, runs: list[tuple[Run, pathlib.Path]], workdir: pathlib.Path, source: str | None
) -> None:
    """Measures the peers that are trained and writes the results.

    Args:
        name: Of the results.
        runs: On one collection, each with the directory of its peers.
        workdir: Where measurements are kept.
        source: Of other test queries than those of the runs.
    """
    config = runs[0][0].config
    test = compared.Test(
        source or config.collection.source,
        'test' if source else runs[0][0].require_test().split,
        workdir / 'tested',
    )
    measured = {OURS: {}}
    for run, directory in runs:
        seed = directory.name
        ours = compared.of_run(test if source else None, f'{seed}/{OURS}', run.workdir)
        measured[OURS][str(run.config.seed)] = ours
        for peer in trained_peers(directory):
            found = test.measure(f'{seed}/{peer}', directory / peer, run.config)
            measured.setdefault(peer, {})[str(run.config.seed)] = found
    compared.write(
        f'peers_{name}',
        measured,
        OURS,
        test.collection(),
        test.split,
        versions={
            'torch': torch.__version__,
            'sentence_transformers': sentence_transformers.__version__,
        },
        config_sha256=configs.digest(runs[0][0].asked),
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
    parser.add_argument('--test', help="KIND:PATH, the runs' own if it is not set.")
    options = parser.parse_args()
    try:
        for peer in options.peers.split(','):
            parse(peer)
    except ValueError as e:
        parser.error(f'{e}.')
    runs, workdir = [], pathlib.Path(options.workdir).absolute()
    for path in map(pathlib.Path, options.runs.split(',')):
        if not (path / 'report.json').exists():
            parser.error(f'{path} holds no finished run; let it end first.')
        run = setup.open_trained_run(path)
        directory = workdir / f'seed_{run.config.seed}'
        if why := refusal(run, directory):
            parser.error(f'{path} {why}.')
        if directory in (other for _, other in runs):
            parser.error(f'{path} has the seed of another run; give one run a seed.')
        runs.append((run, directory))
    for run, directory in runs:
        for peer in options.peers.split(','):
            print(f'{directory}: {peer}', flush=True)
            run_peer(run, directory, peer)
            write(options.name, runs, workdir, options.test)
    tables.update()


if __name__ == '__main__':
    main()

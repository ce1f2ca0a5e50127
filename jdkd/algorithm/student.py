"""The student: where it starts, and how it trains for a round."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from jdkd.algorithm import gen_dataset, scored_pool, topics
from jdkd.algorithm.round_files import (
    load_dark_tokens,
    load_originals,
    round_path,
    split_queries,
)
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.config import LossConfig
from jdkd.distillation import assistants, objective
from jdkd.distillation.step import TrainState
from jdkd.distillation.train_loop import CHECKPOINTS, evaluate, train_loop
from jdkd.distillation.trainer import Trainer, make_trainer
from jdkd.lists import dataset, loader
from jdkd.run import STUDENT, TWIN, Run
from jdkd.runtime import checkpoint
from jdkd.runtime.metrics import MetricsWriter
from jdkd.systems.dual import AsymmetricSystem, DualEncoderSystem
from jdkd.systems.encoders import Encoder, load_encoder, start_digest
from jdkd.systems.system import System
from jdkd.systems.training import make_batches, restore_encoder

ScaledPool = Sequence[tuple[System, float]]  # Assistants with their logits per unit of score.


@dataclasses.dataclass(frozen=True)
class Student:
    """The student of a run; its parameters after each round are in the round's checkpoint."""

    run: Run
    start: Encoder  # Before round 0.
    name: str = STUDENT
    stage: str = 'train'  # Of each round.
    labelled_only: bool = False  # Whether lists of unlabelled queries are left out.

    def twin(self) -> 'Student':
        """A twin that learns from the labels alone, on the same lists (`config.twin`)."""
        loss = LossConfig(teacher=0.0, assistant=0.0, dark=0.0)
        loss = loss.replace(contrastive=self.run.config.loss.contrastive)
        run = dataclasses.replace(self.run, config=self.run.config.replace(loss=loss))
        return Student(run, self.start, TWIN, stage='twin', labelled_only=True)

    def after_round(self, round_index: int) -> DualEncoderSystem:
        """The student after a round, as a system.

        Raises:
            FileNotFoundError: if that round has not been trained.
        """
        run, path = self.run, round_path(round_index, self.stage)
        manifest = run.require_manifest(path)
        step = (round_index + 1) * run.config.steps_per_round
        encoder = restore_encoder(run, self.start, run.workdir / path, step)
        return self.system(self._name(round_index), manifest['digest'], encoder)

    def _name(self, round_index: int) -> str:
        return f'{self.name}_{round_index:02d}'

    @functools.cached_property
    def initial(self) -> DualEncoderSystem:
        """The student before anything is trained; its digest reads all parameters."""
        scale, digest = self.run.config.student.scale, start_digest(self.start)
        return DualEncoderSystem(f'{STUDENT}_init', digest, scale, self.run, self.start)

    def system(self, name: str, digest: str, encoder: Encoder) -> DualEncoderSystem:
        """The student with these parameters; where passages are frozen, on the start's index."""
        spec = self.run.config.student
        system = DualEncoderSystem(name, digest, spec.scale, self.run, encoder)
        return (
            AsymmetricSystem.of(name, system, self.initial) if spec.freeze == 'passage' else system
        )

    @property
    def learning_rate(self) -> float:
        """The learning rate at its peak."""
        return self.run.config.optimizer.learning_rate

    def slower(self, factor: float) -> 'Student':
        """The student with a part of its learning rate."""
        config, rate = self.run.config, factor * self.learning_rate
        config = config.replace(optimizer=config.optimizer.replace(learning_rate=rate))
        return dataclasses.replace(self, run=dataclasses.replace(self.run, config=config))

    def make_trainer(self) -> Trainer:
        """The trainer of the rounds."""
        return make_trainer(
            objective.Objective.of_student(self.run.config),
            mesh=self.run.mesh,
            model=self.start.model,
            params=self.start.params,
        )

    def train_round(
        self,
        trainer: Trainer,
        round_index: int,
        data: dict,
        previous: DualEncoderSystem,
        pool: Sequence[System],
        scales: Mapping[str, float],
        targets: EmbeddingTargets,
    ) -> dict:
        """Trains the steps of one round, as a stage.

        Args:
            data: Manifest of the round's dataset.
            previous: The student that enters the round, with the optimizer's state after the last.
            pool, scales: Assistants, and the logits per unit of score of each by name.
            targets: What `loss.embedding` draws embeddings to.

        Returns:
            `selected`, the share of queries that each (fused) assistant was selected for, and
            `eval_loss`, the terms of the loss on D_eval.
        """
        config = self.run.config
        sections = 'loss', 'selection', 'self_paced', 'rows', 'optimizer', 'student'
        scaled_pool = [(s, scales[s.name]) for s in pool]
        inputs = {
            'dataset': data['digest'],
            'previous': previous.digest,
            'assistants': [s.name for s in pool],  # Choices among them are in their order.
            **{section: getattr(config, section).to_dict() for section in sections},
            'batch_size': config.batch_size,
            'steps': [config.rounds, config.steps_per_round],
            'seed': config.seed,
        }
        if round_index:
            before = round_path(round_index - 1, self.stage)
            inputs['optimizer_state'] = self.run.require_manifest(before)['digest']
        if config.loss.embedding:
            inputs['targets'] = targets.inputs
        if config.topic_size:
            inputs['topics'] = self.run.require_manifest(topics.STAGE)['digest']

        def build(out):
            data = _RoundData(self, trainer, round_index, previous, scaled_pool, targets)
            return self._train_round(out, data)

        path = round_path(round_index, self.stage)
        return self.run.stage(path, inputs, build, resumable=True)['result']

    def _train_round(self, out: pathlib.Path, data: '_RoundData') -> dict:
        run, config, choices = self.run, self.run.config, []
        trainer, round_index = data.trainer, data.round_index
        if objective.selects_assistants(config, len(data.pool)):
            names = [s.name for s, _ in data.pool]
            choices = assistants.choice_names(names, config.selection.fusion)
        first, last = (r * config.steps_per_round for r in (round_index, round_index + 1))
        planned_steps = config.rounds * config.steps_per_round

        def start() -> TrainState:
            if round_index == 0:
                return trainer.init(data.previous.encoder.params)
            before = round_path(round_index - 1, self.stage)
            state = checkpoint.restore_state(
                run.workdir / before / CHECKPOINTS, first, trainer.abstract
            )
            if data.previous.name != self._name(round_index - 1):  # An earlier one enters.
                state = state.replace(params=trainer.place(data.previous.encoder.params))
            return state.replace(selected=state.selected * 0)

        order = loader.BatchOrder(config.batch_size, [config.seed, round_index])
        state = train_loop(
            run,
            self.name,
            out,
            trainer,
            start,
            data.batches('train', order, config.steps_per_round),
            steps=range(first, last),
            planned_steps=planned_steps,
            total_steps=config.optimizer.total_steps,
            choices=choices,
            desc=f'round {round_index}: train {self.name}',
            eval_every=config.eval_every,
            eval_metrics=data.eval_loss,
        )
        eval_loss = data.eval_loss(state.params)
        # Metrics of their own: a restart after the last step writes them again.
        spans = {'last_step': last, 'total_steps': planned_steps}
        spans['resume_step'] = last - 1 if config.eval_every else first
        with MetricsWriter(run.workdir, f'{self.name}_eval', **spans) as writer:
            writer.write(last, eval_loss)
        shares = np.asarray(state.selected) / max(float(state.selected.sum()), 1.0)
        # Without choices the state's one count stays 0.
        selected = {name: float(share) for name, share in zip(choices, shares, strict=False)}
        return {'selected': selected, 'eval_loss': eval_loss}


@dataclasses.dataclass(frozen=True)
class _RoundData:
    """Batches of a round's D_train and D_eval."""

    student: Student
    trainer: Trainer
    round_index: int
    previous: DualEncoderSystem  # The student that enters the round.
    pool: ScaledPool
    targets: EmbeddingTargets

    def batches(self, split: str, order: loader.BatchOrder, steps: int) -> grain.DatasetIterator:
        """Batches of D_train or D_eval."""
        run, encoder = self.student.run, self.student.start
        config, queries = run.config, split_queries(run, split)
        length = config.train_passage_length
        lists = load_originals(run, self.round_index, split)
        records, rows = {'passages': lists.passages}, lists.query
        if (dark := load_dark_tokens(run, self.round_index, split)) is not None:
            records['dark'] = dark
        names = [s.name for s, _ in self.pool]
        source: Any = gen_dataset.load_records(run, self.round_index, split, names)
        if self.student.labelled_only:
            kept = np.flatnonzero(queries.is_labelled[rows])
            # A batch at least; a list without a label teaches nothing.
            kept = np.resize(kept if len(kept) else [0], max(len(kept), order.batch_size))
            source, rows = dataset.Subset(source, kept), rows[kept]
            records = {name: values[kept] for name, values in records.items()}
        if config.topic_size and order.shuffle:
            order = dataclasses.replace(order, topics=topics.load(run, rows))
        return make_batches(
            run,
            encoder,
            queries,
            source,
            records,
            order,
            self.trainer.rows,
            length=length,
            steps=steps,
            pool=self.pool if config.loss.in_batch else (),
            targets=self.targets.of(queries, length) if config.loss.embedding else None,
            scored=self._scored(split) if config.loss.pool else None,
        )

    def _scored(self, split: str) -> loader.Scored:
        """The teacher's scored passages, and the embeddings that the student gave them before."""
        passages, logits = scored_pool.positive_and_top(self.student.run, self.round_index, split)
        stored = self.previous.passages
        return passages, logits, lambda rows: stored[rows]

    def eval_loss(self, params) -> dict[str, float]:
        """Means of the loss terms over D_eval, in whole batches; none without a list to learn."""
        run, config = self.student.run, self.student.run.config
        lists = load_originals(run, self.round_index, 'eval')
        if self.student.labelled_only and not run.held_out.is_labelled[lists.query].any():
            return {}
        count = len(lists)
        size = min(config.batch_size, count)
        order = loader.BatchOrder(size, [config.seed], shuffle=False, epochs=1)
        batches = self.batches('eval', order, count // size)
        metrics = [evaluate(self.trainer, params, batch, run.held_out.ids) for batch in batches]
        names = [n for n in metrics[0] if n.startswith('loss') or n == 'list_accuracy']
        return {name: float(np.mean([m[name] for m in metrics])) for name in names}


def load(run: Run) -> Student:
    """The student of a run's config."""
    return Student(run, load_encoder(run, run.config.student))

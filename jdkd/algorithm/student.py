"""The student: where it starts, how it trains for a round, how it leaves."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jdkd import run
from jdkd.algorithm import gen_dataset
from jdkd.distillation import assistants, objective, train_loop
from jdkd.distillation.trainer import Trainer, make_trainer
from jdkd.lists import dataset, loader
from jdkd.report import model_card
from jdkd.run import Run
from jdkd.runtime import checkpoint, stages
from jdkd.runtime.metrics import MetricsWriter
from jdkd.systems.encoders import (
    DualEncoderSystem,
    Encoder,
    load_encoder,
    token_lookup,
    weights_digest,
)
from jdkd.systems.fine_tuning import CHECKPOINTS, restored
from jdkd.systems.system import System

NAME = run.STUDENT


@dataclasses.dataclass(frozen=True)
class Student:
    """The student of a run; its parameters after each round are in its checkpoints.

    Attributes:
        run: The run.
        start: The encoder as it is before round 0.
        trainer: Its compiled train step.
    """

    run: Run
    start: Encoder
    trainer: Trainer

    def after_round(self, round_index: int) -> DualEncoderSystem:
        """The student after a round, as a system; -1 for the start.

        Raises:
            FileNotFoundError: if that round has not been trained.
        """
        config = self.run.config
        if round_index < 0:
            digest = stages.digest([weights_digest(self.start), self.start.spec.to_dict()])
            return DualEncoderSystem(
                f'{NAME}_init', digest, config.student.scale, self.run, self.start
            )
        trained = self.run.read_manifest(_train_stage(round_index))
        if trained is None:
            raise FileNotFoundError(
                f'{self.run.workdir} has no trained round {round_index}; run --mode train with '
                'this --workdir to its end first.'
            )
        step = (round_index + 1) * config.steps_per_round
        directory = self.run.workdir / _train_stage(round_index) / CHECKPOINTS
        encoder = restored(self.run, self.start, directory, step, self.trainer.abstract)
        name = f'{NAME}_{round_index:02d}'
        return DualEncoderSystem(name, trained['digest'], config.student.scale, self.run, encoder)

    def train_round(
        self,
        round_index: int,
        data: dict,
        previous: DualEncoderSystem,
        pool: Sequence[System],
        scales: Mapping[str, float],
    ) -> dict:
        """Trains the steps of one round.

        Args:
            round_index: The round.
            data: Manifest of its dataset.
            previous: The student that enters it.
            pool: The assistants.
            scales: Logits per unit of score of the assistants whose scale was fitted.

        Returns:
            `selected`, the share of queries that each (fused) assistant was selected for, and
            `eval_loss`, the terms of the loss on D_eval.
        """
        config = self.run.config
        choices = []
        if objective.selects_assistants(config, len(pool)):
            choices = assistants.choice_names([a.name for a in pool], config.selection.fusion)
        return self.run.stage(
            _train_stage(round_index),
            {
                'dataset': data['digest'],
                'previous': previous.digest,
                **{
                    key: getattr(config, key).to_dict()
                    for key in ('loss', 'selection', 'self_paced', 'rows', 'optimizer', 'student')
                },
                'batch_size': config.batch_size,
                'steps': [config.rounds, config.steps_per_round],
                'seed': config.seed,
            },
            lambda out: self._train_round(out, round_index, previous, pool, scales, choices),
            resumable=True,
        )['result']

    def _train_round(self, out, round_index, previous, pool, scales, choices) -> dict:
        run, config, trainer = self.run, self.run.config, self.trainer
        first, last = (r * config.steps_per_round for r in (round_index, round_index + 1))
        batches = self._batches(
            round_index,
            'train',
            loader.BatchOrder(config.batch_size, [config.seed, round_index]),
            pool,
            scales,
            steps=config.steps_per_round,
        )
        series = {'last_step': last, 'total_steps': config.rounds * config.steps_per_round}
        with checkpoint.Checkpoints(out / CHECKPOINTS) as saved:

            def start():
                if not round_index:
                    return trainer.init(previous.encoder.params)
                before = run.workdir / _train_stage(round_index - 1) / CHECKPOINTS
                state = checkpoint.restore_state(before, first, trainer.abstract)
                return state.replace(selected=state.selected * 0)

            resumed = saved.latest_step() or first
            writer = MetricsWriter(run.workdir, NAME, resume_step=resumed, **series)
            state = train_loop.train_loop(
                trainer,
                start,
                batches,
                saved,
                writer,
                first_step=first,
                last_step=last,
                total_steps=config.optimizer.total_steps,
                query_ids=run.train.ids,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                choices=choices,
                desc=f'round {round_index}: train {NAME}',
            )
            writer.close()
            saved.keep_only(last)
        eval_loss = self._eval_loss(round_index, state.params, pool, scales)
        # Of its own series, since a restart after the last step writes it again.
        writer = MetricsWriter(run.workdir, f'{NAME}_eval', resume_step=first, **series)
        writer.write(last, eval_loss)
        writer.close()
        shares = np.asarray(state.selected) / max(float(state.selected.sum()), 1.0)
        return {
            # Without a pool the state counts nothing.
            'selected': {n: float(s) for n, s in zip(choices, shares, strict=True)}
            if choices
            else {},
            'eval_loss': eval_loss,
        }

    def _batches(self, round_index, split, order, pool, scales, *, steps):
        """Batches of a split of a round's dataset for the train step."""
        run, config = self.run, self.run.config
        root = f'rounds/{round_index:02d}'
        queries = run.train if split == 'train' else run.held_out
        to_tokens = token_lookup(run, self.start, queries, config.train_passage_length)
        lists = gen_dataset.load_lists(run, root, split, self.start)
        records = {'passages': lists.passages}
        if lists.dark.shape[1]:
            records['dark'] = self.start.prefixed(lists.dark)
        rows, mesh = self.trainer.rows, run.mesh
        to_batch = loader.make_row_packer(to_tokens, records, order, rows, mesh, steps=steps)
        if pool and config.loss.in_batch:
            scorers = [a.scorer(queries) for a in pool]
            scales = [scales.get(a.name, a.scale) for a in pool]
            to_batch = loader.InBatchScorer(to_batch, scorers, scales)
        source = dataset.read(run.workdir / root / 'dataset', split)
        return loader.batches(source, to_batch, order, mesh)

    def _eval_loss(self, round_index, params, pool, scales) -> dict[str, float]:
        """Means of the loss terms over D_eval, in whole batches."""
        config = self.run.config
        count = len(dataset.read(self.run.workdir / f'rounds/{round_index:02d}/dataset', 'eval'))
        size = min(config.batch_size, count)
        order = loader.BatchOrder(size, [config.seed], shuffle=False, epochs=1)
        batches = self._batches(round_index, 'eval', order, pool, scales, steps=count // size)
        ids = self.run.held_out.ids
        found = [train_loop.evaluate(self.trainer, params, batch, ids) for batch in batches]
        return {
            name: float(np.mean([f[name] for f in found]))
            for name in found[0]
            if name.startswith('loss') or name == 'list_accuracy'
        }

    def final(self) -> DualEncoderSystem:
        """The student after the last round."""
        return self.after_round(self.run.config.rounds - 1)

    def export(self, found: dict) -> None:
        """Writes the final student to `<workdir>/student`.

        Args:
            found: The report, whose table goes into the model card.
        """
        model_card.write(self.run, NAME, self.final().encoder, found)


def load(run: Run) -> Student:
    """The student of a run's config."""
    config = run.config
    start = load_encoder(run, config.student)
    training = objective.Objective.of_student(config)
    trainer = make_trainer(training, mesh=run.mesh, model=start.model, params=start.params)
    return Student(run, start, trainer)


def _train_stage(round_index: int) -> str:
    return f'rounds/{round_index:02d}/train'

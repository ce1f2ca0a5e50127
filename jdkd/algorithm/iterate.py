"""Algorithm 1 of MTA4DPR (Lu et al., EMNLP 2024), with ADAM's dark examples.

Require: teacher T, assistants TA, student M, queries Q, passages P
Q <- Q with the labels that rankers are sure of, where it has none    (ours: if asked for)
M <- M aligned with the embeddings of assistants                      (ours: if asked for)
for i in range(rounds):
    D_train, D_eval = GenDataset(T, TA, Q, P)
    repeat steps_per_round times:
        best = TASelect(D_train batch)
        M <- M - lr * grad L_total(batch, M, best)
    if M outperforms an assistant on D_eval (Compare):
        remove Worst(TA); add M to TA
    if M was better on D_eval before: M <- the best; lr <- backtrack * lr (ours: if asked for)
    Q <- the queries that M got wrong, and some that it got right     (ours: how many)
return the best M on D_eval                                           (ours: the aligned one, too)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from absl import logging

from jdkd import diagnostics
from jdkd.algorithm import (
    coverage,
    final,
    gen_dataset,
    hard_queries,
    outcome,
    pseudo_labels,
    student,
    topics,
)
from jdkd.algorithm.align import align
from jdkd.algorithm.round_files import eval_inputs, eval_qrels, round_path
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.algorithm.teacher import Teacher, measure_teacher
from jdkd.corpus.lengths import evenly_spaced
from jdkd.distillation.trainer import Trainer
from jdkd.run import STUDENT, TWIN, Run
from jdkd.systems import measuring, roles
from jdkd.systems.build import build
from jdkd.systems.dual import AsymmetricSystem, DualEncoderSystem, as_dual
from jdkd.systems.ranking import measure_inputs
from jdkd.systems.system import System, unique

_SAMPLE = 1024  # Passages whose embeddings are compared with each other.
_UNLABELLED = (
    'no query of D_eval (split %r) has a label: the scores of teacher and assistants are brought '
    'to one spread, and measures on D_eval, which decide replacement too, say how often a system '
    'finds the passage that the teacher ranks first.'
)


@dataclasses.dataclass(frozen=True)
class Cast:
    """The systems of a run, by the roles that Algorithm 1 gives them."""

    systems: Mapping[str, System]  # All that have a role, by name.
    teacher: Teacher  # T.
    assistants: Sequence[System]  # TA, as it enters round 0.
    miners: Sequence[System]  # The first stage, and what mines beside assistants and student.
    aligned_with: Sequence[DualEncoderSystem]

    @classmethod
    def build(cls, run: Run) -> Self:
        """Builds them in the order of the config; those to be trained are trained now."""
        config, targets = run.config, roles.aligned_with(run.config)
        members = config.teacher.members if run.num_rounds else ()  # Nothing is taught without.
        used = {*roles.retrievers(config), *members, *targets}
        systems = {name: build(run, name) for name in config.systems if name in used}
        weights = config.teacher.weights
        if weights is not None:
            weights = dict(zip(config.teacher.members, weights, strict=True))
        return cls(
            systems,
            Teacher([systems[name] for name in members], weights),
            [systems[name] for name in config.assistants],
            [systems[name] for name in (config.first_stage, *config.candidates.retrievers)],
            [as_dual(systems[name]) for name in targets],
        )


@dataclasses.dataclass
class Rounds:
    """What the rounds have brought so far."""

    run: Run
    students: list[DualEncoderSystem]  # The one that enters round 0, and those after each round.
    measured: list[Mapping[str, float]]  # {measure: value} of these on D_eval; none without rounds.
    datasets: list[dict]  # Manifests of D_train and D_eval of each round.
    records: list[dict]  # What the report says of each round.
    warnings: list[diagnostics.RunWarning]
    # {system: {measure: value}} on D_eval; see `measure_teacher`.
    reranking: Mapping[str, Mapping[str, float]]
    teacher: Teacher | None  # With the weights that round 0 fitted; None without rounds.

    @classmethod
    def begin(cls, run: Run, begun: DualEncoderSystem) -> Self:
        return cls(run, [begun], [], [], [], [], {}, None)

    @property
    def best(self) -> DualEncoderSystem:
        """The student that the run ends with, were it to end now."""
        at = final.choose(self.run.config, self.measured) if self.measured else 0
        return self.students[at]

    def warn(self, warnings: Sequence[diagnostics.RunWarning]) -> None:
        self.warnings += diagnostics.log(warnings)


def train(run: Run) -> dict:
    """Runs Algorithm 1, measures on the test split, exports the student; returns the report.

    Reads every stage that is already in the workdir instead of building it: a run that was killed
    goes on where it was.
    """
    config, warnings = run.config, coverage.check(run)
    warnings += diagnostics.skipped_rounds_warnings(config.rounds, run.num_rounds)
    diagnostics.log(warnings)
    run = pseudo_labels.label(run)
    M = student.load(run)
    trainer = M.make_trainer()  # Before hours of work: it may not fit the mesh.
    cast = Cast.build(run)
    targets = EmbeddingTargets(run, M.start, cast.aligned_with)
    begun = align(run, M, targets)
    if config.topic_size and run.num_rounds:
        topics.keep(run, begun)
    if run.num_rounds and not run.eval_has_labels:
        logging.info(_UNLABELLED, run.held_out.split)
    rounds = train_rounds(run, M, trainer, cast, begun, targets)
    logging.info('the run ends with %s', rounds.best.name)
    shown = {s.name: s for s in (M.initial, begun)}
    if config.twin:
        shown[TWIN] = train_twin(M.twin(), rounds, targets)
    if targets.shared is not None:
        name = f'{STUDENT}_on_{targets.shared.name}'
        shown[name] = AsymmetricSystem.of(name, rounds.best, targets.shared)
    shown |= {STUDENT: rounds.best}
    details = {'reranking': rounds.reranking, 'rounds': rounds.records}
    details['warnings'] = warnings + rounds.warnings
    return outcome.finish(run, rounds.teacher, cast.systems, shown, **details)


def train_rounds(
    run: Run,
    M: student.Student,
    trainer: Trainer,
    cast: Cast,
    begun: DualEncoderSystem,
    targets: EmbeddingTargets,
) -> Rounds:
    """Trains the rounds; `begun` enters the first, and `targets` are those of `loss.embedding`."""
    config, has_labels, initial = run.config, run.eval_has_labels, M.initial
    T, TA, first = cast.teacher, cast.assistants, cast.miners[0]
    Q = np.arange(len(run.train))
    rounds, current = Rounds.begin(run, begun), begun
    for i in range(run.num_rounds):
        logging.info('round %d: %d of %d train queries', i, len(Q), len(run.train))
        scores, data = gen_dataset.generate(
            run,
            i,
            teacher=T,
            miners=cast.miners,
            pool=TA,
            student=current,
            encoder=M.start,
            active=Q,
        )
        rounds.warn(diagnostics.score_warnings(i, scores, has_labels=has_labels))
        if i == 0:
            T = rounds.teacher = T.with_weights(scores['teacher'])
            rounds.reranking = measure_teacher(run, T, first, TA)
            if has_labels:
                measured = config.compare, rounds.reranking, config.first_stage
                rounds.warn(diagnostics.teacher_warnings(*measured))
        how = {'entered': current.name, 'learning_rate': M.learning_rate}
        trained = M.train_round(trainer, i, data, current, TA, scores['scales'], targets)
        current = M.after_round(i)
        references = [first, initial, begun]
        compared = compare(run, round_path(i, 'eval'), current, TA, references)
        rounds.warn(
            diagnostics.comparison_warnings(
                i,
                config.compare,
                compared,
                first_stage=config.first_stage if has_labels else None,
                start=begun.name,
                outside={*config.assistants} - {*config.teacher.members},
                backtrack=config.backtrack,
            )
        )
        replaced = worst_beaten(compared['student'], compared['assistants'], config.compare)
        TA = [current if assistant.name == replaced else assistant for assistant in TA]
        rounds.students.append(current)
        rounds.datasets.append(data)
        rounds.measured = rounds.measured or [compared['references'][begun.name]]
        rounds.measured.append(compared['student'])
        num_hard, over = None, final.is_over(run, rounds.measured)
        if not over:
            M, trainer, current = continued(M, trainer, rounds.students, rounds.measured)
            hard = hard_queries.find(run, i, current, T)
            Q = hard_queries.choose(hard, config.replay, seed=config.seed, round_index=i)
            num_hard = int(hard.sum())
        changes = {'replaced': replaced, 'hard_queries': num_hard}
        rounds.records.append({**scores, **how, **trained, **compared, **changes})
        needed = [rounds.best] if over else [rounds.best, current, *TA]
        students = [initial, *rounds.students]
        discard_superseded(run, students, needed, shown=[initial, begun])
        if over:
            break
    return rounds


def continued(
    M: student.Student,
    trainer: Trainer,
    students: Sequence[DualEncoderSystem],
    measured: Sequence[Mapping[str, float]],
) -> tuple[student.Student, Trainer, DualEncoderSystem]:
    """What trains in the next round: M, its trainer, and the student that enters the round.

    Normally that is the last of `students`. With `config.backtrack`, it is the best on D_eval, and
    where that is not the last, M learns more slowly from then on. `measured` is as in
    `final.choose`.
    """
    config = M.run.config
    best = final.best(config, measured)
    if not config.backtrack or best == len(measured) - 1:
        return M, trainer, students[-1]
    M, names = M.slower(config.backtrack), [s.name for s in students]
    logging.info('%s goes back to %s; learning rate %g', names[-1], names[best], M.learning_rate)
    return M, M.make_trainer(), students[best]


def discard_superseded(
    run: Run,
    students: Sequence[DualEncoderSystem],
    needed: Sequence[System],
    shown: Sequence[DualEncoderSystem] = (),
) -> None:
    """At the end of a round, discards all `students` that are not `needed`, unless kept.

    Those that the final test shows rank its queries before: their measures need no more of them.
    """
    if run.config.keep_students:
        return
    names = {system.name for system in needed}
    # A frozen tower's passages belong to the student that they came from.
    names |= {s.passage_side.name for s in needed if isinstance(s, AsymmetricSystem)}
    for system in shown:
        if system.name not in names and len(run.test):
            system.rank(run.test)
    for system in students:
        if system.name not in names:
            system.discard()


def train_twin(
    twin: student.Student, rounds: Rounds, targets: EmbeddingTargets
) -> DualEncoderSystem:
    """Trains the student's twin on the datasets of all rounds; returns what it ends with."""
    trainer, run = twin.make_trainer(), twin.run
    twins, of_twins = rounds.students[:1], rounds.measured[:1]
    best = twins[0]
    for i, data in enumerate(rounds.datasets):
        logging.info('round %d: the twin', i)
        twin, trainer, current = continued(twin, trainer, twins, of_twins)
        twin.train_round(trainer, i, data, current, (), {}, targets)
        twins.append(twin.after_round(i))
        of_twins.append(compare(run, round_path(i, 'twin_eval'), twins[-1], (), ())['student'])
        best = twins[final.choose(run.config, of_twins)]
        discard_superseded(run, twins[1:], [best])
    return best


def compare(
    run: Run,
    path: str,
    current: DualEncoderSystem,
    pool: Sequence[System],
    references: Sequence[System],
) -> dict:
    """Compare of Algorithm 1: measures student and assistants on D_eval by full-corpus retrieval.

    `path` is that of the stage, `current` the student after the round; `references` are for the
    report alone.

    Returns:
        `student` {measure: value}, `assistants` and `references` {name: {measure: value}}, and
        the `mean_cosine` of the student's passages. The stage also holds the measures of each
        query and the student's run file on D_eval. Where D_eval has no labels, its stand-ins are
        what is to be found: replacement then goes by agreement with the teacher (ours).
    """
    systems, mean_cosine = unique([current, *pool, *references]), _mean_cosine(run, current)

    def build_stage(out):
        ranked = {s.name: s.rank(run.held_out) for s in systems}
        rankings = {name: ranking for name, (ranking, _) in ranked.items()}
        measured = measuring.measure_all(run, rankings, run.held_out, out, eval_qrels(run))
        means = {name: {**m.means, **ranked[name][1]} for name, m in measured.items()}
        name, queries = current.name, run.held_out
        measuring.write_run_file(out / 'eval.trec', run, rankings[name], queries, name)
        return {
            'student': means[current.name],
            'assistants': {a.name: means[a.name] for a in pool},
            'references': {r.name: means[r.name] for r in references},
            'mean_cosine': mean_cosine,
        }

    inputs = {**measure_inputs(run, systems, run.held_out), **eval_inputs(run)}
    return run.stage(path, inputs, build_stage)['result']


def _mean_cosine(run: Run, system: DualEncoderSystem) -> float:
    """Mean cosine of two passages, as a stage: other measures then need no old embeddings."""
    inputs = {'system': system.digest, 'collection': run.collection.fingerprint}
    inputs['store'] = run.config.index.store

    def build_stage(out):
        passages = system.passages
        return diagnostics.mean_cosine(passages[evenly_spaced(len(passages), _SAMPLE)])

    return run.stage(f'systems/{system.name}/mean_cosine', inputs, build_stage)['result']


def worst_beaten(
    student_measures: Mapping[str, float],
    assistants: Mapping[str, Mapping[str, float]],
    measure: str,
) -> str | None:
    """Worst of Algorithm 1: the worst assistant if the student beats it; ties keep it."""
    worst = min(assistants, key=lambda name: assistants[name][measure], default=None)
    beaten = worst and student_measures[measure] > assistants[worst][measure]
    return worst if beaten else None

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
    Q <- the queries that M got wrong, and some that it got right     (ours: how many)
return the best M on D_eval                                           (ours: the aligned one, too)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from jdkd import diagnostics
from jdkd.algorithm import (
    costs,
    coverage,
    final,
    gen_dataset,
    hard_queries,
    pseudo_labels,
    student,
    topics,
)
from jdkd.algorithm.align import align
from jdkd.algorithm.lists import eval_inputs, eval_qrels, round_path
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.algorithm.teacher import Teacher, measure_teacher, rerank
from jdkd.corpus.lengths import evenly_spaced
from jdkd.report import model_card, run_report
from jdkd.retrieval import significance
from jdkd.run import STUDENT, TWIN, Run
from jdkd.systems import measuring, roles
from jdkd.systems.build import build
from jdkd.systems.dual import AsymmetricSystem, DualEncoderSystem, as_dual
from jdkd.systems.ranking import measure_inputs
from jdkd.systems.system import System

_SAMPLE = 1024  # Passages whose embeddings are compared with each other.
_MADE = (
    'all queries of D_eval were made from passages, which cannot tell which student is better: the '
    'run ends with the aligned one. Give a log of queries, or those of a generator '
    '(collection.pseudo_queries.file); final=last keeps what the rounds make.'
)
_UNLABELLED = (
    'no query of D_eval (split %r) has a label: the scores of teacher and assistants are brought '
    'to one spread, and measures on D_eval, which decide replacement too, say how often a system '
    'finds the passage that the teacher ranks first.'
)


def train(run: Run) -> dict:
    """Runs Algorithm 1, measures on the test split, exports the student; returns the report.

    Reads every stage that is already in the workdir instead of building it: a run that was killed
    goes on where it was.
    """
    run = pseudo_labels.label(run)
    config = run.config
    warnings = diagnostics.log(coverage.check(run))
    M = student.load(run)
    trainer = M.make_trainer()  # Before hours of work: it may not fit the mesh.
    targets_of = roles.aligned_with(config)
    used = {*roles.retrievers(config), *config.teacher.members, *targets_of}
    systems = {name: build(run, name) for name in config.systems if name in used}
    miners = [systems[name] for name in (config.first_stage, *config.candidates.retrievers)]
    members = [systems[name] for name in config.teacher.members]
    T = Teacher(members, config.teacher.weights)
    TA = [systems[name] for name in config.assistants]
    start = M.initial
    targets = EmbeddingTargets(run, M.start, [as_dual(systems[name]) for name in targets_of])
    begun = current = best = align(run, M, targets)
    if config.topic_size:
        topics.keep(run, begun)
    Q = np.arange(len(run.train))
    students, measured, datasets, rounds, on_eval = [begun], [], [], [], {}
    if not (has_labels := run.eval_has_labels):
        logging.info(_UNLABELLED, run.held_out.split)
    if not run.eval_judges and config.align.epochs and config.final == 'best':
        logging.warning(_MADE)
    for i in range(config.rounds):
        logging.info('round %d: %d of %d train queries', i, len(Q), len(run.train))
        scores, data = gen_dataset.generate(
            run, i, teacher=T, miners=miners, pool=TA, student=current, encoder=M.start, active=Q
        )
        flat = diagnostics.score_warnings(i, scores, has_labels=has_labels)
        warnings += diagnostics.log(flat)
        if i == 0:
            on_eval = measure_teacher(run, T, scores, miners[0], TA)
            if has_labels:
                weak = diagnostics.teacher_warnings(config.compare, on_eval, config.first_stage)
                warnings += diagnostics.log(weak)
        datasets.append(data)
        trained = M.train_round(trainer, i, data, current, TA, scores['scales'], targets)
        current = M.after_round(i)
        students.append(current)
        compared = compare(run, round_path(i, 'eval'), current, TA, [miners[0], start, begun])
        worse = diagnostics.comparison_warnings(
            i,
            config.compare,
            compared,
            first_stage=config.first_stage if has_labels else None,
            start=begun.name,
            outside={*config.assistants} - {*config.teacher.members},
        )
        warnings += diagnostics.log(worse)
        replaced = worst_beaten(compared['student'], compared['assistants'], config.compare)
        TA = [current if assistant.name == replaced else assistant for assistant in TA]
        measured = measured or [compared['references'][begun.name]]
        measured.append(compared['student'])
        num_hard, over = None, final.is_over(config, measured)
        if not over:
            hard = hard_queries.find(run, i, current, T, scores['teacher'])
            Q = hard_queries.choose(hard, config.replay, seed=config.seed, round_index=i)
            num_hard = int(hard.sum())
        changes = {'replaced': replaced, 'hard_queries': num_hard}
        rounds.append({**scores, **trained, **compared, **changes})
        best = students[final.choose(config, measured, judged=run.eval_judges)]
        needed = [best] if over else [best, current, *TA]
        discard_superseded(run, [start, *students], needed, shown=[start, begun])
        if over:
            break
    logging.info('the run ends with %s', best.name)
    shown = {s.name: s for s in (start, begun)}
    if config.twin:
        shown[TWIN] = train_twin(M.twin(), datasets, begun, measured[0], targets)
    if targets.shared is not None:
        name = f'{STUDENT}_on_{targets.shared.name}'
        shown[name] = AsymmetricSystem.of(name, best, targets.shared)
    shown |= {STUDENT: best}
    details = {'reranking': on_eval, 'rounds': rounds, 'warnings': warnings}
    return finish(run, T, systems, shown, **details)


def finish(
    run: Run,
    teacher: Teacher,
    systems: Mapping[str, System],
    students: Mapping[str, DualEncoderSystem],
    **details: Any,
) -> dict:
    """Measures on the test split, writes the report, exports the student; returns the report.

    `students` are as for `final_test`, `details` as for `run_report.write`.
    """
    config, best, first_round = run.config, students[STUDENT], details['rounds'][0]
    test = final_test(run, teacher, first_round, systems, students)
    names = dict.fromkeys((config.first_stage, *config.assistants))
    priced = {name: systems[name] for name in names}
    details['costs'] = costs.measure(run, best, priced, teacher, first_round['teacher'])
    outcome = run_report.write(run, **test, final=best.name, **details)
    model_card.write(run, STUDENT, best.encoder, outcome)
    return outcome


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
        if system.name not in names:
            system.rank(run.test)
    for system in students:
        if system.name not in names:
            system.discard()


def train_twin(
    twin: student.Student,
    datasets: Sequence[dict],
    begun: DualEncoderSystem,
    measured: Mapping[str, float],
    targets: EmbeddingTargets,
) -> DualEncoderSystem:
    """Trains the student's twin on the datasets of all rounds; returns what it ends with.

    `measured` has the measures on D_eval of `begun`, the student that enters round 0.
    """
    trainer, run = twin.make_trainer(), twin.run
    best, twins, of_twins = begun, [begun], [measured]
    for i, data in enumerate(datasets):
        logging.info('round %d: the twin', i)
        twin.train_round(trainer, i, data, twins[-1], (), {}, targets)
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
    systems = {s.name: s for s in (current, *pool, *references)}.values()

    def build_stage(out):
        ranked = {s.name: s.rank(run.held_out) for s in systems}
        rankings = {name: ranking for name, (ranking, _) in ranked.items()}
        measured = measuring.measure_all(run, rankings, run.held_out, out, eval_qrels(run))
        means = {name: {**m.means, **ranked[name][1]} for name, m in measured.items()}
        name, queries = current.name, run.held_out
        measuring.write_run_file(out / 'eval.trec', run, rankings[name], queries, name)
        passages = current.passages
        sample = evenly_spaced(len(passages), _SAMPLE)
        return {
            'student': means[current.name],
            'assistants': {a.name: means[a.name] for a in pool},
            'references': {r.name: means[r.name] for r in references},
            'mean_cosine': diagnostics.mean_cosine(passages[sample]),
        }

    inputs = {**measure_inputs(run, systems), **eval_inputs(run)}
    return run.stage(path, inputs, build_stage)['result']


def worst_beaten(
    student_measures: Mapping[str, float],
    assistants: Mapping[str, Mapping[str, float]],
    measure: str,
) -> str | None:
    """Worst of Algorithm 1: the worst assistant if the student beats it; ties keep it."""
    worst = min(assistants, key=lambda name: assistants[name][measure], default=None)
    beaten = worst and student_measures[measure] > assistants[worst][measure]
    return worst if beaten else None


def final_test(
    run: Run,
    teacher: Teacher,
    first_round: Mapping,
    systems: Mapping[str, System],
    students: Mapping[str, DualEncoderSystem],
) -> dict[str, dict]:
    """Measures every system on the test split; writes the final student's run.trec.

    `students` are shown beside the config's systems: the student before any training, as it
    entered round 0, its twin, its queries over the index of the assistant that it is aligned
    with, and what the run ends with, under the name `student`.

    Returns:
        `test` {system: {measure: value}}, and `significance` of the student's differences from
        all others, {system: {measure: ...}}; see `significance.paired_tests`. The stage also holds
        the measures of each query.
    """
    config, first = run.config, run.config.first_stage
    shown = {name: systems[name] for name in (first, *config.assistants)}
    shown |= students
    weights = first_round['teacher']

    def build_stage(out):
        rankings = {name: s.rank(run.test)[0] for name, s in shown.items()}
        reranked = rerank(run, 'teacher', teacher, weights, shown[first], run.test)
        if reranked is not None:
            rankings[run_report.TEACHER] = reranked
        measured = measuring.measure_all(run, rankings, run.test, out)
        return {
            'test': {name: m.means for name, m in measured.items()},
            'significance': {
                name: significance.paired_tests(
                    measured[STUDENT].per_query, measured[name].per_query
                )
                for name in measured
                if name != STUDENT
            },
        }

    inputs = {
        **measure_inputs(run, shown.values()),
        'teacher': teacher.inputs(weights),
        'first': first,
    }
    tested = run.stage('test', inputs, build_stage)['result']
    ranking, _ = students[STUDENT].rank(run.test)
    measuring.write_run_file(run.workdir / 'run.trec', run, ranking, run.test, STUDENT)
    return tested

"""Algorithm 1 of MTA4DPR (Lu et al., EMNLP 2024), with ADAM's dark examples.

Require: teacher T, assistants TA, student M, queries Q, passages P
for i in range(rounds):
    D_train, D_eval = GenDataset(T, TA, Q, P)
    repeat steps_per_round times:
        best = TASelect(D_train batch)
        M <- M - lr * grad L_total(batch, M, best)
    if M outperforms an assistant on D_eval (Compare):
        remove Worst(TA); add M to TA
    Q <- the queries that M got wrong, and some that it got right     (ours: how many)
"""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from jdkd import diagnostics
from jdkd.algorithm import gen_dataset, student
from jdkd.algorithm.lists import positives, read_stand_ins, round_path
from jdkd.algorithm.teacher import Teacher, measure_teacher, rerank
from jdkd.lists import candidates
from jdkd.report import model_card, run_report
from jdkd.retrieval import measures, significance, trec
from jdkd.run import STUDENT, Run
from jdkd.systems import measuring
from jdkd.systems.build import build
from jdkd.systems.dual import DualEncoderSystem
from jdkd.systems.ranking import measure_inputs
from jdkd.systems.system import System

_SAMPLE = 1024  # Passages whose embeddings are compared with each other.


def train(run: Run) -> dict:
    """Runs Algorithm 1, measures on the test split, writes the report and exports the student.

    Reads every stage that is already in the workdir instead of building it: a run that was killed
    goes on where it was.

    Returns:
        The report.
    """
    config = run.config
    M = student.load(run)
    trainer = M.make_trainer()  # Before hours of work: it may not fit the mesh.
    systems = _build_systems(run)
    miners = [systems[name] for name in (config.first_stage, *config.candidates.retrievers)]
    T = Teacher([systems[name] for name in config.teacher.members], config.teacher.weights)
    TA = [systems[name] for name in config.assistants]
    start = current = M.after_round(-1)
    Q = np.arange(len(run.train))
    rounds, warnings, teacher_eval = [], [], {}
    for i in range(config.rounds):
        logging.info('round %d: %d of %d train queries', i, len(Q), len(run.train))
        scores, data = gen_dataset.generate(
            run, i, teacher=T, miners=miners, pool=TA, student=current, encoder=M.start, active=Q
        )
        warnings += diagnostics.log(diagnostics.score_warnings(i, scores))
        if i == 0:
            on_eval = measure_teacher(run, T, scores, miners[0], TA)
            teacher_eval = on_eval['teacher']
            warnings += diagnostics.log(
                diagnostics.teacher_warnings(config.compare, on_eval, config.first_stage)
            )
        trained = M.train_round(trainer, i, data, current, TA, scores['scales'])
        current = M.after_round(i)
        compared = compare(run, i, current, TA, [miners[0], start])
        warnings += diagnostics.log(
            diagnostics.comparison_warnings(
                i, config.compare, compared, config.first_stage, start.name
            )
        )
        replaced = worst_beaten(compared['student'], compared['assistants'], config.compare)
        TA = [current if assistant.name == replaced else assistant for assistant in TA]
        wrong = np.load(run.workdir / round_path(i, 'eval') / 'wrong.npy')
        Q = harder_queries(wrong, config.replay, seed=config.seed, round_index=i)
        changes = {'replaced': replaced, 'hard_queries': int(wrong.sum())}
        rounds.append({**scores, **trained, **compared, **changes})
    test = final_test(run, T, rounds[0], systems, start, current)
    outcome = run_report.write(
        run, **test, teacher_eval=teacher_eval, rounds=rounds, warnings=warnings
    )
    model_card.write(run, STUDENT, current.encoder, outcome)
    return outcome


def _build_systems(run: Run) -> dict[str, System]:
    """The systems that the run uses by name, in the order of the config."""
    config = run.config
    used = {
        config.first_stage,
        *config.candidates.retrievers,
        *config.teacher.members,
        *config.assistants,
    }
    return {name: build(run, name) for name in config.systems if name in used}


def compare(
    run: Run,
    round_index: int,
    current: DualEncoderSystem,
    pool: Sequence[System],
    references: Sequence[System],
) -> dict:
    """Compare of Algorithm 1: measures student and assistants on D_eval by full-corpus retrieval.

    `current` is the student after the round; `references` are measured for the report alone.

    Returns:
        `student` {measure: value}, `assistants` and `references` {name: {measure: value}}, and
        the `mean_cosine` of the student's passages. The stage also holds the measures of each
        query, the student's run file on D_eval and the train queries that it gets wrong: those
        without a positive (or its stand-in) at rank 1.
    """
    systems = {s.name: s for s in (current, *pool, *references)}.values()

    def build_stage(out):
        means = {}
        for system in systems:
            ranking, facts = system.rank(run.held_out)
            measured = measuring.measure(run, ranking, run.held_out)
            measured.save(out, system.name)
            means[system.name] = {**measured.means, **facts}
        ranked, _ = current.rank(run.held_out)
        found_run = trec.from_ranking(ranked, run.held_out.ids, run.collection.passage_ids)
        trec.write(out / 'eval.trec', found_run, current.name)
        ranked, _ = current.rank(run.train)
        wrong = measures.wrong_queries(ranked, positives(run), run.collection.group)
        np.save(out / 'wrong.npy', wrong)
        passages = current.passages
        sample = np.linspace(0, len(passages) - 1, min(len(passages), _SAMPLE)).astype(np.int64)
        return {
            'student': means[current.name],
            'assistants': {a.name: means[a.name] for a in pool},
            'references': {r.name: means[r.name] for r in references},
            'mean_cosine': diagnostics.mean_cosine(passages[sample]),
        }

    stand_ins = read_stand_ins(run)
    return run.stage(
        round_path(round_index, 'eval'),
        {**measure_inputs(run, systems), 'stand_ins': stand_ins and stand_ins['digest']},
        build_stage,
    )['result']


def worst_beaten(
    student_measures: Mapping[str, float],
    assistants: Mapping[str, Mapping[str, float]],
    measure: str,
) -> str | None:
    """Worst of Algorithm 1: the worst assistant if the student beats it; ties keep it."""
    if not assistants:
        return None
    worst = min(assistants, key=lambda name: assistants[name][measure])
    beaten = student_measures[measure] > assistants[worst][measure]
    return worst if beaten else None


def harder_queries(wrong: np.ndarray, replay: float, *, seed: int, round_index: int) -> np.ndarray:
    """Rows of the next round's queries: all wrong ones and a share `replay` of the solved ones.

    Where that leaves none, all queries.
    """
    rng = candidates.item_rng(seed, round_index, candidates.REPLAY, '')
    solved = np.flatnonzero(~wrong)
    kept = rng.choice(solved, round(replay * len(solved)), replace=False)
    rows = np.sort(np.concatenate([np.flatnonzero(wrong), kept])).astype(np.int32)
    return rows if len(rows) else np.arange(len(wrong), dtype=np.int32)


def final_test(
    run: Run,
    teacher: Teacher,
    first_round: Mapping,
    systems: Mapping[str, System],
    start: System,
    final: System,
) -> dict[str, dict]:
    """Measures every system on the test split; writes the final student's run.trec.

    Returns:
        `test` {system: {measure: value}}, and `significance` of the student's differences from
        the first stage and from its own start, {system: {measure: ...}}; see
        `significance.paired_tests`. The stage also holds the measures of each query.
    """
    config = run.config
    shown = {config.first_stage: systems[config.first_stage]}
    shown |= {name: systems[name] for name in config.assistants}
    shown |= {'student_init': start, 'student': final}

    def build_stage(out):
        rankings = {name: s.rank(run.test)[0] for name, s in shown.items()}
        rankings[run_report.TEACHER] = rerank(
            run, 'teacher', teacher, first_round['teacher'], shown[config.first_stage], run.test
        )
        measured_systems = {
            name: measuring.measure(run, ranking, run.test) for name, ranking in rankings.items()
        }
        for name, measured in measured_systems.items():
            measured.save(out, name)
        ours = measured_systems['student'].per_query
        return {
            'test': {name: measured.means for name, measured in measured_systems.items()},
            'significance': {
                name: significance.paired_tests(ours, measured_systems[name].per_query)
                for name in (config.first_stage, 'student_init')
            },
        }

    tested = run.stage(
        'test',
        {
            **measure_inputs(run, shown.values()),
            'teacher': teacher.inputs(first_round['teacher']),
            'first': config.first_stage,
        },
        build_stage,
    )['result']
    ranking, _ = final.rank(run.test)
    final_run = trec.from_ranking(ranking, run.test.ids, run.collection.passage_ids)
    trec.write(run.workdir / 'run.trec', final_run, 'student')
    return tested

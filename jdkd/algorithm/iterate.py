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
from jdkd.algorithm.teacher import Teacher, measure_teacher, rerank
from jdkd.lists import candidates
from jdkd.report import run_report
from jdkd.retrieval import measures, significance
from jdkd.run import Run
from jdkd.systems import measuring
from jdkd.systems.build import build
from jdkd.systems.encoders import DualEncoderSystem
from jdkd.systems.ranking import measure_inputs
from jdkd.systems.system import System

_SAMPLE = 1024  # Passages whose embeddings are compared with each other.


def train(run: Run) -> dict:
    """Runs Algorithm 1, measures on the test split, writes the report and exports the student.

    Every stage that is already in the workdir is read instead of built, so that a run which was
    killed goes on where it was.

    Returns:
        The report.
    """
    config = run.config
    miners = (config.first_stage, *config.candidates.retrievers)
    used = {*miners, *config.teacher.members, *config.assistants}
    model = student.load(run)  # First: it is told at once, what it cannot do.
    systems = {name: build(run, name) for name in config.systems if name in used}
    teacher = Teacher([systems[n] for n in config.teacher.members], config.teacher.weights)
    pool = [systems[name] for name in config.assistants]
    start = current = model.after_round(-1)
    active = np.arange(len(run.train))
    rounds, warnings = [], []
    for i in range(config.rounds):
        logging.info('round %d: %d of %d train queries', i, len(active), len(run.train))
        scores, data = gen_dataset.generate(
            run,
            i,
            teacher=teacher,
            miners=[systems[name] for name in miners],
            pool=pool,
            student=current,
            encoder=model.start,
            active=active,
        )
        warnings += diagnostics.log(diagnostics.score_warnings(i, scores))
        if i == 0:
            first = systems[config.first_stage]
            on_eval = measure_teacher(run, teacher, scores, first, pool)
            warnings += diagnostics.log(
                diagnostics.teacher_warnings(config.compare, on_eval, first.name)
            )
        trained = model.train_round(i, data, current, pool, scores['scales'])
        current = model.after_round(i)
        compared = compare(run, i, current, pool, [systems[config.first_stage], start])
        warnings += diagnostics.log(
            diagnostics.comparison_warnings(
                i, config.compare, compared, config.first_stage, start.name
            )
        )
        replaced = worst_beaten(compared['student'], compared['assistants'], config.compare)
        pool = [current if a.name == replaced else a for a in pool]
        wrong = np.load(run.workdir / f'rounds/{i:02d}/eval/wrong.npy')
        active = harder_queries(wrong, config.replay, seed=config.seed, round_index=i)
        rounds.append(
            {
                **scores,
                **trained,
                **compared,
                'replaced': replaced,
                'hard_queries': int(wrong.sum()),
            }
        )
    test = final_test(run, teacher, rounds[0], systems, start, current)
    found = run_report.write(
        run, **test, teacher_eval=on_eval['teacher'], rounds=rounds, warnings=warnings
    )
    model.export(found)
    return found


def compare(
    run: Run,
    round_index: int,
    current: DualEncoderSystem,
    pool: Sequence[System],
    references: Sequence[System],
) -> dict:
    """Compare of Algorithm 1: student and assistants on D_eval, by full-corpus retrieval.

    Args:
        run: The run.
        round_index: Of the round.
        current: The student after it.
        pool: The assistants.
        references: What they are compared with beside each other; nothing depends on these.

    Returns:
        `student` {measure: value}, `assistants` and `references` {name: {measure: value}}, and
        the `mean_cosine` of the student's passages. The stage also holds the measures of each
        query, the student's run on D_eval and which train queries it gets wrong: of unlabelled
        ones, those where it does not rank first what stands in for a positive.
    """

    def build_stage(out):
        found = {}
        for system in {s.name: s for s in (current, *pool, *references)}.values():
            ranking, facts = system.rank(run.held_out)
            measured = measuring.measure(run, ranking, run.held_out)
            measured.save(out, system.name)
            found[system.name] = {**measured.means, **facts}
        ranked, _ = current.rank(run.held_out)
        found_run = measures.to_run(ranked, run.held_out.ids, run.collection.passage_ids)
        measures.write_trec_run(out / 'eval.trec', found_run, current.name)
        ranked, _ = current.rank(run.train)
        wrong = measures.wrong_queries(ranked, gen_dataset.targets(run), run.collection.group)
        np.save(out / 'wrong.npy', wrong)
        passages = current.passages
        sample = np.linspace(0, len(passages) - 1, min(len(passages), _SAMPLE)).astype(np.int64)
        return {
            'student': found[current.name],
            'assistants': {a.name: found[a.name] for a in pool},
            'references': {r.name: found[r.name] for r in references},
            'mean_cosine': diagnostics.mean_cosine(passages[sample]),
        }

    stand_ins = gen_dataset.stand_ins(run)
    return run.stage(
        f'rounds/{round_index:02d}/eval',
        {
            **measure_inputs(run, {s.name: s for s in (current, *pool, *references)}.values()),
            'stand_ins': stand_ins and stand_ins['digest'],
        },
        build_stage,
    )['result']


def worst_beaten(
    student_measures: Mapping[str, float],
    assistants: Mapping[str, Mapping[str, float]],
    measure: str,
) -> str | None:
    """Worst of Algorithm 1: the worst assistant, if the student beats it; ties keep it.

    Args:
        student_measures: {measure: value}.
        assistants: {name: {measure: value}}.
        measure: The one that decides.
    """
    if not assistants:
        return None
    worst = min(assistants, key=lambda name: assistants[name][measure])
    beaten = student_measures[measure] > assistants[worst][measure]
    return worst if beaten else None


def harder_queries(wrong: np.ndarray, replay: float, *, seed: int, round_index: int) -> np.ndarray:
    """Rows of the next round's queries: all wrong ones and a random share of the solved ones.

    Where that leaves none, all of them.

    Args:
        wrong: `[Q]` bool, no positive at rank 1.
        replay: Share of the solved queries to keep.
        seed: Of the run.
        round_index: The round that ends.
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
    """Measures every system on the test split; writes run.trec of the final student.

    Returns:
        `test` {system: {measure: value}}, and `significance` of the student's differences from
        the first stage and from its own start, {system: {measure: ...}}; see
        `significance.compare`. The stage also holds the measures of each query.
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
        found = {name: measuring.measure(run, r, run.test) for name, r in rankings.items()}
        for name, measured in found.items():
            measured.save(out, name)
        ours = found['student'].per_query
        return {
            'test': {name: measured.means for name, measured in found.items()},
            'significance': {
                name: significance.compare(ours, found[name].per_query)
                for name in (config.first_stage, 'student_init')
            },
        }

    found = run.stage(
        'test',
        {
            **measure_inputs(run, shown.values()),
            'teacher': {
                m.name: [m.digest, first_round['teacher'][m.name]] for m in teacher.members
            },
            'first': config.first_stage,
        },
        build_stage,
    )['result']
    ranking, _ = final.rank(run.test)
    final_run = measures.to_run(ranking, run.test.ids, run.collection.passage_ids)
    measures.write_trec_run(run.workdir / 'run.trec', final_run, 'student')
    return found

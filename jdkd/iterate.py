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

from jdkd import cautions, gen_dataset, report, student
from jdkd.data import candidates
from jdkd.data.candidates import Lists
from jdkd.retrieval import evaluate, index, significance
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.systems import base
from jdkd.systems.base import System
from jdkd.systems.build import build
from jdkd.systems.encoders import DualEncoderSystem
from jdkd.teacher import Teacher

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
    rounds, warned = [], []
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
        warned += cautions.log(cautions.of_scores(i, scores))
        if i == 0:
            first = systems[config.first_stage]
            on_eval = measure_teacher(run, teacher, scores, first, pool)
            warned += cautions.log(cautions.of_teacher(config.compare, on_eval, first.name))
        trained = model.train_round(i, data, current, pool, scores['scales'])
        current = model.after_round(i)
        compared = compare(run, i, current, pool, [systems[config.first_stage], start])
        warned += cautions.log(
            cautions.of_comparison(i, config.compare, compared, config.first_stage, start.name)
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
    found = report.write(
        run, **test, teacher_eval=on_eval['teacher'], rounds=rounds, warnings=warned
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
            ranking, facts = system.rank(run.eval)
            measured = base.measure(run, ranking, run.eval)
            measured.save(out, system.name)
            found[system.name] = {**measured.means, **facts}
        ranked, _ = current.rank(run.eval)
        found_run = evaluate.to_run(ranked, run.eval.ids, run.collection.passage_ids)
        evaluate.write_trec_run(out / 'eval.trec', found_run, current.name)
        ranked, _ = current.rank(run.train)
        wrong = evaluate.wrong_queries(ranked, gen_dataset.targets(run), run.collection.group)
        np.save(out / 'wrong.npy', wrong)
        passages = current.passages
        sample = np.linspace(0, len(passages) - 1, min(len(passages), _SAMPLE)).astype(np.int64)
        return {
            'student': found[current.name],
            'assistants': {a.name: found[a.name] for a in pool},
            'references': {r.name: found[r.name] for r in references},
            'mean_cosine': cautions.mean_cosine(passages[sample]),
        }

    stand_ins = gen_dataset.stand_ins(run)
    return run.stage(
        f'rounds/{round_index:02d}/eval',
        {
            **base.measuring(run, {s.name: s for s in (current, *pool, *references)}.values()),
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


def rerank(
    run: Run,
    name: str,
    teacher: Teacher,
    weights: Mapping[str, float],
    first: System,
    queries: Queries,
) -> Ranking:
    """The first stage's top passages in the order of a teacher's scores, kept as a stage.

    Args:
        run: The run.
        name: Of the teacher; the stage is `systems/<name>/reranking-<split>`.
        teacher: Scores.
        weights: Of its members, by name.
        first: Its top passages are scored.
        queries: A split's.
    """

    def build_stage(out):
        ranking, _ = first.rank(queries)
        # Slots without a passage are scored as the first one of their query and then put last.
        known = np.where(ranking.passages >= 0, ranking.passages, ranking.passages[:, :1])
        found = np.flatnonzero(known[:, 0] >= 0).astype(np.int32)
        if not len(found):
            raise ValueError(
                f"first_stage '{first.name}' finds no passage for any query of split "
                f"'{queries.split}', so that there is nothing to re-rank; name another system."
            )
        logits = teacher.score(weights, queries, Lists.originals(found, known[found]), out)
        if not distributed.is_first():
            return
        scores = np.full(known.shape, -np.inf, np.float32)
        scores[found] = np.where(ranking.passages[found] >= 0, logits, -np.inf)
        order = np.argsort(-scores, axis=1, kind='stable')
        Ranking(
            np.take_along_axis(ranking.passages, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
        ).save(out, 'ranking')

    path = f'systems/{name}/reranking-{queries.split}'
    run.stage(
        path,
        {
            **base.retrieval(run, [first]),
            'teacher': {m.name: [m.digest, weights[m.name]] for m in teacher.members},
        },
        build_stage,
        resumable=True,
    )
    return index.load_ranking(run.workdir / path, 'ranking')


def measure_teacher(
    run: Run, teacher: Teacher, scores: Mapping, first: System, pool: Sequence[System]
) -> dict[str, dict[str, float]]:
    """{system: {measure: value}} on D_eval: the pool, and `teacher` re-ranking the first stage."""

    def build_stage(out):
        ranking = rerank(run, 'teacher', teacher, scores['teacher'], first, run.eval)
        found = {'teacher': base.measure(run, ranking, run.eval)}
        for system in pool:
            found[system.name] = base.measure(run, system.rank(run.eval)[0], run.eval)
        return {name: measured.means for name, measured in found.items()}

    return run.stage(
        'rounds/00/teacher_eval',
        {
            **base.measuring(run, {s.name: s for s in (first, *pool)}.values()),
            'teacher': {m.name: [m.digest, scores['teacher'][m.name]] for m in teacher.members},
            'first': first.name,
        },
        build_stage,
    )['result']


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
        rankings[report.TEACHER] = rerank(
            run, 'teacher', teacher, first_round['teacher'], shown[config.first_stage], run.test
        )
        found = {name: base.measure(run, r, run.test) for name, r in rankings.items()}
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
            **base.measuring(run, shown.values()),
            'teacher': {
                m.name: [m.digest, first_round['teacher'][m.name]] for m in teacher.members
            },
            'first': config.first_stage,
        },
        build_stage,
    )['result']
    ranking, _ = final.rank(run.test)
    final_run = evaluate.to_run(ranking, run.test.ids, run.collection.passage_ids)
    evaluate.write_trec_run(run.workdir / 'run.trec', final_run, 'student')
    return found

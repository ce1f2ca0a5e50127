"""Compares checkpoints query by query, for ablation.py and peers.py."""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from benchmarks import measure
from jdkd.commands import setup, zero_shot
from jdkd.config import Config
from jdkd.corpus import storage
from jdkd.corpus.collection import Collection
from jdkd.retrieval import measures, significance
from jdkd.run import STUDENT
from jdkd.runtime import files, stages

PerQuery = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Test:
    """Test queries that checkpoints are measured on by `--mode eval`.

    Attributes:
        source: Of the collection, such as beir:PATH.
        split: Its split.
        workdir: Where it is kept, with what was measured.
    """

    source: str
    split: str
    workdir: pathlib.Path

    def measure(self, name: str, model: pathlib.Path, config: Config) -> PerQuery:
        """Measures a checkpoint as the student of a run is, unless that is done.

        Args:
            name: Of the checkpoint among others.
            model: Its directory.
            config: Of the run, with the lengths that fit its collection.

        Returns:
            {query: {measure: value}}.
        """
        overrides = {
            'collections': self.source,
            'splits': self.split,
            'measures': ','.join(config.measures),
            **{f'index.{field}': value for field, value in config.index.to_dict().items()},
            'depth': config.depth,
            'ignore_identical_ids': config.ignore_identical_ids,
            'encoder.query_length': config.student.query_length,
            'encoder.passage_length': config.student.passage_length,
        }
        asked = stages.digest({**overrides, 'model': files.checksums(model)})
        kept = self.workdir / f'{name}.json'
        if not kept.exists() or stages.read_json(kept)['asked'] != asked:
            command = [sys.executable, '-m', 'jdkd.main', '--mode=eval', '--update']
            command += ['--config=configs/eval.py', f'--config.model={model}']
            command += [f'--config.{field}={value}' for field, value in overrides.items()]
            subprocess.run([*command, f'--workdir={self.workdir / "eval"}'], check=True)
            found = measures.load(self._built(self.split), zero_shot.MODEL)
            kept.parent.mkdir(parents=True, exist_ok=True)
            stages.write_json(kept, {'asked': asked, 'per_query': found})
            files.remove(self.workdir / 'eval/replaced')
        return stages.read_json(kept)['per_query']

    def collection(self) -> Collection:
        """Its collection, once something was measured."""
        return storage.open_collection(self._built('collection'))

    def _built(self, stage: str) -> pathlib.Path:
        (name,) = zero_shot.names([self.source])
        return self.workdir / 'eval' / name / stage


def of_run(test: Test | None, name: str, workdir: pathlib.Path) -> PerQuery:
    """What a finished run's student is worth; None for the test of the run itself."""
    if test is None:
        return measures.load(workdir / 'test', STUDENT)
    return test.measure(name, workdir / STUDENT, setup.open_trained_run(workdir).config)


def mean_per_query(seeds: Sequence[PerQuery]) -> dict[str, dict[str, float]]:
    """Each query's measures, averaged over seeds."""
    return {
        query: {m: statistics.fmean(s[query][m] for s in seeds) for m in values}
        for query, values in seeds[0].items()
    }


def means(queries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means of measures, each over the queries that have it: some lack judgements or answers."""
    found: dict[str, list[float]] = {}
    for values in queries:
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def titles(collection: Collection, split: str) -> dict[str, str]:
    """The title of each judged query's first positive: the article that it was asked about."""
    found = {}
    for query in collection.labelled(split):
        grades = collection.qrels[split][query]
        row = collection.id_index.find([next(p for p, grade in grades.items() if grade > 0)])[0]
        found[query] = collection.passages.titles[int(row)]
    return found


def summary(
    measured: Mapping[str, Mapping[str, PerQuery]],
    reference: str,
    titles: Mapping[str, str] | None = None,
) -> dict[str, dict]:
    """What variants are worth.

    Args:
        measured: {variant: {seed: {query: {measure: value}}}}.
        reference: The variant that the others are compared with, on the seeds that both have:
            each query's values are averaged over these seeds, then paired by query. So p tells of
            other queries; what seeds do shows in `by_seed`.
        titles: {query: title}. Queries of one title are alike, and p takes them together.

    Returns:
        {variant: `seeds`, `mean` {measure: value}, `spread` over seeds (standard deviation, None
        for one seed), `less_<reference>` as from `significance.paired_tests`, and the differences
        `by_seed` {measure: {seed: difference}}}.
    """
    found = {}
    means_of = {
        variant: {seed: means(queries.values()) for seed, queries in by_seed.items()}
        for variant, by_seed in measured.items()
    }
    for variant, by_seed in measured.items():
        of_seeds = means_of[variant]
        values = {m: [x[m] for x in of_seeds.values()] for m in next(iter(of_seeds.values()))}
        found[variant] = {
            'seeds': list(by_seed),
            'mean': {m: statistics.fmean(v) for m, v in values.items()},
            'spread': {m: statistics.stdev(v) if len(v) > 1 else None for m, v in values.items()},
        }
        both = [seed for seed in by_seed if seed in measured.get(reference, {})]
        if variant != reference and both:
            ours, theirs = (
                mean_per_query([x[s] for s in both]) for x in (by_seed, measured[reference])
            )
            found[variant][f'less_{reference}'] = significance.paired_tests(ours, theirs, titles)
            found[variant]['by_seed'] = {
                m: {s: of_seeds[s][m] - means_of[reference][s][m] for s in both} for m in values
            }
    return found


def write(
    name: str,
    measured: Mapping[str, Mapping[str, PerQuery]],
    reference: str,
    collection: Collection,
    split: str,
    *,
    variants: Mapping[str, Mapping] | None = None,
    **more,
) -> None:
    """Writes what variants are worth to benchmarks/results/<name>.json.

    Args:
        name: Of the results.
        measured: As for `summary`.
        reference: As for `summary`.
        collection: That they were measured on.
        split: Of it.
        variants: What else is to be said of each.
        **more: What else is to be said.
    """
    known = titles(collection, split)
    found = summary(measured, reference, known)
    for variant, said in (variants or {}).items():
        found[variant] |= said
    about = {'queries': len(known), 'titles': len(set(known.values()))}
    measure.write(name, {**about, **more, 'variants': found})

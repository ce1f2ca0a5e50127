"""Counts what language models are asked for: pairs of a query and a passage, and tokens."""

import dataclasses
from collections.abc import Iterable, Iterator

from jdkd.config import Config, LLMSpec
from jdkd.corpus.lengths import TOKENS_PER_WORD
from jdkd.lists.candidates import count_lists
from jdkd.planning import disk
from jdkd.planning.corpus_size import CorpusSize
from jdkd.systems import roles
from jdkd.systems.llm import prompts

_PROD_DEPTH = 15  # Passages of a query that the teacher scores where hard_queries is prod.


@dataclasses.dataclass(frozen=True)
class ListCounts:
    """How many lists a re-ranker scores, by their length: at most, since some pairs come again."""

    once: tuple[tuple[int, int], ...]  # (lists, passages of each), before or after the rounds.
    per_round: tuple[tuple[int, int], ...]


def lists_to_score(config: Config, size: CorpusSize, name: str) -> ListCounts:
    """The lists that a member of the teacher, or an assistant, which is no encoder of texts scores.

    Those of a round, with their dark examples; and once the first stage's top passages of D_eval
    and, for the report, of the test queries, what may stand in for positives, and the pool that the
    hardest negatives come from. Of queries with several positives that pool has more.
    """
    candidates, once, per_round = config.candidates, [], []
    if not config.rounds:
        return ListCounts((), ())
    lists = disk.count_lists(config, size)
    length = 1 + candidates.hard_negatives + config.dark.reinforced + config.dark.noisy
    per_round.append((lists, length))
    depth = min(config.depth, size.passages)
    if name in config.teacher.members:
        once.append((size.held_out + size.test, depth))
        once.append((size.unlabelled, min(candidates.stand_ins, size.passages)))
        if candidates.hardest:
            queries, scored = size.train + size.held_out, min(candidates.scored, size.passages)
            once.append((queries, 1 + scored))  # One positive each.
            fitted_to = count_lists(config, size.held_out)['eval']
            once.append((fitted_to, 1 + candidates.hard_negatives))
            # Later rounds score what the student, or an assistant that it replaced, mined.
            again = (config.rounds - 1) * queries
            once.append((again, min(candidates.scored, candidates.depth, size.passages)))
        if config.hard_queries == 'prod':
            per_round.append((size.train, min(_PROD_DEPTH, depth)))
    else:
        once.append((size.held_out, depth))
    return ListCounts(tuple(once), tuple(per_round))


@dataclasses.dataclass(frozen=True)
class Requests:
    """What one language model is asked for, at most."""

    name: str
    model: str
    pairs_once: int  # That prompts hold, before or after the rounds.
    pairs_per_round: int
    pairs: int  # Of the whole run.
    tokens: int  # Of all prompts, roughly.

    def __str__(self) -> str:
        return (
            f'{self.name} asks {self.model} for at most {self.pairs:,} pairs, about '
            f'{self.tokens:,} tokens: {self.pairs_once:,} pairs once and {self.pairs_per_round:,} '
            'a round'
        )


def list_requests(config: Config, size: CorpusSize) -> Iterator[Requests]:
    """Yields what each language model of a run is asked for."""
    for name in roles.used(config):
        spec = config.systems.get(name)
        if isinstance(spec, LLMSpec):
            yield _requests(config, size, name, spec)


def _requests(config: Config, size: CorpusSize, name: str, spec: LLMSpec) -> Requests:
    once: list[tuple[int, int]] = []
    per_round: list[tuple[int, int]] = []
    if name in (*config.teacher.members, *config.assistants):
        counts = lists_to_score(config, size, name)
        once, per_round = list(counts.once), list(counts.per_round)
    if name in roles.retrievers(config):
        once.append((size.queries, min(spec.depth, size.passages)))
    passage_tokens = size.passage_tokens or config.student.passage_length
    if spec.passage_words:
        passage_tokens = min(passage_tokens, TOKENS_PER_WORD * spec.passage_words)
    query_tokens = size.query_tokens or config.student.query_length
    template = spec.listwise.prompt if spec.listwise.window else spec.prompt
    per_prompt = query_tokens + TOKENS_PER_WORD * len(template.split())
    prompts_once, pairs_once = _count(spec, once)
    prompts_per_round, pairs_per_round = _count(spec, per_round)
    pairs = pairs_once + config.rounds * pairs_per_round
    asked = prompts_once + config.rounds * prompts_per_round
    tokens = round(pairs * passage_tokens + asked * per_prompt)
    return Requests(name, spec.model, pairs_once, pairs_per_round, pairs, tokens)


def _count(spec: LLMSpec, lists: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Prompts of some lists, and pairs that these hold: windows overlap."""
    num_prompts = num_pairs = 0
    for count, length in lists:
        sizes = [1] * length
        if spec.listwise.window:
            spans = prompts.windows(length, spec.listwise.window, spec.listwise.step)
            sizes = [span.stop - span.start for span in spans]
        num_prompts += count * len(sizes)
        num_pairs += count * sum(sizes)
    return num_prompts, num_pairs

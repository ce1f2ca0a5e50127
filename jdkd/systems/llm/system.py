"""Language models as systems: they score pairs or rank windows, and re-rank the first stage."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging

from jdkd.config import LLMSpec
from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import stages
from jdkd.runtime.messages import brief
from jdkd.systems.llm import prompts
from jdkd.systems.llm.answers import Answers, home
from jdkd.systems.llm.asking import Asker, Question
from jdkd.systems.ranking import keep_ranking
from jdkd.systems.system import ListScorer, System

# What decides no score: where and how fast the model is asked, and how much.
_NOT_IN_DIGEST = ('kind', 'base_url', 'api_key_variable', 'concurrency', 'requests_per_minute')
_NOT_IN_DIGEST += ('timeout', 'retries', 'max_pairs', 'scale')

_PAIRS = 32_768  # Whose texts are in memory at once.


@dataclasses.dataclass(frozen=True)
class _Text:
    """A passage, or a dark example, of a list."""

    title: str
    text: str
    name: str  # For messages.

    @property
    def joined(self) -> str:
        return f'{self.title} {self.text}'.strip()


# (query's text, its name, its texts) of a list.
_Listed = tuple[str, str, Sequence[_Text]]


@dataclasses.dataclass(frozen=True)
class LLMSystem(System):
    """Asks a model behind an endpoint, and keeps its answers in `systems/<name>/answers`.

    Pointwise scores are log P(yes) - log P(no) of the first token. Listwise ones are -log(1 + rank)
    within the list (ours): their softmax at weight w is Zipf's law, p ~ rank^-w.
    """

    may_saturate: ClassVar[bool] = False  # Every listwise list has the same scores.

    spec: LLMSpec
    answers: Answers
    # Whose ranking it re-ranks, and whose order windows begin with; None if neither is asked for.
    first: System | None

    @property
    def reads_index(self) -> bool:
        return self.first is not None and self.first.reads_index

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        first = self._retriever()

        def open_search():
            top, score = first.rank(queries)[0], self.list_scorer(queries)

            def search(part, depth):
                rows = np.arange(len(queries), dtype=np.int32)[part]
                passages = top.passages[rows, : self.spec.depth]
                there = passages >= 0
                lists, own = Lists.from_originals(rows, passages).filled(there)
                scores = np.full(passages.shape, -np.inf, np.float32)
                if len(lists):
                    scores[own] = np.where(there[own], score(lists), -np.inf)
                return _sorted(passages, scores, depth)

            return search, None

        return keep_ranking(self, queries, open_search)

    def list_scorer(self, queries: Queries) -> ListScorer:
        order = self.first.list_scorer(queries) if self._is_listwise and self.first else None

        def score_lists(lists: Lists) -> np.ndarray:
            width = lists.passages.shape[1] + lists.num_dark
            size = max(_PAIRS // width, 1)
            parts = [lists[start : start + size] for start in range(0, len(lists), size)]
            return np.concatenate(
                [
                    self._score(_listed(self.run, queries, part), order and order(part))
                    for part in parts
                ]
            )

        return score_lists

    def search(self, question: str, depth: int) -> Ranking:
        found = self._retriever().search(question, self.spec.depth).passages
        rows = found[0][found[0] >= 0]
        return _sorted(rows[None], self.score(question, rows)[None], depth)

    def score(self, question: str, passages: np.ndarray) -> np.ndarray:
        if not len(passages):
            return np.zeros(0, np.float32)
        order = None
        if self._is_listwise and self.first:
            order = self.first.score(question, passages)[None]
        texts = _texts(self.run, passages)
        return self._score([(question, f"the question '{brief(question)}'", texts)], order)[0]

    @property
    def _is_listwise(self) -> bool:
        return self.spec.listwise.window > 0

    def _retriever(self) -> System:
        if self.first is None or not self.spec.depth:
            raise ValueError(
                f"system '{self.name}' is a language model and ranks no collection; set systems."
                f'{self.name}.depth to the passages of first_stage that it re-ranks, or use it in '
                'teacher.members alone.'
            )
        return self.first

    def _score(self, listed: Sequence[_Listed], order: np.ndarray | None) -> np.ndarray:
        """Scores `[M, N]` of lists of equal lengths; windows begin with the best by `order`."""
        scores = self._score_pairs(listed) if order is None else self._rank_lists(listed, order)
        return np.asarray(scores, np.float32).reshape(len(listed), -1)

    def _score_pairs(self, listed: Sequence[_Listed]) -> list[float]:
        questions = [
            Question(
                prompts.pair_prompt(self.spec, query, text.title, text.text),
                pairs=1,
                what=f'{name} with {text.name}',
            )
            for query, name, texts in listed
            for text in texts
        ]

        def read(response):
            answer = prompts.read_yes_no(response, self.spec)
            if answer is None and self.spec.missing is None:
                raise ValueError(
                    f"neither '{self.spec.yes}' nor '{self.spec.no}' is among the likeliest first "
                    f'tokens; mend the prompt, or set systems.{self.name}.missing to the logit of '
                    'such pairs'
                )
            return answer

        answers = self._asker(read).ask(questions)
        lacking = [i for i, answer in enumerate(answers) if answer is None]
        if lacking:
            if self.spec.missing is None:  # Kept when the config allowed it.
                lost = questions[lacking[0]].what
                raise ValueError(
                    f"systems.{self.name}: the kept answer for {lost} is neither '{self.spec.yes}' "
                    f"nor '{self.spec.no}'; set systems.{self.name}.missing."
                )
            logging.warning(
                "%s: %d of %d answers are neither '%s' nor '%s' and get missing=%g",
                self.name,
                len(lacking),
                len(answers),
                self.spec.yes,
                self.spec.no,
                self.spec.missing,
            )
        return [self.spec.missing if a is None else a[0] - a[1] for a in answers]  # pyright: ignore[reportReturnType]

    def _rank_lists(self, listed: Sequence[_Listed], order: np.ndarray) -> list[np.ndarray]:
        """-log(1 + rank) of the texts of each list, with equal texts at one rank."""
        orders = [_distinct(texts, own) for (_, _, texts), own in zip(listed, order, strict=True)]
        spec, faults = self.spec.listwise, collections.Counter()
        spans = [prompts.windows(len(own), spec.window, spec.step) for own in orders]
        asker = self._asker(prompts.read_text)
        for number in range(max(map(len, spans), default=0)):
            active = [i for i, own in enumerate(spans) if number < len(own)]
            windows = [(listed[i], orders[i][spans[i][number]]) for i in active]
            questions = [
                Question(
                    prompts.window_prompt(self.spec, query, [texts[j].joined for j in rows]),
                    pairs=len(rows),
                    what=f'{name} with {texts[rows[0]].name} and {len(rows) - 1} more',
                )
                for (query, name, texts), rows in windows
            ]
            answers = asker.ask(questions)
            for i, answer in zip(active, answers, strict=True):
                span = spans[i][number]
                own = orders[i][span]
                permutation, own_faults = prompts.parse_permutation(answer, len(own))
                orders[i][span] = [own[j] for j in permutation]
                faults.update({kind: n > 0 for kind, n in own_faults.items()})
                faults['answers'] += 1
        self._warn(faults)
        return [_rank_scores(texts, own) for (_, _, texts), own in zip(listed, orders, strict=True)]

    def _warn(self, faults: collections.Counter) -> None:
        if any(faults[kind] for kind in ('missing', 'repeated', 'unknown')):
            logging.warning(
                '%s: of %d answers, %d leave out passages, which follow in their old order, %d '
                'repeat some, and %d name passages that are not there',
                self.name,
                *(faults[kind] for kind in ('answers', 'missing', 'repeated', 'unknown')),
            )

    def _asker(self, read: Callable[[Any], Any]) -> Asker:
        return Asker(self.name, self.spec, self.answers, read)


def needs_first_stage(spec: LLMSpec) -> bool:
    """Whether a system re-ranks the first stage, or orders windows by it."""
    return bool(spec.depth or spec.listwise.window)


def load(run: Run, name: str, spec: LLMSpec, first: System | None) -> LLMSystem:
    """The language model of a config entry; sends nothing yet.

    `first` is the first stage if `needs_first_stage`, otherwise None.
    """
    decides = {k: v for k, v in spec.to_dict().items() if k not in _NOT_IN_DIGEST}
    digest = stages.digest([decides, first and first.digest])
    answers = Answers(home(run.workdir, name))
    return LLMSystem(name, digest, spec.scale, run, spec, answers, first)


def _listed(run: Run, queries: Queries, lists: Lists) -> list[_Listed]:
    num_dark = lists.num_dark
    dark = lists.dark_texts(run.passages) if num_dark else []
    listed = []
    for i, (row, passages) in enumerate(zip(lists.query.tolist(), lists.passages, strict=True)):
        own = dark[i * num_dark : (i + 1) * num_dark]
        texts = _texts(run, passages)
        texts += [_Text('', text, f'dark example {j}') for j, text in enumerate(own)]
        listed.append((queries.texts[row], f"query '{queries.ids[row]}'", texts))
    return listed


def _texts(run: Run, passages: np.ndarray) -> list[_Text]:
    columns = (run.passages.titles, run.passages.texts, run.collection.passage_ids)
    rows = zip(*(column.take(passages) for column in columns), strict=True)
    return [_Text(title, text, f"passage '{name}'") for title, text, name in rows]


def _distinct(texts: Sequence[_Text], order: np.ndarray) -> list[int]:
    """Places of the different texts of a list, best first by `order`.

    Equal scores go by a hash of the text: places would tell where the positive is.
    """
    first = {text.joined: j for j, text in reversed(list(enumerate(texts)))}
    hashes = {text: hashlib.sha256(text.encode(errors='surrogatepass')).digest() for text in first}
    best = sorted(first, key=lambda text: (-order[first[text]], hashes[text]))
    return [first[text] for text in best]


def _rank_scores(texts: Sequence[_Text], order: Sequence[int]) -> np.ndarray:
    ranks = {texts[j].joined: rank for rank, j in enumerate(order)}
    return -np.log1p([ranks[text.joined] for text in texts])


def _sorted(passages: np.ndarray, scores: np.ndarray, depth: int) -> Ranking:
    """The ranking `[Q, depth]` of passages by their scores, padded with -1."""
    order = np.argsort(-scores, axis=1, kind='stable')[:, :depth]
    rows = np.full((len(passages), depth), -1, np.int32)
    values = np.full(rows.shape, -np.inf, np.float32)
    rows[:, : order.shape[1]] = np.take_along_axis(passages, order, axis=1)
    values[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return Ranking(np.where(np.isinf(values), np.int32(-1), rows), values)

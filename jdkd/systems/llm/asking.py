"""Asks a language model many questions at once, each that the workdir has no answer to."""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import logging

from jdkd.config import LLMSpec
from jdkd.runtime import distributed, progress
from jdkd.systems.llm import prompts
from jdkd.systems.llm.answers import Answers, key_of
from jdkd.systems.llm.client import Client, Stopped

_FEW_QUESTIONS = 64  # That need no progress bar.
_CHARACTERS_PER_TOKEN = 4  # Of English, roughly: for what is told before the server counts.


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt to answer."""

    prompt: str
    pairs: int  # Pairs of a query and a passage that it is about.
    what: str  # Names these in messages.


class Asker:
    """Asks the model of a system, and keeps its answers.

    Args:
        name: The system's.
        read: Response -> answer, a JSON value; raises a ValueError that says what it lacks.
    """

    def __init__(self, name: str, spec: LLMSpec, answers: Answers, read: Callable[[Any], Any]):
        self._name, self._spec, self._answers, self._read = name, spec, answers, read

    def ask(self, questions: Sequence[Question]) -> list[Any]:
        """The answer to each question; those that the workdir has cost nothing.

        Equal prompts are asked once. What a call is about to ask is logged first.

        Raises:
            ValueError: if `max_pairs` does not suffice, before anything is asked; or if an answer
                cannot be used.
            ConnectionError: if the endpoint does not answer.
        """
        self._answers.refresh()
        keys = [self._key(question.prompt) for question in questions]
        left: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if key not in self._answers:
                left.setdefault(key, question)
        if left:
            self._tell(left.values(), sum(question.pairs for question in questions))
            self._ask_all(left)
        return [self._answers[key] for key in keys]

    def _key(self, prompt: str) -> str:
        spec = self._spec
        words = None if spec.listwise.window else [spec.yes, spec.no]
        return key_of([spec.endpoint, prompts.body(spec, prompt), words])

    def _tell(self, left: Collection[Question], total: int) -> None:
        """Logs what will be asked, of `total` pairs; raises a ValueError if that is too much."""
        new = sum(question.pairs for question in left)
        characters = sum(len(question.prompt) for question in left)
        limit, before = self._spec.max_pairs, self._answers.pairs
        if limit is not None and before + new * distributed.process_count() > limit:
            raise ValueError(
                f'systems.{self._name} was asked for {before:,} pairs in this workdir, and the '
                f'next step needs {new:,} more, which max_pairs={limit:,} does not allow; raise it '
                'and add --update, or ask for less: fewer passages (depth, candidates), fewer '
                'queries or rounds.'
            )
        logging.info(
            '%s: asks %s for %s of %s pairs, about %s tokens; %s pairs in the workdir%s',
            self._name,
            self._spec.model,
            f'{new:,}',
            f'{total:,}',
            f'{characters // _CHARACTERS_PER_TOKEN:,}',
            f'{before:,}',
            '' if limit is None else f', max_pairs={limit:,}',
        )

    def _ask_all(self, left: Mapping[str, Question]) -> None:
        begun, used, lock = time.monotonic(), [0, 0], threading.Lock()
        questions = iter(left.items())
        bar = progress.bar(
            len(left), f'{self._name}: asks', 'answers', quiet=len(left) < _FEW_QUESTIONS
        )

        def ask_one(client: Client, key: str, question: Question) -> None:
            body = prompts.body(self._spec, question.prompt)
            response = client.post(body, question.what)
            try:
                answer = self._read(response)
            except ValueError as lack:
                raise ValueError(
                    f'systems.{self._name}: the answer for {question.what} cannot be used: {lack}.'
                ) from None
            tokens = prompts.read_tokens(response)
            self._answers.add(key, answer, pairs=question.pairs, tokens=tokens)
            with lock:
                used[:] = [a + b for a, b in zip(used, tokens, strict=True)]
                bar.update()

        def work(client: Client) -> None:
            while True:
                with lock:
                    question = next(questions, None)
                if question is None:
                    return
                try:
                    ask_one(client, *question)
                except BaseException:
                    client.stop()  # Requests on their way end, and are kept; no other begins.
                    raise

        with (
            bar,
            Client(self._name, self._spec) as client,
            concurrent.futures.ThreadPoolExecutor(self._spec.concurrency) as pool,
        ):
            workers = [pool.submit(work, client) for _ in range(self._spec.concurrency)]
            try:
                concurrent.futures.wait(workers)
            finally:
                client.stop()
        self._answers.sync()
        errors = [e for worker in workers if (e := worker.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, Stopped)):
            raise error
        logging.info(
            '%s: %s answers in %.0f s, %s tokens read and %s written, %d tries repeated',
            self._name,
            f'{len(left):,}',
            time.monotonic() - begun,
            *(f'{count:,}' for count in used),
            client.retried,
        )

"""Asks a language model many questions at once, each that the workdir has no answer to."""

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from jdkd.config import LLMSpec
from jdkd.runtime import distributed, progress
from jdkd.systems.llm import prompts
from jdkd.systems.llm.answers import Answers, key_of
from jdkd.systems.llm.client import Client, Stopped

_FEW_QUESTIONS = 64  # That need no progress bar.
_CHARACTERS_PER_TOKEN = 4  # Of English, roughly: for what is told before the server counts.


class Asker:
    """Asks the model of a system, and keeps its answers.

    Args:
        name: The system's.
        read: Response -> answer, a JSON value; raises a ValueError that says what it lacks.
    """

    def __init__(self, name: str, spec: LLMSpec, answers: Answers, read: Callable[[Any], Any]):
        self._name, self._spec, self._answers, self._read = name, spec, answers, read

    def ask(
        self,
        count: int,
        prompt: Callable[[int], str],
        pairs: Callable[[int], int],
        what: Callable[[int], str],
    ) -> list[Any]:
        """Answers to `count` questions; those that the workdir has cost nothing.

        Equal questions are asked once. What a call is about to ask is logged first.

        Args:
            prompt: The prompt of a question by its number.
            pairs: Number of pairs that it is about.
            what: Names its query and passages in messages.

        Raises:
            ValueError: if `max_pairs` does not suffice, before anything is asked; or if an answer
                cannot be used.
            ConnectionError: if the endpoint does not answer.
        """
        self._answers.refresh()
        keys, left, characters = [], {}, 0
        for i in range(count):
            text = prompt(i)
            keys.append(self._key(text))
            if keys[i] not in self._answers and keys[i] not in left:
                left[keys[i]] = i
                characters += len(text)
        if left:
            self._tell(sum(map(pairs, left.values())), sum(map(pairs, range(count))), characters)
            self._ask_all(left, prompt, pairs, what)
        return [self._answers[key] for key in keys]

    def _key(self, prompt: str) -> str:
        spec = self._spec
        words = None if spec.listwise.window else [spec.yes, spec.no]
        return key_of([spec.endpoint, prompts.body(spec, prompt), words])

    def _tell(self, new: int, total: int, characters: int) -> None:
        """Logs what will be asked; raises a ValueError if that is too much."""
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

    def _ask_all(
        self,
        left: dict[str, int],
        prompt: Callable[[int], str],
        pairs: Callable[[int], int],
        what: Callable[[int], str],
    ) -> None:
        begun, used, lock = time.monotonic(), [0, 0], threading.Lock()
        questions = iter(left.items())
        bar = progress.bar(
            len(left), f'{self._name}: asks', 'answers', quiet=len(left) < _FEW_QUESTIONS
        )

        def ask_one(client: Client, key: str, i: int) -> None:
            response = client.post(prompts.body(self._spec, prompt(i)), lambda: what(i))
            try:
                answer = self._read(response)
            except ValueError as lack:
                raise ValueError(
                    f'systems.{self._name}: the answer for {what(i)} cannot be used: {lack}.'
                ) from None
            tokens = prompts.read_tokens(response)
            self._answers.add(key, answer, pairs=pairs(i), tokens=tokens)
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

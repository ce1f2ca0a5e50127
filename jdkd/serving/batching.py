"""Collects requests into batches for one thread, which owns a system."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


class OverloadedError(Exception):
    """As many requests wait as may wait; the caller should come again later."""


class Batcher(Generic[Item, Result]):
    """Runs a function on batches of whatever has arrived while the last batch was running.

    Nothing waits for a batch to fill: a lone request runs at once, and under load batches grow by
    themselves.

    Args:
        run: Called on one thread with 1 to `largest` items; returns a result for each.
        largest: Most items of a batch.
        waiting: Most items that may wait; more are refused.
    """

    def __init__(
        self, run: Callable[[list[Item]], Sequence[Result]], *, largest: int, waiting: int
    ):
        self._run, self._largest = run, largest
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue(waiting)

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return self._queue.qsize()

    async def __call__(self, item: Item) -> Result:
        """Waits for the result of an item.

        Raises:
            OverloadedError: if too many items wait.
            Exception: what `run` raises for its batch.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise OverloadedError from None
        return await future

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Serves calls while the context lasts."""
        with ThreadPoolExecutor(1) as thread:
            worker = asyncio.create_task(self._serve(thread))
            try:
                yield
            finally:
                worker.cancel()

    async def _serve(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._largest and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # Clients that have left have cancelled their requests.
            batch = [(item, future) for item, future in batch if not future.done()]
            if not batch:
                continue
            items = [item for item, _ in batch]
            try:
                results = await loop.run_in_executor(thread, self._run, items)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

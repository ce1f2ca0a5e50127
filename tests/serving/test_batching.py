"""Batches of requests."""

import asyncio
import threading

import pytest

from jdkd.serving.batching import Batcher, OverloadedError


def serve(scenario, run, **kwargs):
    async def main():
        batcher = Batcher(run, **{'largest': 4, 'waiting': 100, **kwargs})
        async with batcher.started():
            return await scenario(batcher)

    return asyncio.run(main())


def test_every_caller_gets_its_own_result_in_bounded_batches():
    sizes, threads = [], set()

    def run(items):
        sizes.append(len(items))
        threads.add(threading.get_ident())
        return [10 * item for item in items]

    async def scenario(batcher):
        return await asyncio.gather(*(batcher(i) for i in range(30)))

    assert serve(scenario, run) == [10 * i for i in range(30)]
    assert sum(sizes) == 30 and max(sizes) == 4 and len(sizes) <= 9
    assert len(threads) == 1


def test_errors_reach_the_callers_of_the_batch_alone():
    def run(items):
        if 'bad' in items:
            raise ValueError('bad batch')
        return items

    async def scenario(batcher):
        with pytest.raises(ValueError, match='bad batch'):
            await batcher('bad')
        return await batcher('good')

    assert serve(scenario, run) == 'good'


def test_more_than_may_wait_is_refused_and_who_left_is_not_computed():
    go, seen = threading.Event(), []

    def run(items):
        seen.extend(items)
        assert go.wait(60)
        return items

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher(0))]
        while not seen:
            await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(batcher(i)) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await batcher(3)
        tasks[1].cancel()
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = serve(scenario, run, waiting=2)
    assert results[0] == 0 and isinstance(results[1], asyncio.CancelledError) and results[2] == 2
    assert seen == [0, 2]

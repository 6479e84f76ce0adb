"""How far a stream reads ahead: further when nodes make it wait, and never without bound."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from engine.config import StoreConfig
from engine.data.context import BATCH_SIZE_MAX
from engine.data.reader import DEPTH_MAX, WAITED_SIZE
from tests.support.engine import pattern
from tests.support.nodes import Cluster, open_cluster, segments, small_config

MIB = 1 << 20
LARGEST = WAITED_SIZE * BATCH_SIZE_MAX
CONTENT = pattern(48 * MIB)
DELAY_S = 0.005


def config(**settings: int) -> StoreConfig:
    return StoreConfig(data=small_config().data, chunk_size=16 * MIB, **settings)


@pytest.fixture
def patient_clock() -> MockClock:
    """Time passes when nobody has anything to do, worker threads included: they are not seen, so
    they get a moment to end."""
    return MockClock(autojump_threshold=0.05)


async def consume(cluster: Cluster, staged: object, *, pause_s: float = 0.0) -> tuple[float, int]:
    """Read all of it; return how long that took and how many bytes of buffers were held."""
    buffers = cluster.store.buffers
    started = trio.current_time()
    peak = position = 0
    stream = cluster.store.stream(list(segments(staged)))  # type: ignore[arg-type]
    async for view in stream:
        assert view == CONTENT[position : position + len(view)]
        position += len(view)
        peak = max(peak, buffers.outstanding)
        await trio.sleep(pause_s)
    await stream.aclose()
    assert position == len(CONTENT)
    assert buffers.outstanding == buffers.budget.held == 0
    return trio.current_time() - started, peak


async def test_the_latency_of_nodes_is_paid_a_few_times_only(patient_clock: MockClock) -> None:
    async with open_cluster(remote=range(6), config=config(memory=96 * MIB)) as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes:
            node.delay_s = DELAY_S
        seconds, peak = await consume(cluster, staged)
    # 9 batches, one after the other, would take 9 delays.
    assert seconds < 7 * DELAY_S
    assert peak <= (DEPTH_MAX + 1) * LARGEST


async def test_who_is_slower_than_the_nodes_has_one_batch_read_ahead(
    patient_clock: MockClock,
) -> None:
    async with open_cluster(remote=range(6), config=config(memory=96 * MIB)) as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes:
            node.delay_s = DELAY_S
        _, peak = await consume(cluster, staged, pause_s=10 * DELAY_S)
    assert peak <= 2 * LARGEST


async def test_bytes_are_in_order_when_memory_ends_in_between(patient_clock: MockClock) -> None:
    async with open_cluster(remote=range(6), config=config(memory=9 * MIB)) as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes:
            node.delay_s = DELAY_S
        _, peak = await consume(cluster, staged)
    assert peak <= 10 * MIB


async def test_closing_ends_everything_that_is_read_ahead(patient_clock: MockClock) -> None:
    async with open_cluster(remote=range(6), config=config(memory=96 * MIB)) as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes:
            node.delay_s = DELAY_S
        stream = cluster.store.stream(list(segments(staged)))
        for _ in range(5):
            await anext(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert cluster.store.buffers.outstanding > 2 * LARGEST
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert cluster.store.buffers.outstanding == cluster.store.buffers.budget.held == 0

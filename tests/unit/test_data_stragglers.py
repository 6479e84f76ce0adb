"""A write does not wait for its slowest node once enough have it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from engine.data.stragglers import gather
from tests.support.engine import pattern
from tests.support.nodes import open_cluster, segments, small_config

CONTENT = pattern(9_000)
PATIENCE_S = small_config().straggler_s


@pytest.fixture
def patient_clock() -> MockClock:
    """Time passes when nobody has anything to do, worker threads included: they are not seen, so
    they get a moment to end."""
    return MockClock(autojump_threshold=0.01)


async def test_a_write_goes_on_without_a_node_that_does_not_answer(
    patient_clock: MockClock,
) -> None:
    async with open_cluster(remote=range(6)) as cluster:
        cluster.nodes[2].delay_s = 3600.0
        cluster.nodes[2].open_delay_s = 0.0
        started = trio.current_time()
        staged = await cluster.put(CONTENT)
        assert trio.current_time() - started <= PATIENCE_S + 1.0
        assert cluster.nodes[2].memory.open_writers == 0
        assert await cluster.get(staged) == CONTENT
        assert staged.incomplete
        started = trio.current_time()
        await cluster.put(CONTENT)
        assert trio.current_time() - started <= 1.0, "it is suspect now, and not tried"


async def test_nodes_in_doubt_are_tried_before_a_write_is_refused() -> None:
    async with open_cluster(remote=range(6)) as cluster:
        in_doubt, gone = cluster.nodes[0], cluster.nodes[1]
        in_doubt.memory.down = True
        await cluster.put(CONTENT)
        in_doubt.memory.down, gone.memory.down = False, True
        staged = await cluster.put(CONTENT)
        assert await cluster.get(staged) == CONTENT
        assert in_doubt.memory.fragments
        assert staged.incomplete


async def test_a_node_that_hangs_at_the_commit_is_given_up_too(patient_clock: MockClock) -> None:
    async with open_cluster(remote=range(6)) as cluster:
        cluster.nodes[2].commit_delay_s = 3600.0
        started = trio.current_time()
        staged = await cluster.put(CONTENT)
        assert trio.current_time() - started <= PATIENCE_S + 1.0
        [segment] = segments(staged)
        assert cluster.nodes[2].node_id in segment.record.nodes, "it is to get its fragment later"
        assert staged.incomplete


async def test_slow_nodes_without_which_it_is_not_safe_are_waited_for(
    patient_clock: MockClock,
) -> None:
    async with open_cluster(remote=range(6)) as cluster:
        for node in cluster.nodes[:2]:
            node.delay_s = 10 * PATIENCE_S
        staged = await cluster.put(CONTENT)
        assert await cluster.get(staged) == CONTENT
        assert sum(len(node.memory.fragments) for node in cluster.nodes) >= 5


async def test_all_are_waited_for_when_all_are_equally_slow(patient_clock: MockClock) -> None:
    async with open_cluster(remote=range(6)) as cluster:
        for node in cluster.nodes:
            node.delay_s = 10 * PATIENCE_S
        staged = await cluster.put(CONTENT)
        assert not staged.incomplete


async def test_an_error_of_a_call_ends_the_others(patient_clock: MockClock) -> None:
    async def fail() -> bool:
        raise ZeroDivisionError

    async def hang() -> bool:
        await trio.sleep_forever()
        return True

    with pytest.raises(ZeroDivisionError):
        await gather({1: fail, 2: hang}, required=2, patience_s=1.0)

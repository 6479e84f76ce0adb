"""A slow node in another process costs readers little, and never the right bytes."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from engine.data.context import Limiters
from engine.data.pace import PATIENCE_S_FIRST, PATIENCE_S_MAX, PATIENCE_S_MIN, SHUN_S, Pace
from engine.data.reader import INLINE_SIZE_MAX
from engine.errors import Unavailable
from engine.ids import NodeId
from tests.support.engine import pattern
from tests.support.nodes import Cluster, MemoryNode, open_cluster, small_config

REMOTE = range(6)
SLOW_S = 2.0
STUCK_S = 20.0


def node_with(cluster: Cluster, index: int, staged: object) -> MemoryNode:
    [(_, record)] = staged.chunk_records(None)  # type: ignore[attr-defined]
    [node] = [node for node in cluster.nodes if node.node_id == record.nodes[index]]
    return node


@pytest.fixture
def patient_clock() -> MockClock:
    """Time passes when nobody has anything to do, worker threads included: they are not seen, so
    they get a moment to end."""
    return MockClock(autojump_threshold=0.01)


async def timed_get(cluster: Cluster, staged: object, content: bytes) -> float:
    started = trio.current_time()
    assert await cluster.get(staged) == content  # type: ignore[arg-type]
    return trio.current_time() - started


async def test_a_slow_node_is_waited_for_once_and_then_asked_last(
    patient_clock: MockClock,
) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        for node in cluster.nodes:
            node.delay_s = 0.001
        for _ in range(50):
            await timed_get(cluster, staged, content)
        healthy = await timed_get(cluster, staged, content)
        node_with(cluster, 1, staged).delay_s = SLOW_S
        first = await timed_get(cluster, staged, content)
        again = await timed_get(cluster, staged, content)
        assert first <= PATIENCE_S_MIN + 3 * healthy
        assert again <= 3 * healthy
        assert cluster.damage == []


async def test_a_node_that_is_quick_again_is_asked_again(patient_clock: MockClock) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        slow = node_with(cluster, 1, staged)
        slow.delay_s = SLOW_S
        await timed_get(cluster, staged, content)
        slow.delay_s = 0.0
        await trio.sleep(SHUN_S)
        before = slow.memory.reads
        await timed_get(cluster, staged, content)
        assert slow.memory.reads > before


async def test_as_many_slow_nodes_as_parity_are_gone_round(patient_clock: MockClock) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        for index in (0, 3):
            node_with(cluster, index, staged).delay_s = SLOW_S
        assert await timed_get(cluster, staged, content) <= PATIENCE_S_FIRST + 0.1


async def test_slow_nodes_that_are_needed_are_waited_for(patient_clock: MockClock) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        for index in (0, 1, 2):
            node_with(cluster, index, staged).delay_s = SLOW_S
        took = await timed_get(cluster, staged, content)
        assert took >= SLOW_S
        for node in cluster.nodes:
            node.delay_s = SLOW_S
        await timed_get(cluster, staged, content)
        assert cluster.damage == []


async def test_a_slow_node_is_the_last_resort_when_parity_fails(patient_clock: MockClock) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        node_with(cluster, 0, staged).delay_s = SLOW_S
        node_with(cluster, 4, staged).memory.down = True
        node_with(cluster, 5, staged).memory.down = True
        assert await timed_get(cluster, staged, content) >= SLOW_S
        node_with(cluster, 1, staged).memory.down = True
        with pytest.raises(Unavailable):
            await cluster.get(staged)


async def test_one_copy_that_is_slow_gives_way_to_another(patient_clock: MockClock) -> None:
    content = pattern(200)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        node_with(cluster, 0, staged).delay_s = SLOW_S
        assert await timed_get(cluster, staged, content) <= PATIENCE_S_FIRST + 0.1


@pytest.mark.parametrize("pause", [1.5, 4.0])
async def test_a_node_that_delivers_is_waited_for_twice_as_long(
    patient_clock: MockClock, pause: float
) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(content)
        late = node_with(cluster, 1, staged)
        late.pause_s = pause * PATIENCE_S_FIRST
        took = await timed_get(cluster, staged, content)
        assert took == pytest.approx(min(pause, 2.0) * PATIENCE_S_FIRST)
        late.pause_s = 0.0
        before = late.memory.reads
        await timed_get(cluster, staged, content)
        # Only who was given up is asked last for a while.
        assert (late.memory.reads > before) == (pause < 2.0)


async def test_what_came_while_this_process_was_late_is_no_reason_to_ask_others(
    patient_clock: MockClock,
) -> None:
    content = pattern(9_000)
    # Answers and the end of patience are found in one go, in an order that is chance.
    for _ in range(12):
        async with open_cluster(remote=REMOTE) as cluster:
            staged = await cluster.put(content)
            for node in cluster.nodes:
                node.delay_s = PATIENCE_S_FIRST
            await cluster.get(staged)
            for index in (4, 5):
                assert node_with(cluster, index, staged).memory.reads == 0


async def test_local_nodes_beside_slow_ones_are_read_as_ever(patient_clock: MockClock) -> None:
    content = pattern(9_000)
    async with open_cluster(remote=(0, 2)) as cluster:
        staged = await cluster.put(content)
        for position in (0, 2):
            cluster.nodes[position].delay_s = SLOW_S
        assert await timed_get(cluster, staged, content) <= PATIENCE_S_FIRST + 0.1


def test_patience_follows_what_was_measured() -> None:
    pace = Pace(lambda: 0.0)
    node = NodeId(b"node0000")
    assert pace.patience_s == PATIENCE_S_FIRST
    for _ in range(200):
        pace.took(node, 0.1)
    assert pace.patience_s == pytest.approx(0.2)
    for _ in range(200):
        pace.took(node, 0.0001)
    assert pace.patience_s == PATIENCE_S_MIN
    for _ in range(200):
        pace.took(node, 30.0)
    assert pace.patience_s == PATIENCE_S_MAX


def test_a_node_found_slow_again_and_again_is_asked_less_and_less() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    node, other = NodeId(b"node0000"), NodeId(b"node0001")
    shunned = []
    for _ in range(3):
        pace.gave_up(node)
        assert pace.slow([other, node]) == {1}
        started = now[0]
        while pace.slow([node]):
            now[0] += 0.5
        shunned.append(now[0] - started)
    assert shunned == [SHUN_S, 2 * SHUN_S, 4 * SHUN_S]
    pace.took(node, 0.001)
    pace.gave_up(node)
    now[0] += SHUN_S
    assert pace.slow([node]) == set()


async def test_reading_from_nodes_of_other_processes_takes_no_thread() -> None:
    # More than is tried on the trio thread before anything else.
    content = pattern(4 * INLINE_SIZE_MAX)
    config = small_config(chunk_size=2 * INLINE_SIZE_MAX, block_size=4096, memory=4 << 20)
    limiters = Limiters(work=trio.CapacityLimiter(1), disk=trio.CapacityLimiter(1))
    async with open_cluster(remote=REMOTE, config=config, limiters=limiters) as cluster:
        staged = await cluster.put(content)
        async with limiters.work, limiters.disk:
            with trio.fail_after(STUCK_S):
                assert await cluster.get(staged) == content


async def test_all_nodes_are_asked_at_once_what_they_have(patient_clock: MockClock) -> None:
    async with open_cluster(remote=REMOTE) as cluster:
        staged = await cluster.put(pattern(9_000))
        [(chunk_id, record)] = staged.chunk_records(None)
        for node in cluster.nodes:
            node.delay_s = SLOW_S
        node_with(cluster, 2, staged).memory.down = True
        started = trio.current_time()
        states = await cluster.store.examine(chunk_id, record, deep=False)
        assert trio.current_time() - started == SLOW_S
        assert [state.state for state in states] == ["whole"] * 2 + ["down"] + ["whole"] * 3

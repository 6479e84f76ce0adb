"""What every ``Node`` keeps to: run over a drive, its memory twin, and a drive behind a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from engine.ids import NodeId
from engine.node.contract import FragmentDamaged, FragmentMissing, Node, NodeDown
from engine.node.local import LocalNode
from engine.node.memory import MemoryNode
from tests.support.drives import content, fragment, new_drive
from tests.support.members import serving_member

MIB = 1 << 20


@pytest.fixture(params=["local", "memory", "remote"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    opened: Node
    if request.param == "remote":
        async with serving_member(tmp_path / "member") as member:
            opened = member.node()
            yield opened
            await opened.aclose()
        assert member.log.troubles == []
        return
    if request.param == "local":
        drive = new_drive(tmp_path / "drive", volume_size=4 * MIB)
        opened = LocalNode(drive, limiter=trio.CapacityLimiter(4))
    else:
        opened = MemoryNode(NodeId(b"node-id!"))
    yield opened
    await opened.aclose()


async def store(node: Node, number: int, payload: bytes, size_max: int | None = None) -> None:
    writer = await node.open_writer(fragment(number), size_max or len(payload))
    await writer.write([payload])
    await writer.commit()


async def load(node: Node, number: int, offset: int, size: int) -> bytes:
    payload = bytearray(size)
    await node.read_into(fragment(number), offset, [memoryview(payload)])
    return bytes(payload)


async def test_read_returns_what_was_written(node: Node) -> None:
    payload = content(1, 300_000)
    await store(node, 1, payload)
    assert await load(node, 1, 0, 300_000) == payload
    assert await load(node, 1, 1_234, 100_000) == payload[1_234:101_234]
    assert await load(node, 1, 300_000, 0) == b""


async def test_read_of_more_than_the_inline_limit_returns_what_was_written(node: Node) -> None:
    payload = content(2, 3 * MIB)
    await store(node, 2, payload)
    assert await load(node, 2, 0, 3 * MIB) == payload


async def test_buffers_are_filled_one_after_another(node: Node) -> None:
    payload = content(3, 10_000)
    await store(node, 3, payload)
    parts = [bytearray(size) for size in (1, 4_096, 0, 903)]
    await node.read_into(fragment(3), 5_000, [memoryview(part) for part in parts])
    assert b"".join(parts) == payload[5_000:]


async def test_writer_takes_many_buffers_in_many_calls(node: Node) -> None:
    payload = content(4, 5_000)
    writer = await node.open_writer(fragment(4), 100_000)
    await writer.write([payload[index : index + 1] for index in range(3_000)])
    await writer.write([bytearray(payload[3_000:4_000]), memoryview(payload)[4_000:], b""])
    await writer.commit()
    assert await load(node, 4, 0, 5_000) == payload
    info = await node.stat(fragment(4))
    assert info is not None
    assert (info.fragment, info.size) == (fragment(4), 5_000)


async def test_buffers_may_be_reused_after_write(node: Node) -> None:
    buffer = bytearray(b"a" * 1_000)
    writer = await node.open_writer(fragment(5), 2_000)
    await writer.write([buffer])
    buffer[:] = b"b" * 1_000
    await writer.write([buffer])
    await writer.commit()
    assert await load(node, 5, 0, 2_000) == b"a" * 1_000 + b"b" * 1_000


async def test_empty_fragment_is_kept(node: Node) -> None:
    writer = await node.open_writer(fragment(6), 0)
    await writer.commit()
    info = await node.stat(fragment(6))
    assert info is not None
    assert info.size == 0


async def test_fragment_is_invisible_before_commit_and_after_abort(node: Node) -> None:
    writer = await node.open_writer(fragment(7), 100)
    await writer.write([b"x" * 100])
    assert await node.stat(fragment(7)) is None
    assert await node.list(b"", 10) == []
    await writer.abort()
    await writer.abort()
    with pytest.raises(FragmentMissing):
        await load(node, 7, 0, 1)


async def test_more_than_announced_is_refused(node: Node) -> None:
    writer = await node.open_writer(fragment(8), 10)
    with pytest.raises(ValueError):
        await writer.write([b"x" * 11])
    await writer.abort()


async def test_read_past_the_end_is_damage(node: Node) -> None:
    await store(node, 9, b"x" * 100)
    with pytest.raises(FragmentDamaged):
        await load(node, 9, 90, 11)


async def test_deleted_fragments_are_gone_and_absent_ones_no_error(node: Node) -> None:
    for number in range(5):
        await store(node, number, content(number, 1_000))
    await node.delete([fragment(1), fragment(3), fragment(99), fragment(3)])
    await node.delete([fragment(1)])
    await node.delete([])
    left = [info.fragment for info in await node.list(b"", 10)]
    assert left == [fragment(0), fragment(2), fragment(4)]
    with pytest.raises(FragmentMissing):
        await load(node, 3, 0, 1)
    assert await load(node, 4, 0, 1_000) == content(4, 1_000)


async def test_fragment_may_come_back_after_delete(node: Node) -> None:
    await store(node, 1, b"old")
    await node.delete([fragment(1)])
    await store(node, 1, b"newer")
    assert await load(node, 1, 0, 5) == b"newer"


async def test_rewrite_replaces(node: Node) -> None:
    await store(node, 1, b"damaged")
    await store(node, 1, b"repaired")
    assert await load(node, 1, 0, 8) == b"repaired"
    assert (await node.space()).fragments == 1


async def test_list_pages_in_order(node: Node) -> None:
    for number in (5, 3, 9, 1, 7):
        await store(node, number, b"x" * number)
    first = await node.list(b"", 2)
    rest = await node.list(first[-1].fragment, 10)
    assert [info.size for info in first + rest] == [1, 3, 5, 7, 9]


async def test_space_counts_fragments(node: Node) -> None:
    before = await node.space()
    await store(node, 1, b"x" * 10_000)
    after = await node.space()
    assert before.fragments == 0
    assert after.fragments == 1
    assert after.live >= 10_000
    assert 0 < after.free <= after.total


async def test_writers_run_side_by_side(node: Node) -> None:
    async def one(number: int) -> None:
        payload = content(number, 70_000)
        writer = await node.open_writer(fragment(number), 100_000)
        for begin in range(0, 70_000, 10_000):
            await writer.write([payload[begin : begin + 10_000]])
        await writer.commit()

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    for number in range(20):
        assert await load(node, number, 0, 70_000) == content(number, 70_000)


async def test_abort_works_while_being_cancelled(node: Node) -> None:
    writer = await node.open_writer(fragment(1), 100)
    await writer.write([b"x"])
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.abort()
    await store(node, 1, b"whole")
    assert await load(node, 1, 0, 5) == b"whole"


async def test_closed_node_is_down(node: Node) -> None:
    await node.aclose()
    with pytest.raises(NodeDown):
        await node.stat(fragment(1))

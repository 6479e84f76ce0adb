"""What a gateway sees of a member behind a network that fails; real sockets, a real proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engine.ids import NodeId
from engine.node.contract import NodeBusy, NodeDown, NodeError, NodeRefused
from engine.node.wire.auth import Secret
from engine.node.wire.client import MemberClient
from engine.node.wire.pool import ClientLimits
from engine.node.wire.remote import RemoteNode, RemoteWriter
from engine.node.wire.slot import ShelfConfig
from tests.support.drives import content, fragment
from tests.support.logs import Logs
from tests.support.members import PATIENT, SECRET, ServedMember, node_id, serving_member
from tests.support.slow_link import SlowLink, slow_link

MIB = 1 << 20
BIG = ShelfConfig(volume_size=256 * MIB, reserve=0)

# For calls that are to run into a limit: how long that takes is of no interest, only that it ends.
IMPATIENT = ClientLimits(connect_s=0.2, hello_s=0.2, stall_s=0.2, sync_s=0.2, wait_s=0.05)
WATCH_S = 60.0


class Far:
    """A member, the link to it, and a gateway's client at the other end."""

    def __init__(self, member: ServedMember, link: SlowLink, client: MemberClient) -> None:
        self.member = member
        self.link = link
        self.client = client
        self.node = RemoteNode(node_id(1), client)


@asynccontextmanager
async def far_member(tmp_path: Path, limits: ClientLimits = PATIENT) -> AsyncIterator[Far]:
    async with serving_member(tmp_path / "m", shelf_config=BIG) as member:
        with slow_link(member.address) as link:
            client = MemberClient(link.address, SECRET, limits=limits)
            yield Far(member, link, client)
            await client.aclose()


async def store(node: RemoteNode, number: int, payload: bytes) -> None:
    await finish(await node.open_writer(fragment(number), len(payload)), payload)


async def finish(writer: RemoteWriter, payload: bytes) -> None:
    try:
        for begin in range(0, len(payload), MIB):
            await writer.write([payload[begin : begin + MIB]])
        await writer.commit()
    except BaseException:
        await writer.abort()  # noqa: ASYNC102  closes a socket, waits for nothing
        raise


async def load(node: RemoteNode, number: int, size: int) -> bytes:
    payload = bytearray(size)
    await node.read_into(fragment(number), 0, [memoryview(payload)])
    return bytes(payload)


async def settled(member: ServedMember) -> None:
    """Return when no request runs on the member any more."""
    with trio.fail_after(WATCH_S):
        while member.service.metrics.running:  # noqa: ASYNC110  nothing tells
            await trio.sleep(0.01)


async def test_an_idle_connection_that_was_cut_is_replaced_unnoticed(tmp_path: Path) -> None:
    async with far_member(tmp_path) as far:
        await store(far.node, 1, b"kept")
        before = far.link.connections()
        far.link.cut()
        assert await load(far.node, 1, 4) == b"kept"
        far.link.cut()
        await store(far.node, 2, b"more")
        far.link.cut()
        await far.node.delete([fragment(2)])
        assert far.link.connections() == before + 3


async def test_an_answer_that_is_cut_off_is_continued_on_another_connection(
    tmp_path: Path,
) -> None:
    payload = content(1, 8 * MIB)
    async with far_member(tmp_path) as far:
        await store(far.member.node(), 1, payload)
        await far.node.space()
        far.link.behave(cut_down_after=6 * MIB)
        assert await load(far.node, 1, 8 * MIB) == payload


async def test_an_answer_that_is_cut_off_twice_means_that_the_node_is_down(
    tmp_path: Path,
) -> None:
    payload = content(1, 8 * MIB)
    async with far_member(tmp_path) as far:
        await store(far.member.node(), 1, payload)
        far.link.behave(cut_down_after=2 * MIB)
        with pytest.raises(NodeDown):
            await load(far.node, 1, 8 * MIB)
        far.link.behave(cut_down_after=-1)
        assert await load(far.node, 1, 8 * MIB) == payload


@pytest.mark.parametrize("cut_after", [0, 100, MIB, 5 * MIB])
async def test_an_upload_that_is_cut_leaves_nothing(tmp_path: Path, cut_after: int) -> None:
    payload = content(1, 5 * MIB)
    async with far_member(tmp_path) as far:
        await far.node.space()
        writer = await far.node.open_writer(fragment(1), len(payload))
        far.link.behave(cut_up_after=cut_after)
        with pytest.raises(NodeDown):
            await finish(writer, payload)
        await settled(far.member)
        near = far.member.node()
        assert await near.list(b"", 10) == []
        assert (await near.space()).live == 0
        far.link.behave(cut_up_after=-1)
        await store(far.node, 1, payload)
        assert await load(far.node, 1, len(payload)) == payload


@pytest.mark.parametrize("way", ["hold_up", "hold_down"])
async def test_a_link_that_is_silent_in_one_direction_ends_every_call(
    tmp_path: Path, way: str
) -> None:
    async with far_member(tmp_path, IMPATIENT) as far:
        await store(far.member.node(), 1, b"kept")
        far.link.behave(**{way: True})
        with trio.fail_after(WATCH_S):
            for call in (
                far.node.space,
                lambda: far.node.list(b"", 10),
                lambda: far.node.stat(fragment(1)),
                lambda: far.node.delete([fragment(9)]),
                lambda: load(far.node, 1, 4),
                lambda: far.node.open_writer(fragment(2), 10),
                far.client.health,
            ):
                with pytest.raises(NodeDown):
                    await call()


async def test_an_upload_over_a_link_that_went_silent_ends(tmp_path: Path) -> None:
    async with far_member(tmp_path, IMPATIENT) as far:
        with trio.fail_after(WATCH_S):
            writer = await _first_writer(far)
            far.link.behave(hold_up=True)
            with pytest.raises(NodeDown):
                await finish(writer, bytes(64 * MIB))  # more than the buffers on the way hold


async def _first_writer(far: Far) -> RemoteWriter:
    """Open a writer although the limits are short and the machine may be slow."""
    while True:
        try:
            return await far.node.open_writer(fragment(1), 64 * MIB)
        except NodeDown:
            await trio.sleep(0.01)


async def test_a_slow_link_is_no_dead_one(tmp_path: Path) -> None:
    payload = content(1, MIB)
    async with far_member(tmp_path) as far:
        far.link.behave(delay_s=0.02)
        await store(far.node, 1, payload)
        assert await load(far.node, 1, MIB) == payload


async def test_a_cancelled_read_gives_its_memory_and_place_back(tmp_path: Path) -> None:
    payload = content(1, 8 * MIB)
    limits = ClientLimits(connect_s=30, hello_s=30, stall_s=60, connections=1, wait_s=60)
    async with far_member(tmp_path, limits) as far:
        await store(far.member.node(), 1, payload)
        await far.node.space()
        far.link.behave(hold_down=True)
        with trio.move_on_after(0.05):
            await load(far.node, 1, 8 * MIB)
        far.link.behave(hold_down=False)
        assert await load(far.node, 1, 8 * MIB) == payload


async def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    async with far_member(tmp_path) as far:
        writer = await far.node.open_writer(fragment(1), 64 * MIB)
        far.link.behave(hold_up=True)
        with trio.move_on_after(0.05):
            for _ in range(64):
                await writer.write([bytes(MIB)])
        with pytest.raises(NodeDown):
            await writer.commit()
        await writer.abort()
        far.link.behave(hold_up=False)
        await settled(far.member)
        assert await far.node.list(b"", 10) == []


async def test_a_refused_connection_is_a_node_that_is_down(tmp_path: Path) -> None:
    async with far_member(tmp_path) as far:
        far.link.behave(refuse=True)
        with pytest.raises(NodeDown):
            await far.node.space()
        with pytest.raises(NodeDown):
            await far.client.health()
        far.link.behave(refuse=False)
        await far.node.space()


async def test_when_all_connections_are_in_use_a_call_waits_and_then_gives_up(
    tmp_path: Path,
) -> None:
    limits = ClientLimits(connect_s=30, hello_s=30, stall_s=60, connections=2, wait_s=0.05)
    async with far_member(tmp_path, limits) as far:
        writers = [await far.node.open_writer(fragment(number), 10) for number in (1, 2)]
        with pytest.raises(NodeBusy):
            await far.node.space()
        await far.client.health()
        await writers[0].abort()
        await far.node.space()
        await writers[1].abort()


async def test_connections_are_used_again(tmp_path: Path) -> None:
    async with far_member(tmp_path) as far:
        for number in range(10):
            await store(far.node, number, b"x" * 100)
            await load(far.node, number, 100)
        with pytest.raises(NodeError):
            await load(far.node, 99, 100)
        await far.node.space()
        assert far.link.connections() == 1


async def test_another_secret_is_refused_and_logged_once(tmp_path: Path, logs: Logs) -> None:
    logs.expect("^member refused$")
    async with serving_member(tmp_path / "m") as member:
        stranger = MemberClient(
            member.address, Secret(b"another secret altogether"), limits=PATIENT
        )
        node = RemoteNode(node_id(1), stranger)
        for _ in range(3):
            with pytest.raises(NodeRefused, match="another cluster's secret"):
                await node.space()
        with pytest.raises(NodeRefused):
            await stranger.compact()
        await stranger.aclose()
    assert logs.events.count("member refused") == 1


async def test_something_else_at_the_address_is_refused(logs: Logs) -> None:
    logs.expect("^member refused$")

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        host, port = "127.0.0.1", listeners[0].socket.getsockname()[1]
        client = MemberClient(f"{host}:{port}", SECRET, limits=PATIENT)
        with pytest.raises(NodeRefused):
            await RemoteNode(NodeId(b"node-id!"), client).space()
        with pytest.raises(NodeDown):
            await client.health()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"\x16\x03\x01", b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" * 500],
)
async def test_nonsense_at_the_address_means_that_the_node_is_down(nonsense: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(nonsense)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        port = listeners[0].socket.getsockname()[1]
        client = MemberClient(f"127.0.0.1:{port}", SECRET, limits=PATIENT)
        with pytest.raises(NodeDown):
            await client.compact()
        with pytest.raises(NodeDown):
            await client.health()
        nursery.cancel_scope.cancel()

"""A member served over real sockets, by this process: for tests of the wire."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from engine.http.limits import Limits
from engine.http.server import open_listeners, serve
from engine.ids import MemberId, NodeId
from engine.node.disk import Disk
from engine.node.wire.auth import Secret
from engine.node.wire.client import MemberClient
from engine.node.wire.pool import ClientLimits
from engine.node.wire.remote import RemoteNode
from engine.node.wire.service import MemberService, ServiceConfig
from engine.node.wire.shelf import Shelf
from engine.node.wire.slot import ShelfConfig
from tests.support.disk import UnsyncedDisk
from tests.support.drives import STORE
from tests.support.http import RecordingLog

SECRET = Secret(b"a secret of this cluster alone")
MEMBER = MemberId(b"member-1")

# Tests run on machines that are busy with other tests; none of them waits for a limit to pass
# unless it brings shorter ones.
PATIENT = ClientLimits(connect_s=30, hello_s=30, stall_s=60, sync_s=60, wait_s=60)


class ServedMember:
    """A member that listens; ``client`` is a gateway's."""

    def __init__(
        self, shelf: Shelf, service: MemberService, client: MemberClient, log: RecordingLog
    ) -> None:
        self.shelf = shelf
        self.service = service
        self.client = client
        self.address = client.address
        self.log = log

    @property
    def folders(self) -> list[str]:
        return [slot.folder for slot in self.shelf.slots]

    def node(self, number: int = 1) -> RemoteNode:
        return RemoteNode(node_id(number), self.client)

    async def adopt(self) -> None:
        """Make every drive a node: ``node_id(1)``, ``node_id(2)``, ..."""
        nodes = {folder: node_id(number) for number, folder in enumerate(self.folders, 1)}
        await self.client.adopt(MEMBER, STORE, nodes)


def node_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(8, "big"))


@asynccontextmanager
async def serving_member(
    data: Path,
    *,
    drives: int = 1,
    disk: Disk | None = None,
    shelf_config: ShelfConfig | None = None,
    service_config: ServiceConfig | None = None,
    http_limits: Limits | None = None,
    client_limits: ClientLimits = PATIENT,
    adopt: bool = True,
) -> AsyncIterator[ServedMember]:
    """Serve a member with its drives in ``data/drive1`` ...; syncs cost nothing by default."""
    os.makedirs(data, exist_ok=True)
    folders = [data / f"drive{number}" for number in range(1, drives + 1)]
    shelf = Shelf(
        data,
        folders,
        disk=disk or UnsyncedDisk(),
        config=shelf_config or ShelfConfig(volume_size=4 << 20, reserve=0),
    )
    service = MemberService(
        shelf,
        SECRET,
        service_config or ServiceConfig(name="m1", version="0"),
        now_ms=lambda: 1,
    )
    log = RecordingLog()
    [listener] = open_listeners("127.0.0.1", 0)
    client = MemberClient(_address(listener), SECRET, limits=client_limits)
    shutdown = trio.Event()
    await shelf.open()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                partial(
                    serve,
                    service,
                    [listener],
                    limits=http_limits or Limits(),
                    tls=None,
                    log=log.as_logger(),
                    shutdown=shutdown,
                )
            )
            member = ServedMember(shelf, service, client, log)
            if adopt:
                await member.adopt()
            yield member
            await client.aclose()
            shutdown.set()
    finally:
        await client.aclose()  # closes sockets, waits for nothing
        await shelf.aclose()  # shields itself, with a limit


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"

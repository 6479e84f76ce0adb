"""``RemoteNode``: a node of another process, behind the same contract as a local one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.ids import FragmentId, NodeId
from engine.node.contract import (
    Blocking,
    Buffer,
    FragmentDamaged,
    FragmentInfo,
    FragmentMissing,
    NodeDown,
    Space,
)
from engine.node.wire import messages
from engine.node.wire.client import MemberClient, Upload


class RemoteWriter:
    """One call at a time. Cancelling a call ends the connection: nothing of the fragment stays."""

    __slots__ = ("_size", "_size_max", "_upload")

    def __init__(self, upload: Upload, size_max: int) -> None:
        self._upload = upload
        self._size_max = size_max
        self._size = 0

    async def write(self, buffers: Sequence[Buffer]) -> None:
        added = 0
        for buffer in buffers:
            added += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        size = self._size + added
        if size > self._size_max:
            raise ValueError(f"{size} bytes for a fragment of at most {self._size_max}")
        if added:
            await self._upload.send(buffers, added)
        self._size = size

    async def commit(self) -> None:
        await self._upload.finish()

    async def abort(self) -> None:
        self._upload.abort()


class RemoteNode:
    """Beyond the contract, every call may raise NodeBusy and NodeRefused (a NodeDown)."""

    def __init__(self, node_id: NodeId, member: MemberClient) -> None:
        """``member``: shared with the member's other nodes; closed by who made it."""
        self.node_id = node_id
        self.member = member
        self.blocking: Blocking | None = None
        self._base = b"/v1/nodes/%b" % node_id.hex().encode("ascii")
        self._fragments = self._base + b"/fragments/"
        self._closed = False

    def _open_member(self) -> MemberClient:
        if self._closed:
            raise NodeDown(f"{self.member.address}: closed")
        return self.member

    def _target(self, fragment: FragmentId) -> bytes:
        return self._fragments + fragment.hex().encode("ascii")

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None:
        member = self._open_member()
        if any(buffer.nbytes for buffer in buffers):
            await member.read(self._target(fragment), offset, buffers)
            return
        info = await self.stat(fragment)
        if info is None:
            raise FragmentMissing(fragment.hex())
        if not 0 <= offset <= info.size:
            raise FragmentDamaged(f"{fragment.hex()} has {info.size} bytes")

    async def open_writer(self, fragment: FragmentId, size_max: int) -> RemoteWriter:
        target = b"%b?max=%d" % (self._target(fragment), size_max)
        return RemoteWriter(await self._open_member().begin_put(target), size_max)

    async def delete(self, fragments: Sequence[FragmentId]) -> None:
        member = self._open_member()
        for begin in range(0, len(fragments), messages.DELETE_MAX):
            await member.call(
                b"POST",
                self._base + b"/delete",
                b"".join(fragments[begin : begin + messages.DELETE_MAX]),
                stall_s=member.limits.sync_s,
            )

    async def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        member = self._open_member()
        answer = await member.head(self._target(fragment))
        if answer.status == 200:
            return FragmentInfo(fragment, answer.length)
        code = answer.field(messages.ERROR_HEADER)
        error = messages.error_of(code, answer.status, f"{member.address}: stat")
        if isinstance(error, FragmentMissing):
            return None
        raise error

    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        member = self._open_member()
        found: list[FragmentInfo] = []
        while len(found) < limit:
            count = min(limit - len(found), messages.LIST_MAX)
            target = b"%b?after=%b&limit=%d" % (
                self._fragments[:-1],
                after.hex().encode("ascii"),
                count,
            )
            try:
                some = messages.unpack_infos(await member.call(b"GET", target))
            except ValueError as error:
                raise NodeDown(f"{member.address}: is no member: {error}") from error
            found += some
            if len(some) < count:
                break
            after = some[-1].fragment
        return found

    async def space(self) -> Space:
        member = self._open_member()
        body = await member.call(b"GET", self._base + b"/space")
        try:
            return messages.decode_space(body).space()
        except msgspec.MsgspecError as error:
            raise NodeDown(f"{member.address}: is no member: {error}") from error

    async def aclose(self) -> None:
        """Later calls raise NodeDown. The member's connections stay, for its other nodes."""
        self._closed = True

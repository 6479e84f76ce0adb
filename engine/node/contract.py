"""The seam between the data path and whatever keeps fragments: ``Node``.

A node keeps *fragments*: immutable byte strings under a ``FragmentId``. It does not know what the
bytes mean; they carry their own block hashes, checked by the reader end to end. What a node must
know is in this file: a fragment is there whole and durable, or it is not there.

A node of this process (``engine.node.drive.Drive`` behind ``LocalNode``) can also be called
without a thread hop of its own: see ``Blocking``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from engine.ids import FragmentId, NodeId

Buffer: TypeAlias = bytes | bytearray | memoryview


class NodeError(Exception):
    """A node could not do what was asked. The data path handles these; no frontend sees them."""


class FragmentMissing(NodeError):
    """The node works and does not have the fragment."""


class FragmentDamaged(NodeError):
    """The node has the fragment, and what is on disk is not what was written."""


class NodeFull(NodeError):
    """No room for new fragments (the reserve for deletes is kept); reads and deletes work."""


class NodeBusy(NodeError):
    """The node works, and has as much to do as it takes on; the same call may succeed soon."""


class NodeDown(NodeError):
    """The drive or the process behind the node is gone or failed."""


class NodeRefused(NodeDown):
    """The process at the node's address answers, but not to us: another secret, or no member."""


@dataclass(frozen=True, slots=True)
class Space:
    """In bytes. ``free`` is what new fragments may use: the reserve is subtracted already."""

    total: int
    free: int
    live: int
    """Bytes of fragments that can be read."""
    dead: int
    """Bytes in volumes that compaction would give back."""
    fragments: int


@dataclass(frozen=True, slots=True)
class FragmentInfo:
    fragment: FragmentId
    size: int
    """Payload bytes."""


class BlockingWriter(Protocol):
    """Appends one fragment. Not thread-safe: one call at a time, from any thread."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers' bytes. They may be reused by the caller afterwards.

        Raises: NodeFull, NodeDown.
        """

    def commit(self) -> None:
        """Make the fragment whole, durable and visible to every process; blocks for a sync.

        It takes the place of a fragment that is there already under the same id.
        Commits that wait on one volume together are served by one fdatasync.

        Raises: NodeFull, NodeDown (the fragment is then absent or, at worst, an orphan).
        """

    def abort(self) -> None:
        """Give the space back. Never raises; harmless after ``commit`` failed."""


class Blocking(Protocol):
    """A node's calls as plain functions for worker threads; thread-safe."""

    def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview], *, nowait: bool
    ) -> bool:
        """Fill the buffers, one after another, with payload bytes from ``offset`` on.

        With ``nowait`` it returns False, having filled nothing of use, when the bytes are not in
        the page cache (``RWF_NOWAIT``); otherwise True.

        Raises: FragmentMissing, FragmentDamaged (too short), NodeDown.
        """

    def open_writer(self, fragment: FragmentId, size_max: int) -> BlockingWriter:
        """Reserve room for at most ``size_max`` payload bytes.

        Raises: NodeFull, NodeDown.
        """

    def delete(self, fragments: Sequence[FragmentId]) -> None:
        """Remove the fragments, durably; absent ones are no error. Works on a full disk."""

    def stat(self, fragment: FragmentId) -> FragmentInfo | None: ...

    def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        """Return up to ``limit`` fragments with an id above ``after`` (``b""``: all), in order."""

    def space(self) -> Space: ...


class Writer(Protocol):
    """The asynchronous twin of ``BlockingWriter``."""

    async def write(self, buffers: Sequence[Buffer]) -> None: ...
    async def commit(self) -> None: ...
    async def abort(self) -> None: ...


class Node(Protocol):
    """What the data path calls; every method raises what its blocking twin raises."""

    node_id: NodeId

    @property
    def blocking(self) -> Blocking | None:
        """The node's plain functions when it lives in this process, else None."""

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None: ...
    async def open_writer(self, fragment: FragmentId, size_max: int) -> Writer: ...
    async def delete(self, fragments: Sequence[FragmentId]) -> None: ...
    async def stat(self, fragment: FragmentId) -> FragmentInfo | None: ...
    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]: ...
    async def space(self) -> Space: ...
    async def aclose(self) -> None: ...

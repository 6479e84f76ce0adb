"""The proof that metadata and fragments agree. Reads only, unless told to repair counters.

1. Every version and part has its bytes: inline rows are there, chunks have rows that name it.
2. Every chunk has an owner: the version or part that its row names exists and names it.
3. Every fragment that a chunk names is on its node; with ``deep`` every block is verified.
4. Every fragment on a node belongs to a chunk that names it there, unless a live session may
   still be writing it, or it waits for deletion.
5. The usage counters add up; they can be put right, as quotas depend on them.

A node that does not answer is said to be unchecked, and the store is not clean then.

The store may be in use meanwhile: a discrepancy counts only when it is still there on a second
look at the rows concerned. Memory does not depend on the number of objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import trio

from engine.ids import (
    BucketId,
    ChunkId,
    FragmentId,
    NodeId,
    SessionId,
    chunk_of,
    session_of,
)
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    ChunkData,
    ChunkRecord,
    Data,
    InlineRow,
    PartData,
    PartRecord,
    VersionRecord,
    decode_chunk,
    decode_garbage,
    decode_manifest,
    decode_part,
    decode_session,
    decode_version,
)
from engine.node.contract import NodeDown, NodeError
from engine.services.scan import scan, scan_prefix
from engine.store import Store
from engine.types import FsckReport

PROBLEMS_SHOWN = 100
PROGRESS_EVERY = 500
NODE_PAGE = 1000
USAGE_PAGE = 10_000
DATED_BACK_MS_MAX = 60_000
"""Garbage is dated before it is committed; so much later none comes with an earlier date."""
SUSPECTS_MAX = 10_000
MOVED_S = 2.0
"""A fragment is on its new node for so long, at most, before its chunk names it there."""

Progress = Callable[[str, int, int], None]


class _Counts(msgspec.Struct):
    objects: int = 0
    versions: int = 0
    uploads: int = 0
    chunks: int = 0
    fragments: int = 0
    missing_fragments: int = 0
    damaged_fragments: int = 0
    orphan_fragments: int = 0
    orphan_chunks: int = 0
    unreadable_chunks: int = 0
    wrong_counters: int = 0
    repaired_counters: int = 0
    unchecked_fragments: int = 0
    unchecked_nodes: int = 0


class _Usage(NamedTuple):
    """The counters at one moment."""

    by_bucket: dict[BucketId, tuple[int, int]]
    """(bytes, versions)"""
    head: bytes | None
    """Differs once any key was changed."""


async def check_store(
    store: Store,
    *,
    deep: bool = False,
    repair_counters: bool = False,
    progress: Progress | None = None,
) -> FsckReport:
    """Return what was proved and what was found wrong; ``repair_counters``: put counters right
    that are proved wrong."""
    check = _Check(store, deep, progress or (lambda phase, done, total: None))
    await check.run(repair_counters)
    return FsckReport(**msgspec.structs.asdict(check.counts), problems=check.problems)


class _Garbage:
    """What waits for collection, as far as it was seen; memory depends on how much that is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunks: set[ChunkId] = set()
        self._uploads: set[bytes] = set()
        self._begin = keyspace.GARBAGE

    async def has_chunk(self, chunk_id: ChunkId) -> bool:
        """Return whether a chunk waits. (Those of parts wait by their upload.)"""
        if chunk_id not in self._chunks:
            await self._look()
        return chunk_id in self._chunks

    async def has_upload(self, upload_id: bytes) -> bool:
        """Return whether an upload waits with all its parts."""
        if upload_id not in self._uploads:
            await self._look()
        return upload_id in self._uploads

    async def _look(self) -> None:
        """Read the rows that are new since the last look."""
        end = keyspace.after_prefix(keyspace.GARBAGE)
        last = b""
        async for key, row in scan(self._store.db, self._begin, end):
            last = key
            match decode_garbage(row).data:
                case ChunkData(chunks=chunks):
                    self._chunks.update(chunk_id for chunk_id, _ in chunks)
                case PartData(upload_id=upload_id):
                    self._uploads.add(upload_id)
                case _:
                    pass
        if last:
            newest_ms = int.from_bytes(last[1:7], "big")
            dated_ms = max(newest_ms - DATED_BACK_MS_MAX, 0)
            self._begin = max(self._begin, keyspace.GARBAGE + dated_ms.to_bytes(6, "big"))


class _Check:
    def __init__(self, store: Store, deep: bool, progress: Progress) -> None:
        self._store = store
        self._deep = deep
        self._progress = progress
        self._garbage = _Garbage(store)
        self.counts = _Counts()
        self.problems: list[str] = []

    def _problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append(text)

    async def run(self, repair_counters: bool) -> None:
        before = await self._usage()
        seen = await self._check_versions()
        await self._check_parts()
        await self._check_uploads()
        if await self._usage() == before:
            await self._check_usage(seen, before, repair_counters)
        await self._check_chunks()
        await self._check_nodes()

    async def _get(self, key: bytes) -> bytes | None:
        async def body(tr: ReadTransaction) -> bytes | None:
            return await tr.get(key)

        return await self._store.db.read(body)

    # Usage

    async def _usage(self) -> _Usage:
        async def body(tr: ReadTransaction) -> _Usage:
            return await _read_usage(tr)

        return await self._store.db.read(body)

    async def _check_usage(
        self, seen: dict[BucketId, tuple[int, int]], counted: _Usage, repair: bool
    ) -> None:
        """Compare what was seen with the counters, which were the same before and after."""
        wrong = [
            bucket
            for bucket in seen.keys() | counted.by_bucket.keys()
            if seen.get(bucket, (0, 0)) != counted.by_bucket.get(bucket, (0, 0))
        ]
        if wrong and repair and await self._repair_usage(wrong, seen, counted):
            self.counts.repaired_counters += len(wrong)
            return
        for bucket in wrong:
            self.counts.wrong_counters += 1
            self._problem(
                f"bucket {bucket.hex()}: counted {counted.by_bucket.get(bucket)}, "
                f"there are {seen.get(bucket)} (bytes, versions)"
            )

    async def _repair_usage(
        self, wrong: list[BucketId], seen: dict[BucketId, tuple[int, int]], counted: _Usage
    ) -> bool:
        """Make the counters right unless a key was changed since; return whether it was done."""

        async def body(tr: Transaction) -> bool:
            if await _read_usage(tr) != counted:
                return False
            for bucket in wrong:
                is_size, is_count = seen.get(bucket, (0, 0))
                was_size, was_count = counted.by_bucket.get(bucket, (0, 0))
                tr.add(keyspace.usage(bucket, 0, b"b"), is_size - was_size)
                tr.add(keyspace.usage(bucket, 0, b"n"), is_count - was_count)
            return True

        return await self._store.db.run(body)

    # Versions, parts and uploads

    async def _check_versions(self) -> dict[BucketId, tuple[int, int]]:
        seen: dict[BucketId, tuple[int, int]] = {}
        for subspace in (keyspace.OBJECT, keyspace.VERSION):
            done = 0
            async for row_key, row in scan_prefix(self._store.db, subspace):
                record = decode_version(row)
                self.counts.versions += 1
                self.counts.objects += subspace == keyspace.OBJECT
                if not record.delete_marker:
                    bucket = BucketId(row_key[1:9])
                    size, count = seen.get(bucket, (0, 0))
                    seen[bucket] = (size + record.size, count + 1)
                    await self._check_data(row_key, row, record)
                done += 1
                if done % PROGRESS_EVERY == 0:
                    self._progress("versions", done, 0)
        return seen

    async def _check_data(
        self, row_key: bytes, row: bytes, record: VersionRecord | PartRecord
    ) -> None:
        problem = await self._data_problem(record.data, record)
        if not problem:
            return
        # Collection takes an upload's bytes before its part rows, and those before the garbage
        # row: so the garbage is looked for first.
        if isinstance(record, PartRecord) and await self._garbage.has_upload(row_key[1:-2]):
            return
        if await self._get(row_key) == row:
            self.counts.unreadable_chunks += 1
            self._problem(f"row {row_key!r}: {problem}")

    async def _data_problem(self, data: Data, record: VersionRecord | PartRecord) -> str:
        match data:
            case InlineRow():
                row = await self._get(keyspace.inline(record.data_id))
                if row is None or len(row) != record.size:
                    return "its bytes are missing"
            case ChunkData(chunks=chunks):
                for chunk_id, size in chunks:
                    row = await self._get(keyspace.chunk(chunk_id))
                    if row is None:
                        return f"chunk {chunk_id.hex()} has no row"
                    chunk = decode_chunk(row)
                    if chunk.size != size or chunk.owner.data_id != record.data_id:
                        return f"chunk {chunk_id.hex()} has another size or owner"
            case PartData(upload_id=upload_id):
                row = await self._get(keyspace.manifest(upload_id))
                if row is None:
                    return f"upload {upload_id.hex()} has no manifest"
                for number, size in decode_manifest(row).parts:
                    part = await self._get(keyspace.part(upload_id, number))
                    if part is None or decode_part(part).size != size:
                        return f"part {number} of upload {upload_id.hex()} is missing or differs"
            case _:
                pass
        return ""

    async def _check_parts(self) -> None:
        async for row_key, row in scan_prefix(self._store.db, keyspace.PART):
            await self._check_data(row_key, row, decode_part(row))

    async def _check_uploads(self) -> None:
        async for _ in scan_prefix(self._store.db, keyspace.UPLOAD):
            self.counts.uploads += 1

    # Chunks and their fragments

    async def _check_chunks(self) -> None:
        total = 0
        async for _ in scan_prefix(self._store.db, keyspace.CHUNK):
            total += 1
        async for key, row in scan_prefix(self._store.db, keyspace.CHUNK):
            chunk_id, record = ChunkId(key[1:]), decode_chunk(row)
            self.counts.chunks += 1
            if not await self._owned(chunk_id, record) and await self._is_orphan(chunk_id):
                self.counts.orphan_chunks += 1
                self._problem(f"chunk {chunk_id.hex()} has no owner")
            await self._check_fragments(chunk_id, record)
            if self.counts.chunks % PROGRESS_EVERY == 0 or self._deep:
                self._progress("chunks", self.counts.chunks, total)

    async def _is_orphan(self, chunk_id: ChunkId) -> bool:
        """Return whether the chunk is there on a second look, and has no owner still."""
        if await self._garbage.has_chunk(chunk_id):
            return False
        row = await self._get(keyspace.chunk(chunk_id))
        return row is not None and not await self._owned(chunk_id, decode_chunk(row))

    async def _owned(self, chunk_id: ChunkId, record: ChunkRecord) -> bool:
        owner = record.owner
        if owner.upload_id is not None:
            row = await self._get(keyspace.part(owner.upload_id, owner.part_number))
            return row is not None and decode_part(row).data_id == owner.data_id
        for key in (
            keyspace.object_(owner.bucket_id, owner.key),
            keyspace.version(owner.bucket_id, owner.key, owner.sequence),
        ):
            row = await self._get(key)
            if row is not None and decode_version(row).data_id == owner.data_id:
                return True
        return False

    async def _is_garbage(self, chunk_id: ChunkId, record: ChunkRecord) -> bool:
        upload_id = record.owner.upload_id
        if await self._garbage.has_chunk(chunk_id):
            return True
        return upload_id is not None and await self._garbage.has_upload(upload_id)

    async def _check_fragments(self, chunk_id: ChunkId, record: ChunkRecord) -> None:
        states = await self._store.data.examine(chunk_id, record, deep=self._deep)
        self.counts.fragments += len(states)
        bad = [state for state in states if state.state != "whole"]
        if not bad or await self._is_garbage(chunk_id, record):
            return  # collection has taken some fragments already, and not yet all
        if await self._get(keyspace.chunk(chunk_id)) is None:
            return  # it has taken the chunk, and then the garbage row
        unchecked = 0
        for state in bad:
            if state.state == "damaged":
                self.counts.damaged_fragments += 1
            elif state.state == "down" and not self._store.pool.gone(state.node_id):
                unchecked += 1
            else:
                self.counts.missing_fragments += 1
            node = record.nodes[state.index].hex()
            self._problem(
                f"chunk {chunk_id.hex()}: fragment {state.index} on node {node} is {state.state}"
            )
        self.counts.unchecked_fragments += unchecked
        if len(states) - len(bad) + unchecked < record.data_blocks:
            self.counts.unreadable_chunks += 1
            self._problem(f"chunk {chunk_id.hex()}: too few fragments are left to read it")

    # What is on the nodes

    async def _live_sessions(self) -> set[SessionId]:
        live: set[SessionId] = set()
        async for key, row in scan_prefix(self._store.db, keyspace.SESSION):
            if not decode_session(row).dead:
                live.add(SessionId(key[1:]))
        return live

    async def _check_nodes(self) -> None:
        live = await self._live_sessions()
        suspects: list[tuple[NodeId, FragmentId]] = []
        for node_id in self._store.pool.ids():
            try:
                await self._check_node(node_id, live, suspects)
            except NodeError as error:
                # What a node had that is gone for good is counted as missing, chunk by chunk.
                if not self._store.pool.gone(node_id):
                    self.counts.unchecked_nodes += 1
                    self._problem(f"node {node_id.hex()} could not be asked: {error}")
        for _, fragment in suspects:
            if await self._get(keyspace.chunk(chunk_of(fragment)[0])) is not None:
                # It may be moving: its chunk, or a stray, names it in a moment.
                await trio.sleep(MOVED_S)
                break
        for node_id, fragment in suspects:
            if not await self._is_settled(node_id, fragment, live):
                self._orphan(node_id, fragment)

    def _orphan(self, node_id: NodeId, fragment: FragmentId) -> None:
        self.counts.orphan_fragments += 1
        self._problem(f"node {node_id.hex()}: {fragment.hex()} has no owner")

    async def _check_node(
        self, node_id: NodeId, live: set[SessionId], suspects: list[tuple[NodeId, FragmentId]]
    ) -> None:
        node = self._store.pool.get(node_id)
        if node is None:
            raise NodeDown("it is not there")
        after = b""
        done = 0
        while page := await node.list(after, NODE_PAGE):
            for info in page:
                if await self._belongs(node_id, info.fragment, live):
                    continue
                if len(suspects) < SUSPECTS_MAX:
                    suspects.append((node_id, info.fragment))
                elif not await self._is_settled(node_id, info.fragment, live):
                    self._orphan(node_id, info.fragment)
            after = page[-1].fragment
            done += len(page)
            self._progress("fragments on nodes", done, 0)

    async def _is_settled(
        self, node_id: NodeId, fragment: FragmentId, live: set[SessionId]
    ) -> bool:
        """Return whether, on a second look, the fragment belongs to the node or is not there."""
        if await self._belongs(node_id, fragment, live):
            return True
        node = self._store.pool.get(node_id)
        try:
            return node is not None and await node.stat(fragment) is None
        except NodeError:
            return False

    async def _belongs(self, node_id: NodeId, fragment: FragmentId, live: set[SessionId]) -> bool:
        chunk_id, index = chunk_of(fragment)
        if session_of(chunk_id) in live:
            return True
        row = await self._get(keyspace.chunk(chunk_id))
        if row is not None and decode_chunk(row).nodes[index] == node_id:
            return True
        # It moved elsewhere while the node was away; repair deletes it here.
        return await self._get(keyspace.stray(node_id, fragment)) is not None


async def _read_usage(tr: ReadTransaction) -> _Usage:
    totals: dict[BucketId, list[int]] = defaultdict(lambda: [0, 0])
    begin = keyspace.USAGE
    end = keyspace.after_prefix(begin)
    while rows := await tr.get_range(begin, end, limit=USAGE_PAGE):
        for key, row in rows:
            value = int.from_bytes(row, "little", signed=True)
            totals[BucketId(key[1:9])][0 if key.endswith(b"b") else 1] += value
        begin = keyspace.after(rows[-1][0])
    by_bucket = {bucket: (size, count) for bucket, (size, count) in totals.items()}
    return _Usage(by_bucket, await tr.get(keyspace.FEED_HEAD))

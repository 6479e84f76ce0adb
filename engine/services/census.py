"""The census: proof, by merging sorted lists, of which fragments are there.

Chunk rows and each node's list of fragments have one order. So for a page of chunk rows the nodes'
lists are read as far as the page goes, and what is named and not listed is missing, what is listed
and not named is an orphan: flat memory, no request per fragment. Only its counts are shown as facts
(``lode status``); what it finds missing is queued for repair, orphans become strays.

The store is in use meanwhile, so a discrepancy counts only when it is still there on a second look.
It runs in turn with what moves fragments (``engine.services.upkeep``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import structlog
import trio

from engine.cluster.census_end import after_census
from engine.cluster.membership import asked_for
from engine.data.batch import layout_of
from engine.errors import Corrupt
from engine.ids import ChunkId, FragmentId, NodeId, chunk_of, fragment_id, session_of
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, ChunkRecord, decode_chunk, decode_session, encode
from engine.node.contract import FragmentInfo, Node, NodeError
from engine.services.progress import Progress, count_chunks, next_page
from engine.services.repair import AT_RISK, queue_repairs
from engine.store import Store
from engine.types import CensusStatus

NAME = "census"
RESULT = keyspace.setting("census")
CHUNKS = 500
NODE_PAGE = 1000
YIELD_EVERY = 64
UNASKED_S = 60.0
"""So long after a census that could not ask some nodes comes another, at least."""
PAUSE_FACTOR = 10
"""After a census that took a second the next one waits for ten, whoever asks for it."""

Facts = dict[str, int]


class CensusRecord(msgspec.Struct, array_like=True, frozen=True):
    """The result of the last census that came to its end."""

    format: int
    started_ms: int
    ended_ms: int
    counts: Facts


_decode = msgspec.msgpack.Decoder(CensusRecord).decode


async def last_census(store: Store) -> CensusRecord | None:
    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(RESULT)

    row = await store.db.read(body)
    return None if row is None else _decode(row)


async def census_status(store: Store) -> CensusStatus | None:
    """Return what the last census proved."""
    last = await last_census(store)
    if last is None:
        return None
    count = last.counts.get
    return CensusStatus(
        as_of_ms=last.ended_ms,
        chunks=count("chunks", 0),
        fragments=count("fragments", 0),
        whole=count("whole", 0),
        missing=count("missing", 0),
        unasked=count("unasked", 0),
        chunks_at_risk=count("at risk", 0),
        chunks_unreadable=count("unreadable", 0),
        chunks_sharing=count("sharing", 0),
        orphans=count("orphans", 0),
    )


class Census:
    """Concurrency: used by the task of ``Upkeep`` only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._walk: _Walk | None = None

    def forget(self) -> None:
        """Read what was written down again: another process may have gone on meanwhile."""
        self._walk = None

    async def due_in(self) -> float:
        """Return the seconds until there is something to do; 0: one is under way or asked for."""
        if self._walk is not None:
            return 0.0
        store = self._store
        progress = await Progress.load(store, NAME)
        if progress is not None and not progress.record.ended:
            return 0.0
        last = await last_census(store)
        if last is None:
            return 0.0

        async def body(tr: ReadTransaction) -> int:
            return await asked_for(tr, NAME)

        pause_ms = PAUSE_FACTOR * (last.ended_ms - last.started_ms)
        due_ms = last.started_ms + store.config.census_period_s * 1000
        if await store.db.read(body) >= last.started_ms:
            due_ms = last.ended_ms + pause_ms
        elif last.counts.get("unasked"):
            due_ms = min(due_ms, last.ended_ms + max(pause_ms, UNASKED_S * 1000))
        return max(0.0, (due_ms - store.clock()) / 1000)

    async def run(self, stop: Callable[[], bool]) -> None:
        """Go on with the walk, or begin another, until it ends or ``stop`` says so.

        Raises: EngineError.
        """
        store = self._store
        if self._walk is None:
            progress = await Progress.load(store, NAME)
            if progress is None or progress.record.ended:
                total = await count_chunks(store)
                progress = Progress.begin(store, NAME, NAME, total=total)
                await progress.save(now=True)
            self._walk = _Walk(store, progress)
        walk = self._walk
        while await walk.step():
            if stop():
                await walk.progress.save(now=True)
                return
        await walk.finish()
        self._walk = None


async def take_census(store: Store) -> CensusStatus:
    """Take a whole census now, beside whatever runs; for tests and commands."""
    census = Census(store)
    await census.run(lambda: False)
    result = await census_status(store)
    assert result is not None
    return result


class _Listing:
    """What a node has, in order, read as far as it is asked for."""

    def __init__(self, node: Node, after: bytes) -> None:
        self._node = node
        self._after = after
        self._page: Sequence[FragmentInfo] = ()
        self._at = 0
        self._ended = False

    async def until(self, end: bytes) -> AsyncIterator[list[FragmentInfo]]:
        """Yield pages of what comes before ``end`` and was not given yet. Raises NodeError."""
        while not self._ended or self._at < len(self._page):
            if self._at == len(self._page):
                self._page = await self._node.list(self._after, NODE_PAGE)
                self._at = 0
                self._ended = len(self._page) < NODE_PAGE
                if not self._page:
                    return
                self._after = self._page[-1].fragment
            start = self._at
            while self._at < len(self._page) and self._page[self._at].fragment < end:
                self._at += 1
            if self._at > start:
                yield list(self._page[start : self._at])
            if self._at < len(self._page):
                return


class _Walk:
    def __init__(self, store: Store, progress: Progress) -> None:
        self._store = store
        self.progress = progress
        self._counts = Counter(progress.record.counts)
        # A resumed walk lists again from where the last page of chunks ended.
        self._from = bytes(progress.record.cursor[1:])
        self._bad: list[tuple[ChunkId, list[int], str]] = []
        """Chunks of this page that are to be repaired."""
        self._listings: dict[NodeId, _Listing | None] = {}
        """None: the node could not be asked; it is not asked again in this walk."""

    async def step(self) -> bool:
        """Take the next page of chunks; return whether there may be more."""
        record = self.progress.record
        page = await next_page(self._store.db, record.cursor, CHUNKS)
        last = len(page) < CHUNKS
        end = b"\xff" * 17 if last else keyspace.after(page[-1][0] + b"\xff")
        named = [node_id for _, chunk in page for node_id in chunk.nodes]
        found = await self._list_nodes(named, end, {chunk_id for chunk_id, _ in page})
        for number, (chunk_id, chunk) in enumerate(page):
            await self._count(chunk_id, chunk, found)
            if number % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()
        for node_id, sizes in found.items():
            # Of chunks on this page, which do not name them there.
            await self._examine_loose(node_id, [FragmentId(name) for name in sizes])
        if self._bad:
            # Before the cursor moves on: a census that is killed finds them again.
            self._counts["queued"] += len(await queue_repairs(self._store, self._bad))
            self._bad = []
        if page:
            record.done += len(page)
            record.settled = record.done
            record.cursor = keyspace.after(keyspace.chunk(page[-1][0]) + b"\xff")
        record.counts = dict(self._counts)
        await self.progress.save()
        return not last

    async def _list_nodes(
        self, named: Sequence[NodeId], end: bytes, chunks: set[ChunkId]
    ) -> dict[NodeId, dict[bytes, int]]:
        """Return the sizes of the page's fragments by node, and deal with those of no chunk.

        A node that could not be asked is not in the result.
        """
        pool = self._store.pool
        found: dict[NodeId, dict[bytes, int]] = {}
        for node_id in {*pool.ids(), *named}:
            if node_id not in self._listings:
                node = pool.usable(node_id)
                self._listings[node_id] = _Listing(node, self._from) if node else None
            listing = self._listings[node_id]
            if listing is None:
                continue
            sizes: dict[bytes, int] = {}
            try:
                async for infos in listing.until(end):
                    loose = []
                    for info in infos:
                        if info.fragment[:16] in chunks:
                            sizes[info.fragment] = info.size
                        else:
                            loose.append(info.fragment)
                    await self._examine_loose(node_id, loose)
            except NodeError as error:
                pool.failed(node_id, error)
                self._listings[node_id] = None
                continue
            found[node_id] = sizes
        return found

    async def _count(
        self, chunk_id: ChunkId, chunk: ChunkRecord, found: dict[NodeId, dict[bytes, int]]
    ) -> None:
        counts = self._counts
        try:
            size = layout_of(chunk_id, chunk).fragment_size
        except Corrupt:
            counts["chunks"] += 1
            counts["unreadable"] += 1
            return
        whole, suspect, unasked = 0, [], 0
        for index, node_id in enumerate(chunk.nodes):
            counts[f"named {node_id.hex()}"] += 1
            sizes = found.get(node_id)
            if sizes is None:
                if self._store.pool.gone(node_id):
                    suspect.append(index)
                else:
                    unasked += 1
            elif sizes.pop(fragment_id(chunk_id, index), None) == size:
                whole += 1
            else:
                suspect.append(index)
        missing: list[int] = []
        if suspect:
            current, missing = await self._look_again(chunk_id, chunk, suspect, size)
            if current is None:
                for node_id in chunk.nodes:
                    counts[f"named {node_id.hex()}"] -= 1
                return  # deleted, or moved, meanwhile
            whole += len(suspect) - len(missing)
        counts["chunks"] += 1
        counts["fragments"] += len(chunk.nodes)
        counts["whole"] += whole
        counts["missing"] += len(missing)
        counts["unasked"] += unasked
        for index in missing:
            counts[f"missing {chunk.nodes[index].hex()}"] += 1
        at_risk = chunk.parity_blocks > 0 and whole <= chunk.data_blocks
        counts["at risk"] += at_risk
        counts["unreadable"] += whole < chunk.data_blocks
        pool = self._store.pool
        counts["sharing"] += pool.crowded(chunk.nodes) and pool.domains() >= len(chunk.nodes)
        if missing:
            self._bad.append((chunk_id, missing, AT_RISK if at_risk else "missing"))

    async def _look_again(
        self, chunk_id: ChunkId, chunk: ChunkRecord, suspect: list[int], size: int
    ) -> tuple[ChunkRecord | None, list[int]]:
        """Return the record if it is still the same, and which fragments really are missing."""

        async def body(tr: ReadTransaction) -> ChunkRecord | None:
            row = await tr.get(keyspace.chunk(chunk_id))
            return None if row is None else decode_chunk(row)

        current = await self._store.db.read(body)
        if current is None or current.nodes != chunk.nodes:
            return None, []
        missing = []
        for index in suspect:
            node_id = chunk.nodes[index]
            node = self._store.pool.usable(node_id)
            info = None
            if node is not None and self._listings.get(node_id) is not None:
                try:
                    info = await node.stat(fragment_id(chunk_id, index))
                except NodeError as error:
                    self._store.pool.failed(node_id, error)
            if info is None or info.size != size:
                missing.append(index)
        return current, missing

    async def _examine_loose(self, node_id: NodeId, fragments: list[FragmentId]) -> None:
        """Make strays of the fragments on the node that really have no owner."""
        if not fragments:
            return

        async def body(tr: Transaction) -> int:
            orphans = 0
            for fragment in fragments:
                chunk_id, index = chunk_of(fragment)
                row = await tr.get(keyspace.chunk(chunk_id))
                if row is not None:
                    nodes = decode_chunk(row).nodes
                    if index < len(nodes) and nodes[index] == node_id:
                        continue
                else:
                    session = await tr.get(keyspace.session(session_of(chunk_id)))
                    if session is not None and not decode_session(session).dead:
                        continue  # it may still be committed
                if await tr.get(keyspace.stray(node_id, fragment)) is None:
                    tr.set(keyspace.stray(node_id, fragment), b"")
                    orphans += 1
            return orphans

        self._counts["orphans"] += await self._store.db.run(body)

    async def finish(self) -> None:
        """Write down the result, and what follows from it for nodes that are to be empty."""
        store, record = self._store, self.progress.record
        counts = dict(self._counts)
        result = CensusRecord(FORMAT, record.started_ms, store.clock(), counts)

        async def body(tr: Transaction) -> list[str]:
            tr.set(RESULT, encode(result))
            named = {
                NodeId(bytes.fromhex(key[6:])): count
                for key, count in counts.items()
                if key.startswith("named ")
            }
            return await after_census(tr, named, record.started_ms)

        events = await store.db.run(body)
        await self.progress.end()
        log = structlog.get_logger()
        for event in events:
            log.info(event)
        if counts.get("queued"):
            log.warning("fragments missing", fragments=counts["missing"], new=counts["queued"])
            store.wake_repair()
        elif counts.get("orphans"):
            store.wake_repair()

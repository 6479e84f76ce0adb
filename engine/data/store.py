"""``DataStore``: the data path as the engine sees it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping

import trio

from engine.config import Profile, StoreConfig
from engine.data import reader, rebuild, writer
from engine.data.buffers import Budget, BufferPool
from engine.data.coding import Coders
from engine.data.context import Context, DamageSink, Limiters
from engine.data.lanes import Lanes
from engine.data.layout import ALIGNMENT
from engine.data.nodes import NodePool
from engine.data.pace import Pace
from engine.data.reader import ChunkStream, Segments
from engine.data.rebuild import FragmentState
from engine.data.removal import delete_fragments
from engine.data.writer import Source, StagedData
from engine.errors import ConfigError
from engine.ids import ChunkId, FragmentId, NodeId, fragment_id
from engine.meta.records import ChunkRecord
from engine.node.contract import Node

_DISK_THREADS = 64


def default_limiters() -> Limiters:
    """Return limiters for this machine: work by its cores, waiting by what disks queue."""
    cores = len(os.sched_getaffinity(0))
    return Limiters(
        work=trio.CapacityLimiter(max(4, 2 * cores)), disk=trio.CapacityLimiter(_DISK_THREADS)
    )


class DataStore:
    """Turns bytes into durable chunks and back. Knows no metadata: records come and go through
    the caller."""

    def __init__(
        self,
        config: StoreConfig,
        profile: Profile,
        pool: NodePool,
        *,
        new_chunk_id: Callable[[], ChunkId],
        on_damage: DamageSink,
        nursery: trio.Nursery | None,
        limiters: Limiters | None = None,
        buffers: BufferPool | None = None,
    ) -> None:
        """
        Args:
            new_chunk_id: returns another id with each call.
            on_damage: told of each fragment that a read or rebuild could not use.
            nursery: where reading ahead runs, until the caller cancels it; None: none.
        Raises:
            ConfigError: sizes that do not fit together.
        """
        _check(config)
        self.pool = pool
        self.buffers = buffers or BufferPool(Budget(config.memory), idle_max=config.memory // 2)
        self._context = Context(
            config=config,
            profile=profile,
            pool=pool,
            coders=Coders(),
            buffers=self.buffers,
            limiters=limiters or default_limiters(),
            lanes=Lanes(),
            new_chunk_id=new_chunk_id,
            on_damage=on_damage,
            pace=Pace(),
            nursery=nursery,
        )

    async def stage(
        self, source: Source, *, size: int | None, algorithms: frozenset[str]
    ) -> StagedData:
        """See ``writer.stage``."""
        return await writer.stage(self._context, source, size=size, algorithms=algorithms)

    def stream(self, segments: Segments) -> ChunkStream:
        """Return the bytes of the segments, one after another; ``aclose`` the stream."""
        return reader.ChunkStream(self._context, segments)

    async def examine(
        self, chunk_id: ChunkId, record: ChunkRecord, *, deep: bool
    ) -> list[FragmentState]:
        """See ``rebuild.examine``."""
        return await rebuild.examine(self._context, chunk_id, record, deep=deep)

    async def rebuild(
        self,
        chunk_id: ChunkId,
        record: ChunkRecord,
        indexes: Collection[int],
        targets: Mapping[int, Node],
    ) -> None:
        """See ``rebuild.rebuild``."""
        await rebuild.rebuild(self._context, chunk_id, record, indexes, targets)

    async def delete(self, chunk_id: ChunkId, record: ChunkRecord) -> bool:
        """Delete the chunk's fragments durably; return False if some node did not answer."""
        return not await self.delete_many([(chunk_id, record)])

    async def delete_many(self, chunks: Iterable[tuple[ChunkId, ChunkRecord]]) -> set[ChunkId]:
        """Delete the fragments of many chunks with one sync per node.

        Returns the chunks of which some fragment could not be deleted. Absent ones are no error.
        """
        by_node: dict[NodeId, list[FragmentId]] = {}
        for chunk_id, record in chunks:
            for index, node_id in enumerate(record.nodes):
                by_node.setdefault(node_id, []).append(fragment_id(chunk_id, index))
        failed = await delete_fragments(self.pool, by_node, limiter=self._context.limiters.disk)
        return {ChunkId(fragment[:-1]) for node_id in failed for fragment in by_node[node_id]}


def _check(config: StoreConfig) -> None:
    if config.block_size < ALIGNMENT or config.block_size % ALIGNMENT:
        raise ConfigError(f"block_size: {config.block_size} is no multiple of {ALIGNMENT}")
    if not config.inline_record_max <= config.inline_max <= config.replicated_max:
        raise ConfigError("inline_record_max, inline_max, replicated_max: must ascend")
    if config.chunk_size <= config.replicated_max:
        raise ConfigError("chunk_size: must be larger than replicated_max")

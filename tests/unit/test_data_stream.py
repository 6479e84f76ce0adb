"""Whole objects in and out of the data path, healthy nodes."""

from __future__ import annotations

import hashlib
import random
import zlib

import pytest
import trio
import trio.testing
from awscrt import checksums

from engine.config import StoreConfig
from engine.data.digests import ALGORITHMS
from engine.errors import IncompleteBody
from engine.meta.records import ChunkData, InlineData, InlineRow
from tests.support.nodes import BytesSource, open_cluster, segments, small_config

CONTENT = random.Random(1).randbytes(50_000)


@pytest.mark.parametrize("announce", [True, False])
async def test_class_follows_size(announce: bool) -> None:
    async with open_cluster() as cluster:
        for size, kind, fragments in [
            (0, InlineData, 0),
            (16, InlineData, 0),
            (17, InlineRow, 0),
            (64, InlineRow, 0),
            (65, ChunkData, 3),
            (300, ChunkData, 3),
            (301, ChunkData, 6),
            (1024, ChunkData, 6),
            (10_000, ChunkData, 6),
            (10_001, ChunkData, 12),
        ]:
            before = cluster.fragments
            staged = await cluster.put(CONTENT[:size], announce=announce)
            assert type(staged.data) is kind, size
            assert staged.size == size
            assert cluster.fragments - before == fragments, size
            assert cluster.open_writers == 0
            if isinstance(staged.data, InlineData):
                assert staged.data.data == CONTENT[:size]
            elif isinstance(staged.data, InlineRow):
                assert staged.inline == CONTENT[:size]
            else:
                assert await cluster.get(staged) == CONTENT[:size]
            assert staged.incomplete == []


@pytest.mark.parametrize("size", [10, 200, 5_000, 33_333])
@pytest.mark.parametrize("announce", [True, False])
async def test_digests_are_those_of_the_bytes(size: int, announce: bool) -> None:
    content = CONTENT[:size]
    async with open_cluster() as cluster:
        staged = await cluster.store.stage(
            BytesSource(content, step=777),
            size=size if announce else None,
            algorithms=ALGORITHMS,
        )
    assert staged.digests == {
        "MD5": hashlib.md5(content).digest(),
        "SHA1": hashlib.sha1(content).digest(),
        "SHA256": hashlib.sha256(content).digest(),
        "CRC32": zlib.crc32(content).to_bytes(4, "big"),
        "CRC32C": checksums.crc32c(content).to_bytes(4, "big"),
        "CRC64NVME": checksums.crc64nvme(content).to_bytes(8, "big"),
    }


@pytest.mark.parametrize("size", [0, 10, 64, 200, 1024, 5_000, 10_000, 20_000])
async def test_source_is_read_to_its_end(size: int) -> None:
    """A source checks its trailers there."""
    async with open_cluster() as cluster:
        for announced in (size, None):
            source = BytesSource(CONTENT[:size])
            await cluster.store.stage(source, size=announced, algorithms=frozenset())
            assert source.ends_seen > 0


@pytest.mark.parametrize("size", [10, 64, 200, 1024, 5_000, 10_000, 20_000])
@pytest.mark.parametrize("error", [-1, 1])
async def test_wrong_length_is_refused_and_leaves_nothing(size: int, error: int) -> None:
    async with open_cluster() as cluster:
        with pytest.raises(IncompleteBody) as caught:
            await cluster.store.stage(
                BytesSource(CONTENT[: size + error]), size=size, algorithms=frozenset({"MD5"})
            )
        assert caught.value.expected == size
        assert caught.value.received == size + error
        assert cluster.fragments == 0
        assert cluster.open_writers == 0
        assert cluster.store.buffers.outstanding == 0


async def test_discard_deletes_every_fragment() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        assert cluster.fragments == 30
        await staged.discard()
        assert cluster.fragments == 0
        await staged.discard()


async def test_range_read_touches_only_the_blocks_that_cover_it() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT[:8_192])  # 8 stripes of 4 blocks of 256
        for node in cluster.nodes:
            node.memory.reads = 0
        assert await cluster.get(staged, 1024 + 300, 1024 + 301) == CONTENT[1324:1325]
        assert sum(node.memory.reads for node in cluster.nodes) == 1
        assert await cluster.get(staged, 1024 + 200, 1024 + 300) == CONTENT[1224:1324]
        assert sum(node.memory.reads for node in cluster.nodes) == 3


async def test_healthy_read_never_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.data.coding import Coder

    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        monkeypatch.setattr(Coder, "decode", None)
        assert await cluster.get(staged) == CONTENT


async def test_buffers_are_bounded_while_a_large_object_streams() -> None:
    """Three batches are held when writing, and parity beside one of them; two when reading."""
    mib = 1 << 20
    config = StoreConfig(data=small_config().data, chunk_size=8 * mib, memory=64 * mib)
    content = random.Random(2).randbytes(40 * mib)
    peak = 0
    async with open_cluster(config=config) as cluster:
        buffers = cluster.store.buffers

        class Watching(BytesSource):
            async def readinto(self, buffer: memoryview) -> int:
                nonlocal peak
                peak = max(peak, buffers.outstanding)
                return await super().readinto(buffer)

        staged = await cluster.store.stage(
            Watching(content), size=len(content), algorithms=frozenset({"CRC32"})
        )
        assert peak <= 12 * mib + 5 * mib // 2
        peak = 0
        digest = 0
        stream = cluster.store.stream(list(segments(staged)))
        async for view in stream:
            digest = zlib.crc32(view, digest)
            peak = max(peak, buffers.outstanding)
        await stream.aclose()
        assert peak <= 8 * mib
        assert digest.to_bytes(4, "big") == staged.digests["CRC32"]
        assert buffers.outstanding == 0
        assert buffers.budget.held == 0


async def test_everything_works_with_no_memory_to_spare() -> None:
    async with open_cluster(config=small_config(memory=0)) as cluster:
        staged = await cluster.put(CONTENT)
        stream = cluster.store.stream(list(segments(staged)))
        received = b""
        async for view in stream:
            assert cluster.store.buffers.outstanding <= 4096
            received += view
        assert received == CONTENT
        await stream.aclose()
        assert cluster.store.buffers.outstanding == 0


async def test_many_requests_share_the_budget() -> None:
    config = small_config(memory=100_000)
    async with open_cluster(config=config) as cluster:

        async def one() -> None:
            assert await cluster.get(await cluster.put(CONTENT)) == CONTENT

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert cluster.store.buffers.budget.held == 0
        assert cluster.store.buffers.outstanding == 0


async def test_segments_may_come_from_an_async_generator_which_is_closed() -> None:
    closed = []
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)

        async def generate():  # type: ignore[no-untyped-def]
            try:
                for segment in segments(staged):
                    await trio.lowlevel.checkpoint()
                    yield segment
            finally:
                closed.append(True)

        stream = cluster.store.stream(generate())
        assert b"".join([bytes(view) async for view in stream]) == CONTENT
        await stream.aclose()
        stream = cluster.store.stream(generate())
        async for _ in stream:
            break
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert closed == [True, True]
        assert cluster.store.buffers.outstanding == 0


async def test_cold_nodes_are_waited_for() -> None:
    async with open_cluster(remote=(1, 4)) as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes:
            node.memory.cold = True
        assert await cluster.get(staged) == CONTENT
        assert await cluster.get(staged, 5, 6) == CONTENT[5:6]


async def test_nodes_of_other_processes_serve_as_well() -> None:
    async with open_cluster(remote=range(6)) as cluster:
        staged = await cluster.put(CONTENT, step=1000)
        assert await cluster.get(staged) == CONTENT
        assert cluster.fragments == 30
        await staged.discard()
        assert cluster.fragments == 0

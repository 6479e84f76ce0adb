"""Objects written as metadata rows, as a PUT writes them: a million in seconds, not minutes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import trio

from benchmarks.measure import BenchmarkFailed
from engine.ids import BucketId, DataId
from engine.meta import keyspace
from engine.meta.embedded import open_embedded
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    FORMAT,
    Checksum,
    InlineData,
    InlineRow,
    VersionRecord,
    decode_bucket,
    encode,
)

TRANSACTION_BYTES = 4_000_000
"""Well below what the store allows in one transaction."""
ROW_BYTES = 300
INLINE_RECORD_MAX = 1024


def record_of(data: bytes, *, data_id: DataId, now_ms: int) -> VersionRecord:
    """Return the record of an object with these bytes, in the record itself or beside it."""
    inline = len(data) <= INLINE_RECORD_MAX
    return VersionRecord(
        format=FORMAT,
        sequence=1,
        size=len(data),
        modified_ms=now_ms,
        etag="0123456789abcdef0123456789abcdef",
        version_id="null",
        delete_marker=False,
        storage_class="STANDARD",
        checksum_shown="CRC64NVME FULL_OBJECT",
        data_id=data_id,
        data=InlineData(data=data) if inline else InlineRow(),
        headers=[("content-type", "application/octet-stream")],
        checksums=[Checksum(algorithm="CRC64NVME", value=bytes(8))],
    )


def write_rows(store: Path, bucket_name: str, keys: Iterable[str], data: bytes) -> None:
    """Make an object with the bytes ``data`` under every key of a bucket that exists.

    Raises: BenchmarkFailed: there is no such bucket.
    """
    trio.run(_write, store, bucket_name, iter(keys), data)


async def _write(store: Path, bucket_name: str, keys: Iterator[str], data: bytes) -> None:
    template = record_of(data, data_id=DataId(bytes(16)), now_ms=time.time_ns() // 1_000_000)
    size = TRANSACTION_BYTES // (ROW_BYTES + len(data))
    async with open_embedded(store / "meta" / "store.sqlite") as db:

        async def find(tr: ReadTransaction) -> bytes | None:
            return await tr.get(keyspace.bucket(bucket_name))

        row = await db.read(find)
        if row is None:
            raise BenchmarkFailed(f"bucket {bucket_name} is not there")
        bucket_id = decode_bucket(row).bucket_id
        number = 0
        while batch := list(islice(keys, size)):

            async def write(
                tr: Transaction, batch: list[str] = batch, number: int = number
            ) -> None:
                _set_rows(tr, bucket_id, batch, template, first=number, data=data)

            await db.run(write)
            number += len(batch)


def _set_rows(
    tr: Transaction,
    bucket_id: BucketId,
    keys: list[str],
    template: VersionRecord,
    *,
    first: int,
    data: bytes,
) -> None:
    encoded = encode(template)
    beside = isinstance(template.data, InlineRow)
    for number, key in enumerate(keys, first):
        if beside:
            # Time 0: no id that the server makes can be the same.
            data_id = DataId(number.to_bytes(16, "big"))
            tr.set(keyspace.inline(data_id), data)
            encoded = encode(msgspec.structs.replace(template, data_id=data_id))
        tr.set(keyspace.object_(bucket_id, key.encode()), encoded)

"""Objects without bytes: what a lock on a name that is free makes, and the markers of folders."""

from __future__ import annotations

from engine.data.digests import digests_of
from engine.meta.kv import Transaction
from engine.meta.records import FORMAT, Checksum, InlineData, VersionRecord
from engine.store import Store
from engine.types import BucketInfo
from engine.versions import new_version_id, next_sequence, put_version

CHECKSUM = "CRC64NVME"


async def put_empty(
    store: Store, tr: Transaction, bucket: BucketInfo, raw_key: bytes
) -> VersionRecord:
    """Make an empty object the current version of a key that has none, and return it."""
    sequence = await next_sequence(tr, bucket, raw_key, None)
    digests = digests_of(b"", ("MD5", CHECKSUM))
    record = VersionRecord(
        format=FORMAT,
        sequence=sequence,
        size=0,
        modified_ms=store.clock(),
        etag=digests["MD5"].hex(),
        version_id=new_version_id(store, bucket, sequence),
        delete_marker=False,
        storage_class="STANDARD",
        checksum_shown=f"{CHECKSUM} FULL_OBJECT",
        data_id=store.new_data_id(),
        data=InlineData(data=b""),
        checksums=[Checksum(algorithm=CHECKSUM, value=digests[CHECKSUM])],
    )
    await put_version(store, tr, bucket, raw_key, None, record)
    return record

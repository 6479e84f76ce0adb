"""What S3 clients are told of objects that a WebDAV client has locked."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from engine.types import LockRequest
from tests.support.s3 import running_s3

LOCK = LockRequest(principal="someone", owner="", exclusive=True, deep=True, timeout_s=60)


async def test_a_write_to_a_locked_object_conflicts_until_it_is_unlocked(tmp_path: Path) -> None:
    async with running_s3(tmp_path) as s3:
        await s3.put("/bucket")
        await s3.put("/bucket/folder/key", b"old")
        await s3.put("/bucket/free", b"free")
        info, _ = await s3.engine.locking.lock("bucket", "folder/", LOCK)
        keys = ("folder/key", "free")
        items = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
        many = f"<Delete>{items}</Delete>".encode()
        md5 = base64.b64encode(hashlib.md5(many, usedforsecurity=False).digest()).decode()
        answers = [
            await s3.request("PUT", "/bucket/folder/key", body=b"new"),
            await s3.request("PUT", "/bucket/folder/key", body=bytes(200_000)),
            await s3.request("PUT", "/bucket/folder/another", body=b"new"),
            await s3.request("DELETE", "/bucket/folder/key"),
            await s3.request(
                "PUT", "/bucket/folder/key", headers={"x-amz-copy-source": "/bucket/free"}
            ),
        ]
        for answer in answers:
            assert answer.status == 409, answer
            assert b"<Code>OperationAborted</Code>" in answer.body
        deleted = await s3.request(
            "POST", "/bucket", "delete", headers={"content-md5": md5}, body=many
        )
        assert deleted.body.count(b"<Error>") == 1
        assert b"<Key>folder/key</Key><Code>OperationAborted</Code>" in deleted.body
        assert (await s3.get("/bucket/folder/key")).body == b"old"
        await s3.engine.locking.unlock("bucket", "folder/", info.token, principal="someone")
        assert (await s3.put("/bucket/folder/key", b"new")).status == 200

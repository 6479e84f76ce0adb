"""Two gateways of one store asked by real clients: what a key may do, and when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.support.clients import s3_client
from tests.support.server import Server, lode

SEEN_S = 60.0
"""Longest time until all know of a change; a second is promised, on a quiet machine."""


def make_key(data: Path, *arguments: str) -> tuple[str, str]:
    """Run ``lode key create`` and return the pair."""
    done = lode("key", "create", *arguments, "--json", "--data", str(data))
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    return shown["access_key"], shown["secret_key"]


def key_command(data: Path, *arguments: str) -> str:
    done = lode("key", *arguments, "--data", str(data))
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_of(call: Callable[[], object]) -> str:
    """Return S3's error code of a call, or nothing when it succeeds."""
    try:
        call()
    except ClientError as error:
        code: str = error.response["Error"]["Code"]
        return code
    return ""


def until_code(call: Callable[[], object], code: str) -> None:
    """Repeat the call until it is answered so."""
    deadline = time.monotonic() + SEEN_S
    while (found := code_of(call)) != code:
        assert time.monotonic() < deadline, f"still {found or 'allowed'}"
        time.sleep(0.02)


def check_keys_at(gateways: list[Server], data: Path, bucket: str) -> None:
    """Make keys beside running gateways, use them at all, and end them at all.

    ``bucket`` is there, with an object ``key``; so is ``bucket`` + ``-other``.
    """
    pair = make_key(data, "writer", "--bucket", bucket)
    reading = make_key(data, "reader", "--read-only")
    writers: list[Any] = [s3_client(gateway, keys=pair) for gateway in gateways]
    readers: list[Any] = [s3_client(gateway, keys=reading) for gateway in gateways]
    for number, (writer, reader) in enumerate(zip(writers, readers, strict=True)):
        until_code(lambda w=writer: w.list_buckets(), "")
        until_code(lambda r=reader: r.list_buckets(), "")
        assert [b["Name"] for b in writer.list_buckets()["Buckets"]] == [bucket]
        writer.put_object(Bucket=bucket, Key=f"by-{number}", Body=b"written")
        assert reader.get_object(Bucket=bucket, Key=f"by-{number}")["Body"].read() == b"written"
        other = {"Bucket": bucket + "-other", "Key": "key"}
        assert code_of(lambda w=writer, o=other: w.get_object(**o)) == "AccessDenied"
        assert code_of(lambda r=reader, o=other: r.put_object(**o, Body=b"")) == "AccessDenied"
    key_command(data, "disable", "writer")
    for writer in writers:
        until_code(lambda w=writer: w.list_objects_v2(Bucket=bucket), "InvalidAccessKeyId")
    key_command(data, "enable", "writer")
    for writer in writers:
        until_code(lambda w=writer: w.list_objects_v2(Bucket=bucket), "")
    key_command(data, "delete", pair[0])
    for writer in writers:
        until_code(lambda w=writer: w.list_objects_v2(Bucket=bucket), "InvalidAccessKeyId")
    assert [line.split()[0] for line in key_command(data, "list").splitlines()[1:]] == [reading[0]]

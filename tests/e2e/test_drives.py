"""Drives that go away, come back or are replaced, under a real server."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.clients import MIB, error_code, s3_client
from tests.support.server import STOP_S, Server, drive_folders, lode, serving_coded

# Inline in the record, inline beside it, copies, coded in one stripe, in many, in two chunks.
SIZES = [500, 30_000, 200_000, 700_000, 9 * MIB, 70 * MIB]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def status(folder: Path) -> Any:
    shown = lode("status", "--data", str(folder / "store"), "--json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def states(folder: Path) -> dict[str, str]:
    """Return the state of each drive by the name of its folder."""
    return {Path(d["location"]).name: d["state"] for d in status(folder)["drives"]}


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does; there is no event for it."""
    deadline = time.monotonic() + STOP_S
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.1)


def fill(s3: Any, prefix: str, bodies: dict[str, bytes]) -> None:
    for size in SIZES:
        key = f"{prefix}/{size}"
        bodies[key] = os.urandom(size)
        s3.put_object(Bucket="box", Key=key, Body=bodies[key])


def check(server: Server, bodies: dict[str, bytes]) -> Any:
    """Read everything back; return the client."""
    s3 = s3_client(server)
    for key, body in bodies.items():
        assert s3.get_object(Bucket="box", Key=key)["Body"].read() == body, key
        if len(body) > 1000:
            got = s3.get_object(Bucket="box", Key=key, Range=f"bytes={len(body) // 2}-")
            assert got["Body"].read() == body[len(body) // 2 :], key
    return s3


def fsck(folder: Path) -> Any:
    return json.loads(lode("fsck", "--data", str(folder / "store"), "--deep", "--json").stdout)


def test_two_drives_may_be_lost_and_replaced(folder: Path) -> None:
    drives = drive_folders(folder)
    bodies: dict[str, bytes] = {}
    with serving_coded(folder) as server:
        s3 = s3_client(server)
        s3.create_bucket(Bucket="box")
        fill(s3, "whole", bodies)
        s3.close()
        assert server.stop() == 0
        assert server.troubles == []

    # Two drives are unplugged: everything is served. A coded write needs one drive more than
    # the stripe has data blocks, so that its bytes outlive the next loss.
    for drive in drives[:2]:
        drive.rename(drive.with_suffix(".away"))
    with serving_coded(folder) as server:
        shown = states(folder)
        assert [shown[drive.name] for drive in drives] == ["missing"] * 2 + ["up"] * 4
        said = json.dumps(server.troubles)
        assert str(drives[0]) in said
        assert str(drives[1]) in said
        s3 = check(server, bodies)
        s3.put_object(Bucket="box", Key="small", Body=b"small")
        bodies["small"] = b"small"
        with pytest.raises(ClientError) as raised:
            s3.put_object(Bucket="box", Key="large", Body=bytes(9 * MIB))
        assert error_code(raised)[0] == 503
        s3.close()
        assert server.stop() == 0

    # One is plugged in again: everything is taken.
    drives[0].with_suffix(".away").rename(drives[0])
    with serving_coded(folder) as server:
        s3 = check(server, bodies)
        fill(s3, "degraded", bodies)
        s3.close()
        check(server, bodies).close()
        assert server.stop() == 0

    # The other is replaced by an empty one: it is filled.
    drives[1].mkdir()
    with serving_coded(folder) as server:
        check(server, bodies).close()
        wait_until(lambda: set(states(folder).values()) == {"up"})
        wait_until(lambda: status(folder)["repair_queue"] == 0)
        replaced = next(
            d for d in status(folder)["drives"] if Path(d["location"]).name == drives[1].name
        )
        assert replaced["fragments"] > 0
        assert replaced["repaired"] > 0
        assert server.stop() == 0
    report = fsck(folder)
    assert report["clean"], report

    # Two others go: what was rebuilt carries the reads now.
    for drive in drives[2:4]:
        shutil.rmtree(drive)
    with serving_coded(folder) as server:
        check(server, bodies).close()
        assert server.stop() == 0


def test_one_drive_too_many_gives_errors_and_never_wrong_bytes(folder: Path) -> None:
    drives = drive_folders(folder)
    bodies: dict[str, bytes] = {}
    with serving_coded(folder) as server:
        s3 = s3_client(server)
        s3.create_bucket(Bucket="box")
        fill(s3, "whole", bodies)
        s3.close()
        assert server.stop() == 0
    for drive in drives[:3]:
        drive.rename(drive.with_suffix(".away"))
    with serving_coded(folder) as server:
        s3 = s3_client(server)
        small = "whole/500"
        assert s3.get_object(Bucket="box", Key=small)["Body"].read() == bodies[small]
        with pytest.raises(ClientError) as raised:
            s3.get_object(Bucket="box", Key=f"whole/{9 * MIB}")
        assert error_code(raised)[0] == 503
        with pytest.raises(ClientError) as raised:
            s3.put_object(Bucket="box", Key="new", Body=bytes(9 * MIB))
        assert error_code(raised)[0] == 503
        assert s3.list_objects_v2(Bucket="box")["KeyCount"] == len(SIZES)
        s3.close()
        assert server.stop() == 0
    for drive in drives[:3]:
        drive.with_suffix(".away").rename(drive)
    with serving_coded(folder) as server:
        check(server, bodies).close()
        assert server.stop() == 0
    assert fsck(folder)["clean"]

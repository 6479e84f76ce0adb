"""``lode serve`` as people and init systems run it: start, stop, mistakes, dying parts."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.server import STOP_S, Server, lode, serving


def client(server: Server, keys: tuple[str, str] | None = None) -> Any:  # boto3 has no types
    access, secret = keys or server.credentials
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 10, "mode": "standard"}),
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does; there is no event for it."""
    deadline = time.monotonic() + STOP_S
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.02)


def exists(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_ready_is_one_line_and_what_it_names_is_true(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--workers", "2") as server:
        assert server.ready.startswith("ready s3=http://127.0.0.1:")
        assert Path(server.credentials_path) == data / "credentials.json"
        assert Path(server.credentials_path).stat().st_mode & 0o777 == 0o600
        assert len(server.workers) == 2
        s3 = client(server)
        s3.create_bucket(Bucket="box")
        s3.put_object(Bucket="box", Key="k", Body=b"bytes")
        assert s3.get_object(Bucket="box", Key="k")["Body"].read() == b"bytes"
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "store"
    body = os.urandom(3 << 20)
    with serving(data, "--workers", "1") as server:
        keys = server.credentials
        s3 = client(server)
        s3.create_bucket(Bucket="box")
        s3.put_object(Bucket="box", Key="k", Body=body)
    with serving(data, "--workers", "1") as server:
        assert server.credentials == keys
        assert client(server).get_object(Bucket="box", Key="k")["Body"].read() == body


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "store", "--workers", "2") as server:
        workers = server.workers
        assert server.stop(number) == 0
        assert not any(map(exists, workers))
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(server.url, timeout=5)


def test_a_closed_terminal_does_not_end_it(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--workers", "1") as server:
        server.process.send_signal(signal.SIGHUP)
        os.kill(server.workers[0], signal.SIGHUP)
        client(server).create_bucket(Bucket="box")
        assert server.stop() == 0


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--workers", "2") as server:
        s3 = client(server)
        s3.create_bucket(Bucket="box")
        s3.put_object(Bucket="box", Key="k", Body=b"before")
        first = server.workers
        for worker in first:
            os.kill(worker, signal.SIGKILL)
        assert s3.get_object(Bucket="box", Key="k")["Body"].read() == b"before"
        wait_until(lambda: len(server.workers) == 2 and not set(server.workers) & set(first))
        assert server.stop() == 0


def test_workers_end_with_a_killed_supervisor_and_free_the_address(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--workers", "2") as server:
        workers = server.workers
        address = server.url.removeprefix("http://")
        server.process.kill()
        server.process.wait(STOP_S)
        wait_until(lambda: not any(map(exists, workers)))
    with serving(data, "--workers", "1", address=address) as server:
        client(server).create_bucket(Bucket="box")


def test_credentials_of_the_environment_are_used_and_not_written_down(tmp_path: Path) -> None:
    data = tmp_path / "store"
    environment = {"LODE_ACCESS_KEY": "testaccess", "LODE_SECRET_KEY": "testsecret123"}
    with serving(data, "--workers", "1", environment=environment) as server:
        assert server.credentials_path == "environment"
        client(server, ("testaccess", "testsecret123")).create_bucket(Bucket="box")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(server, ("testaccess", "wrongsecret123")).list_buckets()
        for worker in server.workers:
            assert b"testsecret123" not in Path(f"/proc/{worker}/environ").read_bytes()
            assert b"testsecret123" not in Path(f"/proc/{worker}/cmdline").read_bytes()
    assert not (data / "credentials.json").exists()


def test_a_store_on_one_drive_says_that_it_has_no_redundancy(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--workers", "1") as server:
        assert any("no redundancy" in str(entry["event"]) for entry in server.log)


def test_several_drives_make_a_coded_store(tmp_path: Path) -> None:
    data = tmp_path / "store"
    drives = [str(tmp_path / f"drive{number}") for number in range(3)]
    with serving(data, "--workers", "1", "--drives", *drives) as server:
        assert not any("no redundancy" in str(entry["event"]) for entry in server.log)
        shown = json.loads(lode("status", "--data", str(data), "--json").stdout)
        assert shown["profile"] == "2+1"
        assert [drive["state"] for drive in shown["drives"]] == ["up"] * 3
        assert sorted(drive["location"] for drive in shown["drives"]) == drives


def test_the_store_can_be_looked_after_while_it_is_served(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--workers", "1") as server:
        s3 = client(server)
        s3.create_bucket(Bucket="box")
        for number in range(5):
            s3.put_object(Bucket="box", Key=str(number), Body=os.urandom(300_000))
        s3.delete_object(Bucket="box", Key="0")

        status = lode("status", "--data", str(data))
        assert status.returncode == 0, status.stderr
        assert "profile" in status.stdout
        assert "up" in status.stdout

        # What the server may still read is kept, so how much goes now is not said.
        assert lode("gc", "--data", str(data), "--grace", "0").returncode == 0

        checked = lode("fsck", "--data", str(data), "--deep", "--json")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        report = json.loads(checked.stdout)
        assert report["clean"] is True
        assert report["objects"] == 4

        scrubbed = lode("scrub", "--data", str(data), "--wait", "--json")
        assert scrubbed.returncode == 0, scrubbed.stderr
        found = json.loads(scrubbed.stdout)
        assert found["chunks"] >= 4
        assert found["bytes"] >= 4 * 300_000
        assert found["damaged"] == found["unchecked"] == 0

        assert lode("fsck", "--data", str(data)).returncode == 0
        assert s3.list_objects_v2(Bucket="box")["KeyCount"] == 4


def test_a_quota_holds_from_the_next_request_on(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--workers", "1") as server:
        s3 = client(server)
        s3.create_bucket(Bucket="box")
        s3.put_object(Bucket="box", Key="old", Body=b"x" * 600)
        shown = lode("bucket", "quota", "box", "--data", str(data))
        assert shown.returncode == 0, shown.stderr
        assert " ".join(shown.stdout.split()) == "used quota bytes 600 B none objects 1 none"
        words = ("bucket", "quota", "box", "--data", str(data), "--json")
        for options, limits in (
            (("--bytes", "1K"), (1024, None)),
            (("--objects", "2"), (1024, 2)),
            (("--clear", "--objects", "3"), (None, 3)),
            (("--clear",), (None, None)),
            (("--bytes", "1000"), (1000, None)),
        ):
            answer = json.loads(lode(*words, *options).stdout)
            assert (answer["quota_bytes"], answer["quota_objects"]) == limits
            assert (answer["bucket"], answer["bytes"], answer["objects"]) == ("box", 600, 1)
        for body in (b"x" * 401, b"x" * 500_000):
            with pytest.raises(ClientError) as raised:
                s3.put_object(Bucket="box", Key="new", Body=body)
            assert raised.value.response["Error"]["Code"] == "QuotaExceeded"
            assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        s3.put_object(Bucket="box", Key="new", Body=b"x" * 400)
        for key in ("old", "new"):
            s3.delete_object(Bucket="box", Key=key)
        wrong = lode("bucket", "quota", "absent", "--data", str(data))
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "absent" in wrong.stderr
        checked = json.loads(
            lode("fsck", "--repair-counters", "--data", str(data), "--json").stdout
        )
        assert (checked["clean"], checked["repaired_counters"]) == (True, 0)


def test_deleted_bytes_can_be_given_back_at_once(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--workers", "1") as server:
        s3 = client(server)
        s3.create_bucket(Bucket="box")
        s3.put_object(Bucket="box", Key="k", Body=os.urandom(300_000))
        s3.delete_object(Bucket="box", Key="k")
    assert json.loads(lode("gc", "--data", str(data), "--json").stdout)["garbage"] == 0
    given_back = json.loads(lode("gc", "--data", str(data), "--grace", "0", "--json").stdout)
    assert given_back["garbage"] == 1
    assert given_back["bytes"] >= 300_000


def mistake(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Return the one line that is said about a command line that cannot be."""
    done = lode("serve", "--log-level", "error", *arguments, environment=environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("lode: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_port_in_use_is_said_before_the_folder_is_touched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = mistake("--data", str(tmp_path / "new"), "--s3", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port} is in use" in said
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    said = mistake("--data", str(tmp_path), "--s3", "127.0.0.1:0")
    assert str(tmp_path) in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_store_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    document = {"format": 999, "store_id": "x", "created_ms": 0}
    (tmp_path / "lode.json").write_text(json.dumps(document))
    said = mistake("--data", str(tmp_path), "--s3", "127.0.0.1:0")
    assert "lode.json" in said
    assert "999" in said


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = mistake("--data", str(tmp_path / "file" / "store"), "--s3", "127.0.0.1:0")
    assert str(tmp_path / "file") in said


def test_a_profile_wider_than_the_drives_is_refused(tmp_path: Path) -> None:
    said = mistake("--data", str(tmp_path / "s"), "--s3", "127.0.0.1:0", "--profile", "4+2")
    assert "4+2" in said


def test_half_of_the_credentials_is_refused(tmp_path: Path) -> None:
    said = mistake(
        "--data", str(tmp_path / "s"), "--s3", "127.0.0.1:0", environment={"LODE_ACCESS_KEY": "abc"}
    )
    assert "LODE_SECRET_KEY" in said
    assert not (tmp_path / "s").exists()


def test_a_damaged_credentials_file_is_named(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--workers", "1"):
        pass
    (data / "credentials.json").write_text("{")
    assert "credentials.json" in mistake("--data", str(data), "--s3", "127.0.0.1:0")

"""Access keys and root credentials of two gateways that share nothing but FoundationDB."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.meta.fdb import FdbLocation
from tests.support import fdb_server
from tests.support.clients import s3_client
from tests.support.fdb_server import FdbServer
from tests.support.key_doors import check_keys_at, key_command
from tests.support.server import Server, drive_folders, serving


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not fdb_server.has_server():
        pytest.skip("needs FoundationDB: fdbserver and fdbcli are not on the PATH")
    server = FdbServer(tmp_path_factory.mktemp("fdb"))
    name = "test-" + uuid.uuid4().hex[:16]
    yield str(FdbLocation(server.cluster_file, name, fdb_server.library()))
    server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateways")


@pytest.fixture(scope="module")
def gateways(folder: Path, place: str) -> Iterator[list[Server]]:
    drives = [str(drive) for drive in drive_folders(folder)]
    more = ("--meta", place, "--workers", "1")
    with (
        serving(folder / "one", *(*more, "--profile", "4+2", "--drives", *drives)) as one,
        serving(folder / "two", *more) as two,
    ):
        client = s3_client(one)
        for bucket in ("photos", "photos-other"):
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="key", Body=b"data")
        yield [one, two]


def test_gateways_have_the_same_root_credentials_without_a_file_copied(
    gateways: list[Server], folder: Path
) -> None:
    one, two = gateways
    assert one.credentials == two.credentials
    assert one.credentials_path != two.credentials_path
    body = s3_client(two).get_object(Bucket="photos", Key="key")["Body"].read()
    assert body == b"data"
    shown = json.loads(key_command(folder / "two", "show", "--root", "--json"))
    assert (shown["access_key"], shown["secret_key"]) == one.credentials


def test_keys_hold_at_both_gateways_and_end_at_both(gateways: list[Server], folder: Path) -> None:
    check_keys_at(gateways, folder / "two", "photos")


def test_a_gateway_with_other_credentials_takes_those_of_the_store(
    gateways: list[Server], folder: Path, place: str
) -> None:
    data = folder / "three"
    with serving(data, "--meta", place, "--workers", "1"):
        pass
    (data / "credentials.json").write_text('{"access_key": "MINE", "secret_key": "my own secret"}')
    with serving(data, "--meta", place, "--workers", "1") as three:
        assert three.credentials == gateways[0].credentials
        assert "my own secret" in (data / "credentials.replaced.json").read_text()
        s3_client(three).head_object(Bucket="photos", Key="key")

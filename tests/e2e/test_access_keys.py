"""``lode key`` beside two running servers on one store, with boto3 and over WebDAV."""

from __future__ import annotations

import base64
import json
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import s3_client
from tests.support.key_doors import SEEN_S, check_keys_at, key_command, make_key
from tests.support.server import Server, lode, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def gateways(folder: Path) -> Iterator[list[Server]]:
    dav = ("--dav", "127.0.0.1:0")
    with (
        serving(folder / "store", "--workers", "2", *dav) as one,
        serving(folder / "store", "--workers", "1") as two,
    ):
        client = s3_client(one)
        for bucket in ("photos", "photos-other"):
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="key", Body=b"data")
        yield [one, two]


def test_keys_hold_at_both_servers_and_end_at_both(gateways: list[Server], folder: Path) -> None:
    check_keys_at(gateways, folder / "store", "photos")
    assert stat.S_IMODE((folder / "store" / "meta").stat().st_mode) == 0o700


def dav_status(server: Server, method: str, path: str, pair: tuple[str, str]) -> int:
    login = base64.b64encode(":".join(pair).encode()).decode()
    request = urllib.request.Request(
        server.dav_url + path, method=method, headers={"Authorization": "Basic " + login}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def until_status(server: Server, pair: tuple[str, str], status: int) -> None:
    deadline = time.monotonic() + SEEN_S
    while (found := dav_status(server, "GET", "/photos/key", pair)) != status:
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.02)


def test_keys_are_users_of_webdav(gateways: list[Server], folder: Path) -> None:
    server = gateways[0]
    pair = make_key(folder / "store", "desk", "--read-only", "--bucket", "photos")
    until_status(server, pair, 200)
    assert dav_status(server, "DELETE", "/photos/key", pair) == 403
    assert dav_status(server, "GET", "/photos-other/key", pair) == 403
    assert dav_status(server, "GET", "/photos/key", (pair[0], "wrong secret")) == 401
    key_command(folder / "store", "delete", "desk")
    until_status(server, pair, 401)


def test_the_root_is_shown_only_when_asked_for(gateways: list[Server], folder: Path) -> None:
    shown = json.loads(key_command(folder / "store", "show", "--root", "--json"))
    assert (shown["access_key"], shown["secret_key"]) == gateways[0].credentials
    pair = make_key(folder / "store", "quiet")
    assert pair[1] not in key_command(folder / "store", "list", "--json")
    assert pair[1] not in key_command(folder / "store", "show", "quiet")
    assert pair[1] in key_command(folder / "store", "show", "quiet", "--secret")
    both = lode("key", "show", "quiet", "--root", "--data", str(folder / "store"))
    assert both.returncode == 2
    assert "name a key, or give --root" in both.stderr

"""``lode cluster`` and ``lode node ...`` as commands: what they make, print and refuse."""

from __future__ import annotations

import io
import json
import socket
import stat
from pathlib import Path

import pytest
from rich.console import Console

from cli.main import run
from cli.status_tables import print_status
from engine.types import CensusStatus, DriveStatus, MemberStatus, StoreStatus, WorkStatus


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = str(tmp_path / "store")
    assert run(["cluster", "init", "--data", path, "--profile", "2+1"]) == 0
    assert capsys.readouterr().out.startswith("cluster ")
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 0
    return capsys.readouterr().out


def complaint(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    assert run(arguments) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lode: ")
    return said.err


def test_a_new_cluster_has_no_drive_and_one_secret(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (Path(store) / "drive").exists()
    assert stat.S_IMODE((Path(store) / "meta").stat().st_mode) == 0o700
    secret = printed(capsys, "cluster", "secret", "--data", store).strip()
    assert len(secret) == 64
    # Making it again changes nothing.
    printed(capsys, "cluster", "init", "--data", store, "--profile", "2+1")
    assert printed(capsys, "cluster", "secret", "--data", store).strip() == secret
    shown = json.loads(printed(capsys, "status", "--data", store, "--json"))
    assert (shown["profile"], shown["drives"], shown["members"]) == ("2+1", [], [])
    assert "3 drives are needed to keep" in shown["warnings"][0]


def test_a_cluster_takes_a_secret_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, path = tmp_path / "key", str(tmp_path / "store")
    file.write_text("sixteen characters and more\n")
    printed(capsys, "cluster", "init", "--data", path, "--secret-file", str(file))
    assert printed(capsys, "cluster", "secret", "--data", path) == file.read_text()
    file.write_text("another secret of sixteen\n")
    assert "another secret already" in complaint(
        capsys, 2, "cluster", "init", "--data", path, "--secret-file", str(file)
    )
    file.write_text("short")
    assert "at least 16" in complaint(
        capsys, 2, "cluster", "init", "--data", path, "--secret-file", str(file)
    )


def test_what_is_no_member_is_refused(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert address in complaint(capsys, 1, "node", "add", address, "--data", store)
    assert complaint(capsys, 2, "node", "add", "nonsense", "--data", store)
    for command in ("drain", "remove"):
        said = complaint(capsys, 2, "node", command, "m1", "--data", store)
        assert "no member 'm1'; known: none" in said
    listed = json.loads(printed(capsys, "node", "list", "--data", store, "--json"))
    assert listed == {"members": [], "drives": []}


def test_adding_needs_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, 2, "node", "add", "127.0.0.1:1", "--data", str(tmp_path / "nowhere"))
    assert "no store in" in said


def test_status_shows_what_is_proved_and_what_runs() -> None:
    member = MemberStatus(
        "00", "m1", "10.0.0.1:9100", "a", "", "", "draining", "down", 1_700_000_000_000, "1", 1
    )
    drive = DriveStatus("01", "/srv/d1", "down", 0, 0, 0, 0, 0, 3, 2, "m1")
    census = CensusStatus(1_700_000_000_000, 100, 600, 590, 7, 3, 2, 0, 0, 0)
    work = WorkStatus("rebalance", "rebalance", True, 50, 100, 1 << 30, 1 << 20, 3600.0, 1, 0)
    status = StoreStatus(
        store_id="id",
        profile="4+2",
        drives=[drive],
        buckets=1,
        objects=2,
        bytes=3,
        repair_queue=4,
        garbage_queue=5,
        members=[member],
        domains=3,
        census=census,
        work=[work],
        warnings=["7 fragments are missing"],
    )
    console = Console(width=200, record=True, file=io.StringIO())
    print_status(console, status)
    shown = console.export_text()
    assert "590 of 600 whole, 7 missing, 3 could not be asked, 2 chunks at risk, as of 20" in shown
    assert "! 7 fragments are missing" in shown
    assert "4+2 over 3 failure domains" in shown
    for word in ("m1", "draining", "down for", "10.0.0.1:9100", "/srv/d1"):
        assert word in shown
    assert "50 of 100" in shown
    assert "1.0 MiB/s" in shown
    assert "60 min" in shown

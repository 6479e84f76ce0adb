"""What the command prints, and its exit status, without any store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import run
from cli.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("serve", "mount", "bucket", "status", "fsck", "gc", "scrub", "version")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Rich wraps to the terminal; the tests look for whole words.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("LODE_DATA", raising=False)


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert capsys.readouterr() == (f"lode {VERSION}\n", "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f" {command} " in out for command in COMMANDS)
    assert "lode serve --data" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"lode {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sevre"], "No such command 'sevre'"),
        (["serve", "--prot", "9"], "--prot"),
        (["serve", "--s3"], "--s3"),
        (["serve", "extra"], "extra"),
        (["serve", "--s3", "nonsense"], "--s3: address 'nonsense'"),
        (["serve", "--profile", "4"], "--profile: profile '4'"),
        (["serve", "--workers", "0"], "--workers: "),
        (["serve", "--drives", "a", "b", "a"], "named twice"),
        (["serve", "--tls-cert", "c.pem"], "belong together"),
        (["serve", "--tls-cert", "c.pem", "--tls-key", "k.pem"], "--tls-cert: cannot read"),
        (["serve", "--config", "absent.toml"], "cannot read absent.toml"),
        (["gc", "--grace", "soon"], "'soon'"),
        (["status"], "no store in"),
        (["fsck", "--data", "nowhere"], "nowhere"),
        (["gc", "--debug"], "no store in"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lode: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == [], "a mistake makes no folder"


def test_something_unexpected_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ExceptionGroup("group", [RuntimeError("broken\nin two lines")])

    monkeypatch.setattr("cli.admin.show_status", fail)
    assert run(["status"]) == 1
    assert capsys.readouterr().err == (
        "lode: RuntimeError: broken in two lines; --debug shows where\n"
    )
    with pytest.raises(ExceptionGroup):
        run(["status", "--debug"])


def test_the_version_is_quick_because_it_loads_no_store() -> None:
    code = (
        "import sys; from cli.main import run; run(['version']);"
        "print(sorted(m for m in ('trio', 'apsw', 'engine.engine', 'rich.table', 's3')"
        " if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"lode {VERSION}\n[]\n"

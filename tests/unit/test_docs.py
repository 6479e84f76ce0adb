"""What the documents say exists, does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cli.arguments import normalize
from cli.main import run
from cli.settings import OPTION_NAMES, variable_of
from cli.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
MAKE = re.compile(r"`?make ([a-z-]+)`?")
LODE = re.compile(r"\blode ([a-z]+)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_readme_names_real_targets_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"run", "test"} <= set(MAKE.findall(readme)) <= targets
    assert run(["--help"]) == 0
    described = capsys.readouterr().out
    for command in set(LODE.findall(readme)):
        assert f" {command} " in described, command


def test_every_setting_is_an_option_with_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["serve", "--help"]) == 0
    described = capsys.readouterr().out
    assert [name for name in OPTION_NAMES if f"--{name} " not in described] == []
    assert variable_of("data") in described


def test_options_in_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    # Only the lines that are ours: aws and curl have options of their own.
    readme = (ROOT / "README.md").read_text()
    for line in re.findall(r"^\.venv/bin/lode (serve .*)$", readme, re.MULTILINE):
        assert run(normalize([*line.split(), "--help"])) == 0, line
    capsys.readouterr()


def test_every_folder_is_in_the_architecture() -> None:
    architecture = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    inside = [path.parent for path in (ROOT / "engine").glob("*/__init__.py")]
    missing = [path.name for path in packages + inside if f"{path.name}/" not in architecture]
    assert missing == []


def test_every_decision_has_a_number_of_its_own() -> None:
    names = [path.name for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert [name for name in names if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name)] == []
    assert len({name[:4] for name in names}) == len(names) > 0


def test_the_glossary_has_the_words_and_each_once() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    words = [row for row in rows if row not in ("word", "---")]
    assert len(words) == len(set(words))
    wanted = {
        *("bucket", "key", "object", "version", "part", "chunk", "stripe", "block", "fragment"),
        *("needle", "volume", "node", "failure domain", "manifest", "session", "grace time"),
    }
    assert wanted <= set(words)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_locks_have_hashes_and_name_no_host() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        blocks = re.split(r"\n(?=[a-z0-9])", text)[1:]
        assert blocks
        assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("script", ["scripts/setup", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)

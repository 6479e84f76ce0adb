"""The examples of docs/SEMANTICS.md, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, mounted, prepare
from tests.support.server import clean_environment

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "SEMANTICS.md"
MARK = "----8<----"


def examples() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (section, [(command, expected output)]) of each console block."""
    found = []
    section = ""
    for part in re.split(
        r"^(#+ [^\n]*|```console\n.*?^```)$", DOCUMENT.read_text(), flags=re.M | re.S
    ):
        if part.startswith("#"):
            section = part.lstrip("# ")
        elif part.startswith("```console"):
            steps: list[tuple[str, str]] = []
            for line in part.splitlines()[1:-1]:
                if line.startswith("$ "):
                    steps.append((line[2:], ""))
                else:
                    command, output = steps[-1]
                    steps[-1] = (command, output + line + "\n")
            found.append((section, steps))
    return found


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    folder = tmp_path_factory.mktemp("semantics")
    prepare(folder / "store", versioning=True)
    with (
        mounted(folder / "store", folder / "one") as one,
        mounted(folder / "store", folder / "other", timeout_s=0.0) as other,
    ):
        yield one, other


def test_there_are_examples() -> None:
    assert len(examples()) >= 6


@pytest.mark.parametrize(("section", "steps"), examples(), ids=lambda value: str(value)[:20])
def test_the_example_does_what_the_document_says(
    mounts: tuple[Mount, Mount], section: str, steps: list[tuple[str, str]]
) -> None:
    one, other = mounts
    place = Path(tempfile.mkdtemp(dir=one.path))
    script = "".join(f"{command}\necho '{MARK}'\n" for command, _ in steps)
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env={
            **clean_environment(),
            "OTHER": str(other.path / place.name),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        },
    )
    outputs = done.stdout.split(f"{MARK}\n")
    for (command, expected), output in zip(steps, outputs, strict=False):
        assert output == expected, f"{section}: {command}"
    assert len(outputs) == len(steps) + 1

"""Programs that people use, writing through a mount and reading back what they wrote."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, mounted, run

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "engine"


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of the module; its process must end well and have had nothing to complain of."""
    folder = tmp_path_factory.mktemp("programs")
    with mounted(folder / "store", folder / "mnt") as mount:
        yield mount
        assert mount.stop() == 0
    assert mount.troubles == []


@pytest.fixture
def place(mount: Mount) -> Iterator[Path]:
    """An empty directory in the mount."""
    path = Path(tempfile.mkdtemp(dir=mount.path))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree on a local disk with links, modes and times."""
    path = tmp_path_factory.mktemp("trees") / "tree"
    shutil.copytree(TREE, path, ignore=shutil.ignore_patterns("__pycache__"))
    (path / "link").symlink_to("engine.py")
    (path / "broken").symlink_to("nowhere")
    (path / "empty").mkdir()
    script = path / "script.sh"
    script.write_text("#!/bin/sh\necho run\n")
    script.chmod(0o750)
    os.utime(script, ns=(1, 1_234_567_890_123_456_789))
    (path / "big").write_bytes(random.Random(1).randbytes(3_000_001))
    return path


def test_cp_and_diff(place: Path, tree: Path) -> None:
    run("cp", "-a", str(tree), str(place / "copy"))
    run("diff", "-r", "--no-dereference", str(tree), str(place / "copy"))
    copied = (place / "copy/script.sh").stat()
    assert copied.st_mode == 0o100750
    assert copied.st_mtime_ns == 1_234_567_890_123_456_789
    assert run(str(place / "copy/script.sh")) == "run\n"
    assert os.readlink(place / "copy/broken") == "nowhere"


def test_tar(place: Path, tree: Path, tmp_path: Path) -> None:
    run("tar", "cf", str(tmp_path / "tree.tar"), "-C", str(tree), ".")
    run("tar", "xf", str(tmp_path / "tree.tar"), "-C", str(place))
    assert run("tar", "df", str(tmp_path / "tree.tar"), "-C", str(place)) == ""


def test_rsync_sends_nothing_the_second_time(place: Path, tree: Path) -> None:
    run("rsync", "-a", f"{tree}/", str(place / "copy/"))
    assert run("rsync", "-ai", f"{tree}/", str(place / "copy/")) == ""
    run("diff", "-r", "--no-dereference", str(tree), str(place / "copy"))


def test_git_clone_commit_and_fsck(place: Path, tree: Path, tmp_path: Path) -> None:
    def git(*arguments: str, at: Path) -> str:
        identity = ("-c", "user.name=name", "-c", "user.email=name@example.org")
        return run("git", *identity, "-C", str(at), *arguments)

    origin = tmp_path / "origin"
    shutil.copytree(tree, origin, symlinks=True)
    git("init", "-q", "-b", "main", at=origin)
    git("add", ".", at=origin)
    git("commit", "-qm", "first", at=origin)
    git("clone", "-q", "--no-hardlinks", str(origin), "clone", at=place)
    clone = place / "clone"
    assert git("status", "--porcelain", at=clone) == ""
    (clone / "new").write_text("new\n")
    git("add", "new", at=clone)
    git("commit", "-qm", "second", at=clone)
    git("gc", "-q", at=clone)
    assert "error" not in git("fsck", "--full", at=clone)
    assert git("log", "--format=%s", at=clone) == "second\nfirst\n"


def test_sqlite_reads_a_copied_database(place: Path, tmp_path: Path) -> None:
    local = tmp_path / "local.sqlite"
    with sqlite3.connect(local) as database:
        database.execute("create table numbers (n)")
        database.executemany("insert into numbers values (?)", [(n,) for n in range(20_000)])
    database.close()
    shutil.copy(local, place / "copy.sqlite")
    reader = sqlite3.connect(f"file:{place}/copy.sqlite?mode=ro", uri=True)
    assert reader.execute("select count(*), sum(n) from numbers").fetchone() == (
        20_000,
        199_990_000,
    )
    assert reader.execute("pragma integrity_check").fetchone() == ("ok",)
    reader.close()


def test_sqlite_writes_in_place(place: Path) -> None:
    with sqlite3.connect(place / "own.sqlite") as database:
        database.execute("create table numbers (n)")
        database.executemany("insert into numbers values (?)", [(n,) for n in range(1000)])
    database.close()
    reader = sqlite3.connect(f"file:{place}/own.sqlite?mode=ro", uri=True)
    assert reader.execute("select count(*) from numbers").fetchone() == (1000,)
    reader.close()


def test_an_editor_saves_by_a_temporary_file_and_rename(place: Path) -> None:
    file = place / "text"
    file.write_text("first\n")
    for number in range(5):
        # vim with backupcopy=no: the old file steps aside, a new one takes its name.
        backup = place / "text~"
        file.rename(backup)
        with file.open("x") as new:
            new.write(f"save {number}\n")
            new.flush()
            os.fsync(new.fileno())
        file.chmod(0o640)
        backup.unlink()
        assert file.read_text() == f"save {number}\n"
    assert [path.name for path in place.iterdir()] == ["text"]


def test_sed_in_place_and_shell_redirections(place: Path) -> None:
    script = """
        set -e
        seq 1000 > lines
        sed -i 's/^5$/five/' lines
        for i in 1 2 3; do echo $i; done > few
        echo 4 >> few
        { echo a; /bin/echo b; echo c; } > mixed
        sort -r few -o few
        cat few mixed | tr '\\n' ' '
        sed -n 5p lines
        : > few
        wc -c < few
    """
    assert run("bash", "-c", script, cwd=place) == "4 3 2 1 a b c five\n0\n"


def test_dd_writes_a_hole_and_in_the_middle(place: Path, tmp_path: Path) -> None:
    local, remote = tmp_path / "file", place / "file"
    data = random.Random(2).randbytes(2_000_000)
    for path in (local, remote):
        path.write_bytes(data)
        run("dd", "if=/dev/zero", f"of={path}", "bs=1000", "seek=3000", "count=3", "conv=notrunc")
        run("dd", "if=/bin/sh", f"of={path}", "bs=777", "seek=10", "count=9", "conv=notrunc")
    assert local.read_bytes() == remote.read_bytes()


def test_python_shutil(place: Path, tree: Path) -> None:
    shutil.copytree(tree, place / "one", symlinks=True)
    shutil.move(place / "one", place / "two")
    archive = shutil.make_archive(str(place / "archive"), "zip", place / "two")
    shutil.unpack_archive(archive, place / "three")
    left = subprocess.run(
        ["diff", "-rq", tree, place / "three"], capture_output=True, text=True, check=False
    )
    assert "differ" not in left.stdout
    shutil.rmtree(place / "two")
    assert sorted(os.listdir(place)) == ["archive.zip", "three"]

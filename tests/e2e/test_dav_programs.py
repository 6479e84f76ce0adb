"""Programs that people use with WebDAV: litmus, davfs2, cadaver, rclone, GNOME's gvfs."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

from tests.support.clients import copy_library, find_command, hash_file, make_random_file
from tests.support.server import Server, serving

USER, PASSWORD = "someone", "some secret"
KEYS = {"LODE_ACCESS_KEY": USER, "LODE_SECRET_KEY": PASSWORD}
PROGRAM_S = 240
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("programs")
    with serving(
        folder / "store", "--workers", "1", "--dav", "127.0.0.1:0", environment=KEYS
    ) as server:
        yield server
        assert server.stop() == 0
    # One drive has no redundancy, and says so.
    assert [entry for entry in server.troubles if "one drive" not in str(entry["event"])] == []
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def make_bucket(server: Server) -> Callable[[str], str]:
    def make(name: str) -> str:
        """Return the address of a new bucket."""
        where = urlsplit(server.dav_url)
        connection = HTTPConnection(where.netloc, timeout=PROGRAM_S)
        login = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        connection.request("MKCOL", f"/{name}", headers={"Authorization": f"Basic {login}"})
        assert connection.getresponse().status == 201
        connection.close()
        return f"{server.dav_url}/{name}"

    return make


def run(*command: str | Path, **more: object) -> str:
    """Run a program to its end, in English, and return what it said; it must succeed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "en"}
    environment.update(more.pop("environment", {}))  # type: ignore[call-overload]
    done = subprocess.run(
        [find_command(str(command[0])), *map(str, command[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=PROGRAM_S,
        check=False,
        **more,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command[0]} answered {done.returncode}:\n{done.stdout}"
    return str(done.stdout)


def same_trees(one: Path, other: Path) -> None:
    """Compare names and bytes of two trees."""
    comparison = filecmp.dircmp(one, other, ignore=["lost+found"], hide=[])
    waiting = [comparison]
    while waiting:
        looked = waiting.pop()
        assert (looked.left_only, looked.right_only, looked.funny_files) == ([], [], [])
        _, wrong, errors = filecmp.cmpfiles(
            looked.left, looked.right, looked.common_files, shallow=False
        )
        assert (wrong, errors) == ([], [])
        waiting += looked.subdirs.values()


# litmus


@pytest.mark.parametrize("suite", ["basic", "copymove", "props", "locks", "http"])
def test_litmus(make_bucket: Callable[[str], str], tmp_path: Path, suite: str) -> None:
    address = make_bucket(f"litmus-{suite}")
    said = run(
        *("litmus", "--keep-going", address, USER, PASSWORD),
        cwd=tmp_path,
        environment={"TESTS": suite},
    )
    summary = re.search(r"of (\d+) tests run: (\d+) passed, 0 failed", said)
    assert summary is not None, said
    assert summary[1] == summary[2]
    for word in ("WARNING", "SKIPPED", "FAIL"):
        assert word not in said, said


# davfs2


@pytest.fixture
def davfs_folder() -> Iterator[Path]:
    """davfs2 gives root's rights up, so pytest's folders are closed to it."""
    with TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def davfs(address: str, folder: Path) -> Iterator[Path]:
    """Mount an address with an empty cache; unmounting waits until everything is up."""
    mount, cache = folder / "mnt", folder / "cache"
    mount.mkdir(exist_ok=True)
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    shutil.chown(cache, "root", "davfs2")
    cache.chmod(0o775)
    config, secrets = folder / "davfs2.conf", folder / "secrets"
    config.write_text(
        f"secrets {secrets}\ncache_dir {cache}\nask_auth 0\n"
        # Without buf_size Linux from 6.16 on lists nothing: davfs2 issue 22.
        "buf_size 64\ndelay_upload 0\ndir_refresh 1\nuse_locks 1\ngui_optimize 1\n"
    )
    secrets.write_text(f'{mount} {USER} "{PASSWORD}"\n')
    secrets.chmod(0o600)
    config.chmod(0o600)
    run("mount", "-t", "davfs", "-o", f"conf={config},uid=0,gid=0", address, mount)
    try:
        yield mount
    finally:
        run("umount", mount)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no FUSE here")
def test_davfs2_copies_a_tree_in_and_out_and_edits_it(
    make_bucket: Callable[[str], str], davfs_folder: Path, tmp_path: Path
) -> None:
    address = make_bucket("davfs")
    tree = tmp_path / "tree"
    shutil.copytree(Path(os.__file__).parent / "json", tree / "json")
    shutil.copytree(Path(os.__file__).parent / "email", tree / "email")
    for cached in tree.rglob("__pycache__"):
        shutil.rmtree(cached)
    (tree / "empty").mkdir()
    (tree / "names ü+%#?").mkdir()
    (tree / "names ü+%#?" / "a&b; 100%").write_bytes(b"named")
    make_random_file(tree / "large", 24 * MIB, seed=5)
    with davfs(address, davfs_folder) as mount:
        shutil.copytree(tree, mount / "tree")
        same_trees(tree, mount / "tree")
        edit(mount / "tree")
    edit(tree)
    with davfs(address, davfs_folder) as mount:
        same_trees(tree, mount / "tree")
        shutil.copytree(mount / "tree", tmp_path / "back")
    same_trees(tree, tmp_path / "back")


def edit(tree: Path) -> None:
    with (tree / "json" / "__init__.py").open("a") as edited:
        edited.write("# edited\n")
    (tree / "email" / "charset.py").rename(tree / "moved.py")
    (tree / "large").unlink()
    (tree / "empty").rmdir()


# cadaver


def test_cadaver_goes_through_its_commands(
    make_bucket: Callable[[str], str], tmp_path: Path
) -> None:
    address = make_bucket("cadaver")
    where = urlsplit(address)
    (tmp_path / ".netrc").write_text(
        f'machine {where.hostname} login {USER} password "{PASSWORD}"\n'
    )
    (tmp_path / ".netrc").chmod(0o600)
    digest = make_random_file(tmp_path / "up", 3 * MIB, seed=6)
    commands = [
        "mkcol folder",
        "put up folder/file",
        "copy folder/file folder/copy",
        "lock folder/file",
        "discover folder/file",
        "propset folder/copy colour red",
        "propget folder/copy colour",
        "put up folder/file",
        "unlock folder/file",
        "move folder/copy folder/moved",
        "ls folder",
        "get folder/moved down",
        "delete folder/file",
        "rmcol folder",
        "quit",
    ]
    said = run(
        *("cadaver", address),
        input="\n".join(commands) + "\n",
        cwd=tmp_path,
        environment={"HOME": str(tmp_path)},
    )
    assert "failed" not in said.lower(), said
    assert "Value of colour is: red" in said, said
    assert said.count("succeeded") >= 10, said
    assert hash_file(tmp_path / "down") == digest


# rclone


def test_rclone_syncs_checks_and_keeps_times(
    make_bucket: Callable[[str], str], server: Server, tmp_path: Path
) -> None:
    make_bucket("rclone")
    tree = tmp_path / "tree"
    files = copy_library(tree, "asyncio", "email", "encodings", "json", "abc.py", "ast.py")
    obscured = run("rclone", "obscure", PASSWORD).strip()
    config = tmp_path / "rclone.conf"
    config.write_text(
        f"[dav]\ntype = webdav\nurl = {server.dav_url}\nvendor = owncloud\n"
        f"user = {USER}\npass = {obscured}\n"
    )

    def rclone(*arguments: str | Path) -> str:
        return run("rclone", "--config", config, *arguments)

    rclone("sync", tree, "dav:rclone/Lib")
    rclone("check", "--download", tree / "email", "dav:rclone/Lib/email")
    rclone("check", "--size-only", tree, "dav:rclone/Lib")
    listed = rclone("lsf", "--recursive", "--files-only", "dav:rclone/Lib").split("\n")
    assert sorted(filter(None, listed)) == sorted(files)
    # Times came along: nothing is left to send.
    assert "Copied" not in rclone("sync", "-v", "--stats=0", tree, "dav:rclone/Lib")
    (tree / "abc.py").write_text("changed")
    (tree / "ast.py").unlink()
    rclone("sync", tree, "dav:rclone/Lib")
    rclone("sync", "dav:rclone/Lib", tmp_path / "back")
    same_trees(tree, tmp_path / "back")
    rclone("moveto", "dav:rclone/Lib/email", "dav:rclone/mail")
    assert "email/" not in rclone("lsf", "dav:rclone/Lib")
    rclone("check", "--download", tree / "email", "dav:rclone/mail")
    about = rclone("about", "dav:")
    assert "Free:" in about
    rclone("purge", "dav:rclone/Lib")


# gvfs


GIO = """
set -e
printf '%s\\n' {user} {password} | gio mount {address} >/dev/null
gio mkdir {address}/folder
gio copy up {address}/folder/file
gio cat {address}/folder/file | cmp - up
gio list {address}/folder
gio info {address}/folder/file
gio rename {address}/folder/file renamed
gio copy {address}/folder/renamed down
gio move {address}/folder/renamed {address}/moved
gio remove {address}/folder
gio mount --unmount {address}
"""


def test_gnome_copies_in_and_out(make_bucket: Callable[[str], str], tmp_path: Path) -> None:
    address = make_bucket("gnome").replace("http://", "dav://")
    digest = make_random_file(tmp_path / "up", 5 * MIB, seed=7)
    script = GIO.format(user=USER, password=f"'{PASSWORD}'", address=address)
    said = run(
        *("dbus-run-session", "--", "bash", "-c", script),
        cwd=tmp_path,
        environment={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert "standard::size: 5242880" in said
    assert hash_file(tmp_path / "down") == digest

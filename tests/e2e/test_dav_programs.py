"""Programs that people use with WebDAV: litmus, davfs2, cadaver, rclone, GNOME's, KDE's."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

from tests.support.clients import copy_library, find_command, hash_file, make_random_file
from tests.support.server import Server, serving

USER, PASSWORD = "someone", "some secret"
REALM = "Lodestore"
KEYS = {"LODE_ACCESS_KEY": USER, "LODE_SECRET_KEY": PASSWORD}
PROGRAM_S = 900
"""For a program that will end: machines that do much else at once are slow by a factor of ten."""
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("programs")
    with serving(
        folder / "store",
        *("--workers", "1", "--dav", "127.0.0.1:0", "--log-level", "debug"),
        environment=KEYS,
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


# KDE


KIO = """
set -eEx
exec >said 2>&1
trap 'echo "exit status $?"' ERR
# A dialog, which nobody sees here, would wait for ever; 124 is the status then.
kio() {{ timeout 180 kioclient5 --noninteractive "$@" 2>>kio.log; }}
# Logged in by the address; without --overwrite KDE would forget that and show a dialog.
kio --overwrite copy up {address}/file
kio --overwrite copy tree {address}/
kio stat {address}/file
kio ls {address}/tree
kio copy {address}/file file://$PWD/down
kio copy {address}/tree file://$PWD/back
kio move {address}/file {address}/tree/moved
kio --overwrite copy {address}/tree/moved {address}/copied
kio move {address}/tree {address}/renamed
kio ls {address}/renamed
# What the dialog would remember.
dbus-send --session --print-reply --dest=org.kde.kpasswdserver /modules/kpasswdserver \
    org.kde.KPasswdServer.addAuthInfo array:byte:{login} int64:0
kio copy up {address}/new
kio remove {address}/renamed
kio cat {address}/new >printed
kio ls {address}/
echo at the end
"""


def kde_login(url: str, realm: str) -> str:
    """Return the bytes of a ``KIO::AuthInfo`` as QDataStream writes it, for ``dbus-send``."""

    def string(text: str) -> bytes:
        encoded = text.encode("utf-16-be")
        return len(encoded).to_bytes(4, "big") + encoded

    # URL; user, password; prompt, caption, comment, its label; realm; digest; flags; more fields
    packed = b"\1" + len(url).to_bytes(4, "big") + url.encode() + string(USER) + string(PASSWORD)
    packed += 4 * string("") + string(realm) + string("") + bytes((0, 0, 1, 1)) + bytes(4)
    return ",".join(f"0x{byte:02x}" for byte in packed)


def kde_failed(home: Path, server: Server) -> str:
    """Return what is needed to understand why KDE's commands failed."""
    parts = ["== server", *map(json.dumps, server.log[-40:])]
    for name in ("session", "said", "kio.log"):
        with suppress(FileNotFoundError):
            lines = (home / name).read_text(errors="replace").splitlines()
            parts += (f"== {name}", *(line[:300] for line in lines[-100:]))
    return "\n".join(parts)


def end_kde(home: Path) -> None:
    """End the daemons of a session, which outlive its bus: those that have this home."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"HOME={home}".encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def test_kde_copies_in_and_out(
    make_bucket: Callable[[str], str], server: Server, tmp_path: Path
) -> None:
    plain = make_bucket("kde")
    host = urlsplit(plain).netloc
    address = f"webdav://{USER}:{PASSWORD.replace(' ', '%20')}@{host}/kde"
    # Sent before KDE knows that it has to log in, and too much for the sockets' buffers.
    digest = make_random_file(tmp_path / "up", 20 * MIB, seed=8)
    tree = tmp_path / "tree"
    for folder in ("inner", "empty", "names ü+%#?"):
        (tree / folder).mkdir(parents=True)
    make_random_file(tree / "inner" / "a", 3 * MIB, seed=9)
    (tree / "names ü+%#?" / "a&b; 100%").write_bytes(b"named")
    for folder in (".config", "runtime"):
        (tmp_path / folder).mkdir(mode=0o700)
    (tmp_path / ".config" / "kwalletrc").write_text("[Wallet]\nEnabled=false\nFirst Use=false\n")
    login = kde_login(f"webdav://{USER}@{host}/", REALM)
    find_command("kioclient5")
    try:
        run(
            *("bash", "-c", 'dbus-run-session -- bash -c "$0" >session 2>&1'),
            KIO.format(address=address, login=login),
            cwd=tmp_path,
            environment={
                "HOME": str(tmp_path),
                "XDG_CONFIG_HOME": str(tmp_path / ".config"),
                "XDG_CACHE_HOME": str(tmp_path / ".cache"),
                "XDG_DATA_HOME": str(tmp_path / ".local"),
                "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
                "QT_QPA_PLATFORM": "offscreen",
                "QT_LOGGING_RULES": "kf.kio*=true",
            },
        )
        said = (tmp_path / "said").read_text()
        assert said.endswith("\ncopied\nnew\n\n+ echo at the end\nat the end\n")
        assert hash_file(tmp_path / "down") == digest
        assert hash_file(tmp_path / "printed") == digest
        same_trees(tree, tmp_path / "back")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        error.add_note(kde_failed(tmp_path, server))
        raise
    finally:
        end_kde(tmp_path)

"""One truth through three doors: random steps through S3, WebDAV and a real mount, in one bucket.

After every step each door has to show the same files, folders and bytes. S3 and WebDAV are asked
once. The mount is another process whose kernel is told of changes by the feed, so it is asked
until it shows them; its own changes, and what it answers to a step, are exact at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from tests.support.dav import Door, dav_door
from tests.support.engine import Folder, folder_in, pattern
from tests.support.mounts import Mount, mounted
from tests.support.s3 import S3Server
from tests.support.s3_door import serving_s3
from tests.support.tree_model import Step, Tree, View, file_name, view_of

NAMES = ["a", "é b", "%name"]
"""Few, so that steps meet."""

SEEN_S = 120.0
"""Longest time until a mount shows what another process did; a second is what is promised, but
this machine may be doing many other things."""

DAV = "{DAV:}"


class Doors:
    """One bucket, as its three kinds of clients use it."""

    def __init__(self, bucket: str, s3: S3Server, dav: Door, mount: Path) -> None:
        self._bucket = bucket
        self._s3 = s3
        self._dav = dav
        self._top = mount / bucket

    async def perform(self, step: Step, data: bytes) -> int:
        match step.door:
            case "s3":
                return await self._perform_s3(step, data)
            case "dav":
                return await self._perform_dav(step, data)
            case _:
                return await trio.to_thread.run_sync(self._perform_mount, step, data)

    async def _perform_s3(self, step: Step, data: bytes) -> int:
        where = f"/{self._bucket}/{step.path}"
        match step.action:
            case "put":
                return (await self._s3.request("PUT", where, body=data)).status
            case "mkdir":
                return (await self._s3.request("PUT", where + "/")).status
            case "delete":
                return (await self._s3.request("DELETE", where)).status
        headers = {"x-amz-copy-source": quote(where)}
        if not step.overwrite:
            headers["if-none-match"] = "*"
        to = f"/{self._bucket}/{step.to}"
        status = (await self._s3.request("PUT", to, headers=headers)).status
        if status == 200 and step.action == "move":
            assert (await self._s3.request("DELETE", where)).status == 204
        return status

    def _href(self, path: str) -> str:
        return quote("/".join([f"/{self._bucket}", *map(file_name, path.split("/"))]))

    async def _perform_dav(self, step: Step, data: bytes) -> int:
        methods = {"put": "PUT", "mkdir": "MKCOL", "delete": "DELETE"}
        method = methods.get(step.action, step.action.upper())
        headers = {}
        if method in ("COPY", "MOVE"):
            headers["Destination"] = self._href(step.to)
            headers["Overwrite"] = "T" if step.overwrite else "F"
        body = data if method == "PUT" else None
        return (await self._dav.call(method, self._href(step.path), body, **headers)).status

    def _path(self, path: str) -> Path:
        return self._top.joinpath(*map(file_name, path.split("/")))

    def _perform_mount(self, step: Step, data: bytes) -> int:
        path = self._path(step.path)
        try:
            match step.action:
                case "put":
                    _write(path, "wb", data)
                case "mkdir":
                    path.mkdir()
                case "delete":
                    (path.rmdir if path.is_dir() else path.unlink)()
                case "move":
                    path.rename(self._path(step.to))
                case _:
                    _write(self._path(step.to), "wb" if step.overwrite else "xb", path.read_bytes())
        except OSError as error:
            return error.errno or -1
        return 0

    # Looking

    async def keys(self) -> dict[str, bytes]:
        """Return the keys with their bytes, through S3, and check sizes and ETags on the way."""
        listing = await self._s3.request("GET", f"/{self._bucket}", "list-type=2&encoding-type=url")
        found = {}
        for entry in listing.xml.iterfind("Contents"):
            key = unquote(entry.findtext("Key") or "")
            answer = await self._s3.get(f"/{self._bucket}/{key}")
            assert (answer.status, answer.headers["etag"]) == (200, entry.findtext("ETag"))
            assert len(answer.body) == int(entry.findtext("Size") or -1)
            found[key] = answer.body
        return found

    async def dav_view(self) -> View:
        files: dict[str, bytes] = {}
        folders: set[str] = set()
        top = f"/{self._bucket}/"
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            answer = await self._dav.call("PROPFIND", folder, Depth="1")
            assert answer.status == 207, answer
            for response in ElementTree.fromstring(answer.body).iterfind(f"{DAV}response"):
                href = response.findtext(f"{DAV}href") or ""
                if href == folder:
                    continue
                assert href.startswith(folder), (href, folder)
                path = unquote(href).removeprefix(top)
                if response.find(f".//{DAV}collection") is not None:
                    folders.add(path.removesuffix("/"))
                    waiting.append(href)
                else:
                    got = await self._dav.get(href)
                    assert got.status == 200, (href, got)
                    assert response.findtext(f".//{DAV}getcontentlength") == str(len(got.body))
                    assert response.findtext(f".//{DAV}getetag") == got["etag"]
                    files[path] = got.body
        return View(files, folders)

    def mount_view(self) -> View:
        files: dict[str, bytes] = {}
        folders: set[str] = set()
        for root, directories, names in os.walk(self._top, onerror=_raise):
            here = Path(root)
            folders.update(str((here / name).relative_to(self._top)) for name in directories)
            for name in names:
                data = (here / name).read_bytes()
                assert (here / name).stat().st_size == len(data)
                files[str((here / name).relative_to(self._top))] = data
        return View(files, folders)

    def mount_shows(self, expected: View) -> View | None:
        """Return None when the mount shows what it should, else what it shows. Every path that
        steps can name is looked up too: the kernel remembers also what was not there."""
        try:
            found = self.mount_view()
            for path in every_path():
                there = self._path(path)
                name = "/".join(map(file_name, path.split("/")))
                if there.is_dir() != (name in expected.folders):
                    return found
                if there.is_file() != (name in expected.files):
                    return found
        except (OSError, AssertionError):  # it changes while it is walked
            return View({}, {"changing"})
        return None if found == expected else found


def _write(path: Path, mode: str, data: bytes) -> None:
    with path.open(mode) as file:
        file.write(data)
        if not data:
            os.fsync(file.fileno())  # a file that nothing was written to waits for its last close


def _raise(error: OSError) -> None:
    raise error


def every_path() -> list[str]:
    return NAMES + [f"{first}/{second}" for first in NAMES for second in NAMES]


class Plan(NamedTuple):
    """A step whose paths are chosen when it is its turn, so that it meets what is there."""

    door: str
    action: str
    choices: tuple[int, int, int]
    overwrite: bool
    size: int

    def step(self, tree: Tree) -> Step:
        any_path = every_path()
        there = [path for path in any_path if tree.exists(path)]
        inside = [path for path in any_path if tree.is_folder(path.rpartition("/")[0])]
        source, target, how = self.choices
        from_, into = (there or any_path, inside) if how else (any_path, any_path)
        sources = into if self.action in ("put", "mkdir") else from_
        path = sources[source % len(sources)]
        to = into[target % len(into)] if self.action in ("move", "copy") else ""
        overwrite = self.overwrite or (self.door, self.action) == ("mount", "move")
        return Step(self.door, self.action, path, to, overwrite, self.size)


def plans() -> st.SearchStrategy[list[Plan]]:
    index = st.integers(0, 11)
    plan = st.builds(
        Plan,
        st.sampled_from(["s3", "dav", "mount"]),
        st.sampled_from(["put", "put", "delete", "mkdir", "move", "move", "copy"]),
        st.tuples(index, index, st.integers(0, 5)),
        st.booleans(),
        st.sampled_from([0, 1, 700, 3000, 20_000]),
    )
    return st.lists(plan, min_size=4, max_size=14)


async def until_shown(look: Callable[[], View | None]) -> None:
    """Ask until there is no difference left."""
    different: View | None = None
    with trio.move_on_after(SEEN_S):
        # Another process's kernel tells nobody.
        while (different := await trio.to_thread.run_sync(look)) is not None:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert different is None, f"the mount still shows {different}"


async def check(engine: Engine, mount: Mount, bucket: str, script: Sequence[Plan | Step]) -> None:
    tree = Tree()
    async with serving_s3(engine) as s3, dav_door(engine) as dav:
        await engine.create_bucket(bucket, owner="x")
        doors = Doors(bucket, s3, dav, mount.path)
        await until_shown(lambda: doors.mount_shows(View({}, set())))
        for number, entry in enumerate(script):
            step = entry.step(tree) if isinstance(entry, Plan) else entry
            data = pattern(step.size, number)
            expected = tree.apply(step, data)
            answer = await doors.perform(step, data)
            assert answer == expected, (step, answer, expected)
            shown = view_of(tree)
            assert await doors.keys() == tree.keys, step
            assert await doors.dav_view() == shown, step
            await until_shown(lambda shown=shown: doors.mount_shows(shown))
    report = await engine.fsck(deep=True)
    assert report.clean, report.problems


class Stage:
    """A store with a mount of all its buckets, for many scripts; each has its own bucket."""

    def __init__(self, folder: Folder, mount: Mount) -> None:
        self._folder = folder
        self._mount = mount
        self._scripts = 0

    def run(self, script: Sequence[Plan | Step]) -> None:
        self._scripts += 1
        bucket = f"bucket-{self._scripts}"

        async def main() -> None:
            async with self._folder.open() as engine:
                await check(engine, self._mount, bucket, script)

        trio.run(main)
        assert self._mount.troubles == []


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    path = tmp_path_factory.mktemp("doors")
    folder = folder_in(path, drives=1, profile="1+0")
    trio.run(folder.prepare)
    with mounted(folder.config.data, path / "mnt", bucket="") as mount:
        yield Stage(folder, mount)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=plans())
@example(
    script=[
        Step("s3", "put", "a/é b", size=700),
        Step("s3", "put", "a", size=1),
        Step("mount", "put", "a/a", size=3000),
        Step("dav", "move", "a", "é b"),
        Step("mount", "move", "a", "é b/a"),
        Step("mount", "delete", "é b/a"),
        Step("mount", "move", "é b", "%name"),
        Step("dav", "delete", "%name/é b"),
        Step("s3", "delete", "%name/a"),
        Step("mount", "delete", "%name"),
    ]
)
def test_three_doors_show_one_truth(stage: Stage, script: Sequence[Plan | Step]) -> None:
    stage.run(script)


@pytest.mark.soak
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=plans())
def test_three_doors_show_one_truth_for_long(stage: Stage, script: Sequence[Plan | Step]) -> None:
    stage.run(script)

"""A directory's pages while this mount commits files in it: each is listed once, at any moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from engine.engine import Engine
from engine.paths import PathPage, Paths
from fs import directory
from fs.directory import KeySource
from fs.inodes import Kind, Node
from fs.options import MountOptions
from fs.view import View
from tests.support.engine import engine_in, put, scratch_folder


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with scratch_folder() as folder:
        async with engine_in(folder, drives=1, profile="1+0") as engine:
            await engine.create_bucket("bucket", owner="owner")
            for name in ("a", "b/x", "d", "f"):
                await put(engine, "bucket", f"folder/{name}", b"x")
            yield engine


class Interrupted(Paths):
    """Calls ``between`` when a page was read, before anybody sees it."""

    def __init__(self, engine: Engine, between: Callable[[], None]) -> None:
        super().__init__(engine.store)
        self._between = between

    async def page(self, bucket_name: str, prefix: str, after: str, limit: int) -> PathPage:
        page = await super().page(bucket_name, prefix, after, limit)
        self._between()
        return page


async def view_of(engine: Engine) -> View:
    options = MountOptions(target=Path("/nowhere"), bucket="bucket")
    bucket = await engine.bucket("bucket")
    return View(engine, options, structlog.get_logger(), bucket=bucket, started_ms=0)


async def make_unsaved(view: View, name: str) -> Node:
    """A file that this mount has made and did not commit."""
    bucket = await view.engine.bucket("bucket")
    node = view.table.find(Kind.FILE, "bucket", bucket.bucket_id, f"folder/{name}")
    node.open_stat = view.attributes.plain(0, 0)
    view.table.opened(node)
    view.unsaved.add(node)
    return node


async def list_all(view: View) -> list[str]:
    bucket = await view.engine.bucket("bucket")
    folder = view.table.find(Kind.DIRECTORY, "bucket", bucket.bucket_id, "folder/")
    source = KeySource(view, folder)
    names: list[str] = []
    after, last_more = "", b""
    while True:
        page = await source.page(after, last_more)
        names += [entry.name.decode() for entry in page.entries]
        if page.next_after is None:
            return names
        after, last_more = page.next_after, page.last_more


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
async def test_a_file_that_is_not_committed_is_listed_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    monkeypatch.setattr(directory, "PAGE", page_size)
    view = await view_of(engine)
    for name in ("0", "c", "e", "z"):
        await make_unsaved(view, name)
    assert sorted(await list_all(view)) == ["0", "a", "b", "c", "d", "e", "f", "z"]


@pytest.mark.parametrize("page_size", [1, 2, 1000])
async def test_a_file_that_is_being_committed_is_listed_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    """It is in the store already, and not yet marked as committed."""
    monkeypatch.setattr(directory, "PAGE", page_size)
    view = await view_of(engine)
    for name in ("a", "f"):
        await make_unsaved(view, name)
    assert sorted(await list_all(view)) == ["a", "b", "d", "f"]


@pytest.mark.parametrize("page_size", [1, 2, 1000])
async def test_a_file_that_was_committed_while_its_page_was_read_is_listed_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    """It was not in the store when the page was read, and is marked as committed afterwards."""
    monkeypatch.setattr(directory, "PAGE", page_size)
    view = await view_of(engine)
    node = await make_unsaved(view, "c")
    pages = 0

    def commit() -> None:
        nonlocal pages
        pages += 1
        if pages == -(-3 // page_size):  # the page whose keys are around c
            view.unsaved.discard(node)

    view.paths = Interrupted(engine, commit)
    assert sorted(await list_all(view)) == ["a", "b", "c", "d", "f"]

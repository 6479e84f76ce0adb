"""Random calls over WebDAV, with others through the engine as S3 makes them, against a dictionary
of keys; statuses and all keys with their bytes are compared after every call."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dav.names import href
from engine.engine import Engine
from tests.support import tree_model
from tests.support.dav import Door, dav_door
from tests.support.engine import engine_in, pattern, put, read, scratch_folder

BUCKET = "bucket"
NAMES = ["a", "é b", "%name"]
"""Few, so that steps meet."""


class Step(NamedTuple):
    method: str
    path: str
    to: str = ""
    overwrite: bool = True
    size: int = 0

    def for_model(self) -> tree_model.Step:
        door = "s3" if self.method.startswith("S3") else "dav"
        action = {"MKCOL": "mkdir"}.get(self.method, self.method.removeprefix("S3").lower())
        return tree_model.Step(door, action, self.path, self.to, self.overwrite, self.size)


def paths() -> st.SearchStrategy[str]:
    name = st.sampled_from(NAMES)
    return st.one_of(name, st.lists(name, min_size=2, max_size=2).map("/".join), st.just("a/é b/a"))


def steps() -> st.SearchStrategy[list[Step]]:
    step = st.builds(
        Step,
        st.sampled_from(
            ["MKCOL", "MKCOL", "PUT", "PUT", "DELETE", "COPY", "MOVE", "MOVE", "S3PUT", "S3DELETE"]
        ),
        paths(),
        paths(),
        st.booleans(),
        st.sampled_from([0, 1, 700, 3000, 20_000]),
    )
    return st.lists(step, min_size=1, max_size=20)


async def perform(engine: Engine, door: Door, step: Step, data: bytes) -> int:
    match step.method:
        case "S3PUT":
            await put(engine, BUCKET, step.path, data)
            return 200
        case "S3DELETE":
            await engine.delete(BUCKET, step.path)
            return 204
    where = href(BUCKET, step.path, folder=False)
    headers = {"Overwrite": "T" if step.overwrite else "F"}
    if step.method in ("COPY", "MOVE"):
        headers["Destination"] = href(BUCKET, step.to, folder=False)
    body = data if step.method == "PUT" else None
    return (await door.call(step.method, where, body, **headers)).status


async def contents(engine: Engine) -> dict[str, bytes]:
    listing = await engine.list_objects(BUCKET)
    return {found.key: await read(engine, BUCKET, found.key) for found in listing.objects}


async def run(path: Path, script: list[Step]) -> None:
    model = tree_model.Tree()
    async with engine_in(path) as engine, dav_door(engine) as door:
        await engine.create_bucket(BUCKET, owner="x")
        for number, step in enumerate(script):
            data = pattern(step.size, number)
            expected = model.apply(step.for_model(), data)
            assert await perform(engine, door, step, data) == expected, step
            assert await contents(engine) == model.keys, step
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


def run_in_new_folder(script: list[Step]) -> None:
    with scratch_folder() as path:
        trio.run(run, path, script)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps())
@example(
    [
        Step("S3PUT", "a/b", size=700),
        Step("S3PUT", "a", size=1),
        Step("COPY", "a", "b"),
        Step("MOVE", "b", "a"),
        Step("DELETE", "a"),
        Step("MOVE", "a", "b"),
    ]
)
def test_webdav_does_what_the_model_does(script: list[Step]) -> None:
    run_in_new_folder(script)


@pytest.mark.soak
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps())
def test_webdav_does_what_the_model_does_for_long(script: list[Step]) -> None:
    run_in_new_folder(script)

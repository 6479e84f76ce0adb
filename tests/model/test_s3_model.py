"""Random calls as signed requests over HTTP and against the reference model, compared after
every call; then the store is opened again, proved by fsck and emptied."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings

from tests.support.calls import PART_SIZE_MIN, calls
from tests.support.engine import (
    count_fragments,
    data_rows,
    folder_in,
    part_size_min,
    scratch_folder,
)
from tests.support.model import Model
from tests.support.s3_door import S3Door, serving_s3
from tests.support.scenario import Call, Scenario


async def run_scenario(path: Path, script: list[Call]) -> None:
    folder = folder_in(path)
    await folder.prepare()
    with part_size_min(PART_SIZE_MIN):
        async with folder.open() as opened, serving_s3(opened) as server:
            scenario = Scenario(Model(part_size_min=PART_SIZE_MIN), S3Door(server, folder.clock))
            await scenario.run(script)
            await scenario.compare_all()
        async with folder.open() as opened, serving_s3(opened) as server:
            scenario.door = S3Door(server, folder.clock)
            report = await opened.fsck(deep=True)
            assert report.clean, report.problems
            await scenario.delete_all()
            await scenario.apply(Call("collect"))
            await scenario.apply(Call("collect"))
            assert await count_fragments(opened) == 0
            assert await data_rows(opened) == {}


def run_in_new_folder(script: list[Call]) -> None:
    with scratch_folder() as path:
        trio.run(run_scenario, path, script)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(calls(ascii_metadata=True))
def test_s3_does_what_the_model_does(script: list[Call]) -> None:
    run_in_new_folder(script)


@pytest.mark.soak
@settings(
    max_examples=2000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(calls(ascii_metadata=True))
def test_s3_does_what_the_model_does_for_long(script: list[Call]) -> None:
    run_in_new_folder(script)

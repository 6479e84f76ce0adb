"""Random calls against the engine and the reference model, compared after every call; then the
store is opened again, proved by fsck, emptied, and nothing may be left of it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.memory import MemoryDatabase
from tests.support.calls import PART_SIZE_MIN, calls
from tests.support.engine import (
    count_fragments,
    data_rows,
    folder_in,
    part_size_min,
    scratch_folder,
)
from tests.support.engine_door import EngineDoor
from tests.support.model import Model
from tests.support.scenario import Call, Scenario


async def run_scenario(path: Path, script: list[Call]) -> None:
    folder = folder_in(path)
    await folder.prepare()
    model = Model(part_size_min=PART_SIZE_MIN)
    with part_size_min(PART_SIZE_MIN):
        async with folder.open() as opened:
            scenario = Scenario(model, EngineDoor(opened, folder.clock))
            await scenario.run(script)
            await scenario.compare_all()
        async with folder.open() as opened:
            scenario.door = EngineDoor(opened, folder.clock)
            await scenario.compare_all()
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
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(calls())
def test_engine_does_what_the_model_does(script: list[Call]) -> None:
    run_in_new_folder(script)


async def run_on_chaos(path: Path, script: list[Call], seed: int) -> None:
    """Run against metadata in memory, where bodies run more often than once."""
    folder = folder_in(path)
    await folder.prepare()
    memory = MemoryDatabase(random.Random(seed))
    with part_size_min(PART_SIZE_MIN):
        async with folder.open() as opened:
            for prefix in (keyspace.SESSION, keyspace.NODE, keyspace.SETTING):
                await copy_rows(opened.store.db, memory, prefix)
            engine = Engine(dataclasses.replace(opened.store, db=memory))
            scenario = Scenario(
                Model(part_size_min=PART_SIZE_MIN), EngineDoor(engine, folder.clock)
            )
            await scenario.run(script)
            await scenario.compare_all()
            report = await engine.fsck(deep=True)
            assert report.clean, report.problems
            await scenario.delete_all()
            await scenario.apply(Call("collect"))
            await scenario.apply(Call("collect"))
            assert await count_fragments(engine) == 0
            assert await data_rows(engine) == {}


async def copy_rows(source: Database, target: Database, prefix: bytes) -> None:
    async def read(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(prefix, keyspace.after_prefix(prefix))

    rows = await source.read(read)

    async def write(tr: Transaction) -> None:
        for key, value in rows:
            tr.set(key, value)

    await target.run(write)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(calls(), st.integers(0, 1000))
def test_engine_needs_no_transaction_to_run_just_once(script: list[Call], seed: int) -> None:
    with scratch_folder() as path:
        trio.run(run_on_chaos, path, script, seed)


@pytest.mark.soak
@settings(
    max_examples=3000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(calls())
def test_engine_does_what_the_model_does_for_long(script: list[Call]) -> None:
    run_in_new_folder(script)

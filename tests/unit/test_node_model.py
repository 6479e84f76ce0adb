"""A drive against a dict: random puts, deletes, aborts, compactions and reopenings."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.ids import FragmentId
from engine.node.compaction import compact
from engine.node.writer import FragmentWriter
from tests.support.drives import (
    check_sums,
    content,
    everything,
    fragment,
    lose_index,
    new_drive,
    pieces,
    put,
    reopen,
)

NUMBERS = st.integers(0, 12)
SIZES = st.sampled_from([0, 1, 512, 513, 3_000, 8_192, 9_000, 20_000])
VOLUME_SIZE = 24 * 1024
DIRECT_MIN = 8_000
"""Some of the fragments go past the page cache."""


class DriveModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.drive = new_drive(self.path, volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN)
        self.model: dict[FragmentId, bytes] = {}
        self.open: list[tuple[FragmentId, bytes, FragmentWriter]] = []

    @rule(number=NUMBERS, seed=st.integers(0, 3), size=SIZES, spare=SIZES)
    def put(self, number: int, seed: int, size: int, spare: int) -> None:
        data = content(seed, size)
        put(self.drive, fragment(number), data, size + spare)
        self.model[fragment(number)] = data

    @rule(number=NUMBERS, size=SIZES, spare=SIZES)
    def begin(self, number: int, size: int, spare: int) -> None:
        writer = self.drive.open_writer(fragment(number), size + spare)
        data = content(number, size)
        writer.write(pieces(data)[:1])
        writer.write(pieces(data)[1:])
        self.open.append((fragment(number), data, writer))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        name, payload, writer = self.open.pop(index)
        writer.commit()
        self.model[name] = payload

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))[2].abort()

    @rule(numbers=st.lists(NUMBERS, max_size=6))
    def delete(self, numbers: list[int]) -> None:
        self.drive.delete([fragment(number) for number in numbers])
        for number in numbers:
            self.model.pop(fragment(number), None)

    @rule(dead_ratio=st.sampled_from([0.01, 0.3, 0.9]))
    def compact(self, dead_ratio: float) -> None:
        compact(self.drive, dead_ratio=dead_ratio)

    @rule(lose=st.booleans())
    def reopen(self, lose: bool) -> None:
        self.open.clear()
        self.drive.close()
        if lose:
            lose_index(self.path)
        self.drive = reopen(self.path, volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN)
        assert self.drive.report.damage == []

    @invariant()
    def same_as_the_model(self) -> None:
        assert everything(self.drive) == self.model
        check_sums(self.drive)

    def teardown(self) -> None:
        self.drive.close()
        self.folder.cleanup()


TestDriveModel = DriveModel.TestCase
TestDriveModel.settings = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

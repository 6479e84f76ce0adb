"""Staging bytes first and committing them later, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import PreconditionFailed
from engine.types import Attributes, Conditions
from tests.support.engine import (
    BytesSource,
    border_sizes,
    count_fragments,
    data_rows,
    engine_in,
    pattern,
    read,
)


@pytest.mark.parametrize("announced", [True, False])
async def test_staged_bytes_of_every_class_are_read_back_and_committed(
    tmp_path: Path, announced: bool
) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        for size in border_sizes():
            source = BytesSource(pattern(size))
            staged = await engine.stage(source, size=size if announced else None)
            assert staged.size == size
            stream = await staged.stream()
            assert b"".join([bytes(buffer) async for buffer in stream]) == pattern(size)
            await stream.aclose()
            attributes = Attributes(metadata=[("mtime", "1")])
            info = await staged.commit("bucket", str(size), attributes=attributes)
            assert info.record.metadata == [("mtime", "1")]
            assert await read(engine, "bucket", str(size)) == pattern(size)
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


async def test_a_refused_commit_keeps_the_bytes_and_discard_leaves_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        data = pattern(300_000)
        staged = await engine.stage(BytesSource(data), size=None)
        wrong = Conditions(if_match_data_id=b"0" * 16)
        with pytest.raises(PreconditionFailed):
            await staged.commit("bucket", "key", attributes=Attributes(), conditions=wrong)
        stream = await staged.stream()
        assert b"".join([bytes(buffer) async for buffer in stream]) == data
        await stream.aclose()
        await staged.discard()
        assert await count_fragments(engine) == 0
        assert await data_rows(engine) == {}

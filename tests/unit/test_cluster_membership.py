"""Who is up: which health follows which, and what the heartbeat writes down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from engine.cluster.membership import Patience, next_health, worse
from engine.errors import ConfigError
from tests.support.engine import pattern, put, read
from tests.support.logs import Logs
from tests.support.machines import Cluster, open_cluster

PATIENCE = Patience(6.0, 30.0, 900.0)


@pytest.mark.parametrize(
    ("health", "silent_s", "since_s", "after"),
    [
        ("up", 0, 0, "up"),
        ("up", 5.9, 1000, "up"),
        ("up", 6, 0, "suspect"),
        ("up", 1000, 0, "suspect"),
        ("suspect", 29, 1000, "suspect"),
        ("suspect", 30, 0, "down"),
        ("down", 1000, 899, "down"),
        ("down", 1, 900, "lost"),
        ("lost", 1000, 10_000, "lost"),
        ("suspect", 0, 0, "up"),
        ("down", 0, 0, "up"),
        ("lost", 0, 0, "up"),
    ],
)
def test_silence_makes_worse_step_by_step_and_an_answer_makes_well(
    health: str, silent_s: float, since_s: float, after: str
) -> None:
    now_ms = 10_000_000
    since_ms = now_ms - int(since_s * 1000)
    found = next_health(health, since_ms, silent_s=silent_s, now_ms=now_ms, patience=PATIENCE)
    assert found == after


def test_nothing_is_lost_while_most_are_silent() -> None:
    found = next_health(
        "down", 0, silent_s=1000, now_ms=10**9, patience=PATIENCE, may_be_lost=False
    )
    assert found == "down"


def test_the_worse_of_drive_and_member_counts() -> None:
    assert worse("up", "suspect") == worse("suspect", "up") == "suspect"
    assert worse("lost", "down") == "lost"


async def rounds(cluster: Cluster, seconds: int) -> None:
    """Run the heartbeat for so long."""
    for _ in range(seconds // 2):
        await cluster.heartbeat.round()
        await cluster.view.sync()
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.jump(2)
        cluster.clock.advance(2)


def with_clock(main: Callable[[], Awaitable[None]]) -> None:
    # No jumps by itself: it would take a commit in a thread for idleness.
    trio.run(main, clock=MockClock())


def test_a_silent_member_is_suspect_down_and_lost_and_up_when_it_answers(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("health changed|session")

    async def main() -> None:
        async with open_cluster(tmp_path, lost_s=60.0) as cluster:
            await rounds(cluster, 10)
            before = (await cluster.rows()).counter
            await rounds(cluster, 10)
            # A quiet cluster writes nothing.
            assert (await cluster.rows()).counter == before
            cluster.machines["m2"].switch(on=False)
            await rounds(cluster, 4)
            assert await cluster.healths() == {}
            await rounds(cluster, 8)
            assert await cluster.healths() == {"m2": "suspect"}
            await rounds(cluster, 26)
            assert await cluster.healths() == {"m2": "down"}
            (node_id,) = (await cluster.rows()).nodes_of((await cluster.rows()).find("m2")[0])
            assert cluster.pool.usable(node_id) is None
            assert not cluster.pool.gone(node_id)
            await rounds(cluster, 64)
            assert await cluster.healths() == {"m2": "lost"}
            assert cluster.pool.gone(node_id)
            cluster.machines["m2"].switch(on=True)
            await rounds(cluster, 2)
            assert await cluster.healths() == {}
            assert cluster.pool.usable(node_id) is not None

    with_clock(main)


def test_members_are_not_lost_when_the_gateway_is_cut_off(tmp_path: Path, logs: Logs) -> None:
    logs.expect("health changed|session")

    async def main() -> None:
        async with open_cluster(tmp_path, lost_s=20.0) as cluster:
            await rounds(cluster, 4)
            for number in range(1, 5):
                cluster.machines[f"m{number}"].switch(on=False)
            await rounds(cluster, 100)
            assert set((await cluster.healths()).values()) == {"down"}

    with_clock(main)


def test_a_drive_that_fails_alone_is_down_alone(tmp_path: Path, logs: Logs) -> None:
    logs.expect("health changed|drive replaced|session")

    async def main() -> None:
        async with open_cluster(tmp_path, drives=2, members=3) as cluster:
            await rounds(cluster, 4)
            drive = cluster.machines["m1"].drives[0]
            drive.folder = "/mnt/elsewhere"
            kept, drive.node = drive.node, None
            await rounds(cluster, 40)
            assert await cluster.healths() == {}
            nodes = (await cluster.rows()).nodes.values()
            assert sorted(node.health for node in nodes) == ["down"] + ["up"] * 5
            # It is found again wherever it is.
            drive.node = kept
            await rounds(cluster, 4)
            nodes = (await cluster.rows()).nodes.values()
            assert {node.health for node in nodes} == {"up"}
            assert "/mnt/elsewhere" in {node.location for node in nodes}

    with_clock(main)


def test_a_drive_that_takes_long_to_open_is_not_lost(tmp_path: Path, logs: Logs) -> None:
    logs.expect("health changed|session")

    async def main() -> None:
        async with open_cluster(tmp_path, lost_s=20.0) as cluster:
            await rounds(cluster, 4)
            cluster.machines["m1"].drives[0].opening = True
            await rounds(cluster, 120)
            nodes = (await cluster.rows()).nodes.values()
            assert sorted(node.health for node in nodes) == ["down"] + ["up"] * 5
            cluster.machines["m1"].drives[0].opening = False
            await rounds(cluster, 4)
            assert {n.health for n in (await cluster.rows()).nodes.values()} == {"up"}

    with_clock(main)


def test_an_empty_drive_in_a_known_slot_is_formatted_and_filled(tmp_path: Path, logs: Logs) -> None:
    logs.expect("health changed|drive replaced|damage found|fragments missing|session")

    async def main() -> None:
        async with open_cluster(tmp_path) as cluster:
            await cluster.engine.create_bucket("bucket", owner="owner")
            await put(cluster.engine, "bucket", "key", pattern(300_000))
            before = cluster.fragments()
            cluster.machines["m3"].drives[0].wipe()
            await rounds(cluster, 8)
            states = [node.state for node in (await cluster.rows()).nodes.values()]
            assert sorted(states) == ["rebuilding"] + ["up"] * 5
            await cluster.settle()
            assert {node.state for node in (await cluster.rows()).nodes.values()} == {"up"}
            assert cluster.fragments() == before
            assert await read(cluster.engine, "bucket", "key") == pattern(300_000)
            assert (await cluster.engine.fsck(deep=True)).clean

    with_clock(main)


async def test_a_member_is_told_by_name_address_or_id(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        rows = await cluster.rows()
        member_id, record = rows.find("m4")
        assert rows.find(record.address)[0] == rows.find(member_id.hex())[0] == member_id
        with pytest.raises(ConfigError, match="known: m1, m2"):
            rows.find("m9")


async def test_two_members_cannot_have_one_name(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        with pytest.raises(ConfigError, match="called m1 too"):
            await cluster.add("m7", name="m1")
        assert len((await cluster.rows()).members) == 6


async def test_adding_again_takes_in_new_drives_and_a_new_address(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        from tests.support.machines import Drive

        machine = cluster.machines["m2"]
        machine.address = "10.9.9.9:1"
        machine.drives.append(Drive("/srv/new"))
        await cluster.add("m2")
        rows = await cluster.rows()
        assert len(rows.members) == 6
        member_id, record = rows.find("m2")
        assert record.address == "10.9.9.9:1"
        assert {n.location for n in rows.nodes_of(member_id).values()} == {"/srv/d1", "/srv/new"}
        assert len(cluster.pool) == 7


async def test_members_of_another_store_are_refused(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        cluster.machines["m7"].member, cluster.machines["m7"].store = "00" * 8, "another"
        with pytest.raises(ConfigError, match="store another"):
            await cluster.add("m7")

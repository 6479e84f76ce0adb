"""What is lost is made anew, what is added gets its share, what drains is emptied; and only what
was proved is said."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from engine.cluster.admin import Placing
from engine.data.batch import layout_of
from engine.errors import ConfigError, NoSpace, Unavailable
from engine.ids import FragmentId, fragment_id
from engine.meta import keyspace
from engine.meta.records import decode_chunk
from engine.services.census import census_status, take_census
from engine.services.collector import collect
from engine.services.progress import Progress, next_page
from engine.services.rebalance import NAME as REBALANCE
from engine.services.repair import repair_queue
from engine.services.scan import scan_prefix
from engine.services.scrub import Scrub, ask_for_scrub, begin_scrub, last_scrub
from tests.support.engine import SeededRandom, pattern, put, read
from tests.support.logs import Logs
from tests.support.machines import Cluster, open_again, open_cluster

WAIT_S = 60.0
SIZES = [2_000, 5_000, 40_000, 300_000]


def size_of(number: int, count: int) -> int:
    """Return the size of an object; where there are many of them, they are small."""
    return SIZES[number % (len(SIZES) if count <= 12 else 2)]


async def fill(cluster: Cluster, count: int = 12) -> None:
    await cluster.engine.create_bucket("bucket", owner="owner")
    for number in range(count):
        size = size_of(number, count)
        await put(cluster.engine, "bucket", f"{number}", pattern(size, number))


async def check(cluster: Cluster, count: int = 12) -> None:
    """Everything reads back, and nothing is missing, doubled or left over."""
    for number in range(count):
        size = size_of(number, count)
        assert await read(cluster.engine, "bucket", f"{number}") == pattern(size, number)
    report = await cluster.engine.fsck(deep=True)
    assert report.clean, report.problems
    assert {len(names) for names in cluster.found().values()} == {1}
    assert len(cluster.found()) == report.fragments


async def test_what_a_lost_member_had_is_made_anew_elsewhere_and_said_when_proved(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("fragments missing")
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        await cluster.settle()
        had = cluster.machines["m2"].fragments
        assert had > 0
        await cluster.lose("m2")
        census = await take_census(cluster.store)
        assert (census.missing, census.unasked) == (had, 0)
        assert census.whole == census.fragments - had
        status = await cluster.engine.status()
        assert status.census == census
        assert f"{had} fragments are missing" in status.warnings
        await cluster.settle()
        after = (await cluster.engine.status()).census
        assert after is not None
        assert after.as_of_ms > census.as_of_ms
        assert (after.whole, after.missing) == (census.fragments, 0)
        assert (await cluster.engine.fsck(deep=True)).clean
        # It comes back, with one byte flipped: it keeps what it has, but for that fragment, and
        # what was made elsewhere goes.
        node = cluster.machines["m2"].drives[0].node
        assert node is not None
        damaged = next(iter(node.memory.fragments.values()))
        damaged[7] ^= 1
        cluster.machines["m2"].switch(on=True)
        await cluster.set_health("m2", "up")
        await cluster.settle()
        assert cluster.machines["m2"].fragments == had
        progress = await Progress.load(cluster.store, REBALANCE)
        assert progress is not None
        assert progress.record.size == len(damaged)
        await check(cluster)


async def test_a_member_that_is_merely_down_is_waited_for(tmp_path: Path, logs: Logs) -> None:
    logs.expect("chunk not repaired")
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        await cluster.settle()
        before = cluster.fragments()
        cluster.machines["m2"].switch(on=False)
        await cluster.set_health("m2", "down")
        await cluster.settle()
        assert cluster.fragments() == before
        census = await census_status(cluster.store)
        assert census is not None
        assert (census.missing, census.unasked) == (0, before["m2"])
        assert await cluster.count(keyspace.REPAIR) == 0
        report = await cluster.engine.fsck()
        assert not report.clean
        assert report.missing_fragments == 0
        assert (report.unchecked_nodes, report.unchecked_fragments) == (1, before["m2"])


async def test_writes_go_around_a_member_that_is_down_and_it_gets_its_share_later(
    tmp_path: Path, logs: Logs
) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        cluster.machines["m3"].switch(on=False)
        await cluster.set_health("m3", "down")
        await fill(cluster)
        assert await cluster.count(keyspace.REPAIR) == 0
        assert cluster.machines["m3"].fragments == 0
        cluster.machines["m3"].switch(on=True)
        await cluster.set_health("m3", "up")
        await cluster.settle()
        assert cluster.machines["m3"].fragments > 0
        await check(cluster)


async def test_a_new_member_gets_its_share_and_no_more_moves(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster, 200)
        await cluster.settle()
        before = cluster.found()
        await cluster.add("m7")
        await cluster.settle()
        after = cluster.found()
        assert before.keys() == after.keys()
        moved = sum(before[fragment] != after[fragment] for fragment in before)
        ideal = len(before) / 7
        assert 0.7 * ideal < moved <= 1.2 * ideal
        assert moved == cluster.machines["m7"].fragments
        await check(cluster, 200)


async def test_a_draining_member_is_emptied_and_can_be_removed(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        with pytest.raises(ConfigError, match="fragments"):
            await cluster.admin.remove("m4")
        await cluster.admin.drain("m4")
        await cluster.view.sync()
        # It serves reads meanwhile, and gets nothing new.
        had = cluster.machines["m4"].fragments
        await put(cluster.engine, "bucket", "new", pattern(50_000))
        assert cluster.machines["m4"].fragments == had
        await cluster.settle()
        assert cluster.machines["m4"].fragments == 0
        (member,) = [m for m in (await cluster.engine.status()).members if m.name == "m4"]
        assert member.state == "drained"
        assert await cluster.admin.remove("m4") == ("m4", True)
        await cluster.view.sync()
        assert len(cluster.pool) == 6
        await cluster.engine.delete("bucket", "new")
        await collect(cluster.store, grace_s=0)
        await check(cluster)


async def test_draining_is_refused_when_too_few_drives_would_be_left(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        with pytest.raises(ConfigError, match="add a member first"):
            await cluster.admin.drain("m1")


async def test_a_draining_member_can_be_kept_after_all(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        await cluster.settle()
        before = cluster.found()
        await cluster.admin.drain("m4")
        await cluster.view.sync()
        await cluster.settle()
        await cluster.admin.undrain("m4")
        await cluster.view.sync()
        await cluster.settle()
        assert Counter(map(tuple, cluster.found().values())) == Counter(map(tuple, before.values()))
        await check(cluster)


async def test_a_dead_member_is_forgotten_once_what_it_had_is_made_anew(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("fragments missing")
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        cluster.machines["m5"].switch(on=False)
        assert await cluster.admin.remove("m5", force=True) == ("m5", False)
        await cluster.view.sync()
        await cluster.settle()
        assert "m5" not in {m.name for m in (await cluster.rows()).members.values()}
        assert len(cluster.pool) == 6
        cluster.machines["m5"].drives[0].wipe()
        await check(cluster)


async def test_a_new_machine_takes_over_the_place_of_a_dead_one(tmp_path: Path, logs: Logs) -> None:
    logs.expect("fragments missing")
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster)
        nodes = set((await cluster.rows()).nodes)
        had = cluster.machines["m6"].fragments
        await cluster.lose("m6")
        cluster.machines["m6"].drives[0].wipe()
        address = cluster.machines["m7"].address
        assert await cluster.admin.replace("m6", address, Placing()) == ("m6", "taken over")
        await cluster.view.sync()
        await cluster.settle()
        rows = await cluster.rows()
        assert set(rows.nodes) == nodes
        assert rows.find("m6")[1].address == address
        assert cluster.machines["m7"].fragments == had
        await check(cluster)


async def test_replacing_a_member_that_lives_drains_it(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster)
        address = cluster.machines["m7"].address
        assert await cluster.admin.replace("m6", address, Placing()) == ("m7", "draining")
        await cluster.view.sync()
        await cluster.settle()
        assert cluster.machines["m6"].fragments == 0
        await check(cluster)


async def test_rebalance_goes_on_where_a_killed_process_stopped(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster, 160)
        await cluster.settle()
        await cluster.add("m7")
        rebalance = cluster.upkeep._rebalance
        assert await rebalance.due()
        looks = itertools.count()
        # So far, then the process is gone.
        await rebalance.run(lambda: next(looks) > 80)
        first = cluster.machines["m7"].fragments
        assert first > 0
        async with open_again(cluster.store.config, cluster.machines, cluster.clock) as other:
            progress = await Progress.load(other.store, REBALANCE)
            assert progress is not None
            assert 0 < progress.record.done < progress.record.total
            assert [work.name for work in (await other.engine.status()).work] == [REBALANCE]
            started = progress.record.started_ms
            await other.settle()
            progress = await Progress.load(other.store, REBALANCE)
            assert progress is not None
            assert progress.record.started_ms == started
            assert progress.record.ended
            assert other.machines["m7"].fragments > first
            await check(other, 160)


async def test_two_collectors_at_once_and_a_member_down_leave_nothing_behind(
    tmp_path: Path, logs: Logs
) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        away = cluster.machines["m1"].fragments
        cluster.machines["m1"].switch(on=False)
        await cluster.set_health("m1", "down")
        for number in range(12):
            await cluster.engine.delete("bucket", f"{number}")
        cluster.clock.advance(60)
        async with open_again(cluster.store.config, cluster.machines, cluster.clock) as other:
            cluster.clock.advance(60)
            await cluster.store.sessions.renew()
            await other.store.sessions.renew()
            async with trio.open_nursery() as nursery:
                for store in (cluster.store, other.store):
                    nursery.start_soon(lambda store=store: collect(store, grace_s=0))
        assert sum(cluster.fragments().values()) == away
        assert await cluster.count(keyspace.CHUNK) == 0
        assert await cluster.count(keyspace.GARBAGE) == 0
        assert await cluster.count(keyspace.STRAY) == away
        cluster.machines["m1"].switch(on=True)
        await cluster.set_health("m1", "up")
        await cluster.settle()
        assert cluster.found() == {}
        assert await cluster.count(keyspace.STRAY) == 0


async def test_what_is_being_collected_is_neither_missing_nor_an_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)
        for number in range(12):
            await cluster.engine.delete("bucket", f"{number}")
        cluster.clock.advance(60)
        node = cluster.pool.get(cluster.pool.ids()[0])
        assert node is not None
        really_delete, deleted, looked = node.delete, trio.Event(), trio.Event()

        async def delete(fragments: Sequence[FragmentId]) -> None:
            await really_delete(fragments)
            deleted.set()
            await looked.wait()

        monkeypatch.setattr(node, "delete", delete)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(collect, cluster.store, grace_s=0))
            with trio.fail_after(WAIT_S):
                await deleted.wait()
            census = await take_census(cluster.store)
            report = await cluster.engine.fsck(deep=True)
            looked.set()
        assert (census.missing, census.chunks_unreadable, census.orphans) == (0, 0, 0)
        assert report.clean, report.problems
        assert cluster.found() == {}
        assert await cluster.count(keyspace.STRAY) == 0


async def test_fragments_that_a_dead_process_left_on_a_member_that_was_down_are_found(
    tmp_path: Path,
) -> None:
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster, 4)
        node = cluster.machines["m1"].drives[0].node
        assert node is not None
        (first, *_) = node.memory.fragments
        ours, dead = bytearray(first), bytearray(first)
        ours[12:16] = b"\xff" * 4
        dead[:10] = b"\0" * 10
        for orphan in (ours, dead):
            node.memory.fragments[bytes(orphan)] = bytearray(b"orphan")  # type: ignore[index]
        await cluster.settle()
        # The one of a live session may still be committed.
        assert bytes(ours) in node.memory.fragments
        assert bytes(dead) not in node.memory.fragments


async def test_scrub_finds_a_flipped_byte_that_nobody_read(tmp_path: Path, logs: Logs) -> None:
    logs.expect("damage found")
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster)
        async for key, row in scan_prefix(cluster.store.db, keyspace.CHUNK):
            record = decode_chunk(row)
            if record.data_blocks == 4:
                name = fragment_id(key[1:], 5)  # type: ignore[arg-type]
                node_id = record.nodes[5]
        damaged = cluster.found()[name][0]
        node = cluster.machines[damaged].drives[0].node
        assert node is not None
        assert node.node_id == node_id
        node.memory.fragments[name][100] ^= 1
        assert (await cluster.engine.fsck()).clean
        scrub = Scrub(cluster.store)
        assert await scrub.run(await begin_scrub(cluster.store), period_ms=0) == 1
        assert await repair_queue(cluster.store) == 1
        assert await scrub.run(await begin_scrub(cluster.store), period_ms=0) == 0
        await check(cluster)


async def test_a_scrub_that_was_asked_for_does_not_wait_for_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.services.scrub.ASKED_EVERY_S", 0.01)
    monkeypatch.setattr("engine.services.scrub.LOOK_AGAIN_S", math.inf)
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster)
        store, scrub = cluster.store, Scrub(cluster.store)
        progress = await begin_scrub(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(scrub.run, progress, period_ms=1e12))
            asked = await ask_for_scrub(store)
        assert not progress.record.ended
        await scrub.wait()
        await scrub.work()
        record = await last_scrub(store)
        assert record is not None
        assert record.ended
        assert record.started_ms > asked
        assert record.done == record.total > 0
        assert record.size > 0


@pytest.mark.parametrize("period_s", [0.0, 1000.0])
async def test_a_scrub_that_was_asked_for_is_done_once_whatever_the_period(
    tmp_path: Path, period_s: float
) -> None:
    async with open_cluster(tmp_path, scrub_period_s=period_s) as cluster:
        await fill(cluster, 4)
        store, scrub = cluster.store, Scrub(cluster.store)
        if not period_s:
            await scrub.work()
            assert await last_scrub(store) is None
        await ask_for_scrub(store)
        await scrub.work()
        first = await last_scrub(store)
        assert first is not None
        assert first.ended
        await scrub.work()
        assert await last_scrub(store) == first


async def test_a_scrub_that_was_asked_for_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, scrub_period_s=0.0) as cluster:
        await fill(cluster)
        store = cluster.store
        progress = await begin_scrub(store, at_once=True)
        chunks = await next_page(store.db, progress.record.cursor)
        progress.record.cursor = keyspace.after(keyspace.chunk(chunks[2][0]))
        progress.record.settled = progress.record.done = 3
        await progress.save(now=True)
        read_before = progress.record.size
        await Scrub(store).work()
        record = await last_scrub(store)
        assert record is not None
        assert record.ended
        assert record.done == record.total == len(chunks)
        sizes = [layout_of(*chunk).fragment_size * len(chunk[1].nodes) for chunk in chunks[3:]]
        assert record.size == read_before + sum(sizes)


async def test_some_full_members_are_written_around_and_all_full_refuse_only_writes(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("damage found")
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster)

        def fill_up(*names: str) -> None:
            for name in names:
                node = cluster.machines[name].drives[0].node
                assert node is not None
                node.memory.full = True

        fill_up("m1")
        had = cluster.machines["m1"].fragments
        await put(cluster.engine, "bucket", "more", pattern(300_000))
        assert cluster.machines["m1"].fragments == had
        assert await cluster.count(keyspace.REPAIR) == 0
        fill_up("m2", "m3", "m4", "m5", "m6", "m7")
        with pytest.raises(NoSpace):
            await put(cluster.engine, "bucket", "refused", pattern(300_000))
        assert {drive.state for drive in (await cluster.engine.status()).drives} == {"full"}
        assert await read(cluster.engine, "bucket", "more") == pattern(300_000)
        await cluster.engine.delete("bucket", "more")
        for number in range(12):
            await cluster.engine.delete("bucket", f"{number}")
        cluster.clock.advance(60)
        await collect(cluster.store, grace_s=0)
        assert cluster.found() == {}


async def test_more_lost_members_than_parity_are_errors_until_they_return(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("fragments missing|chunk not repaired|damage found")
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster)
        for name in ("m1", "m2", "m3"):
            await cluster.lose(name)
        with pytest.raises(Unavailable):
            await read(cluster.engine, "bucket", "3")
        with pytest.raises(Unavailable):
            await put(cluster.engine, "bucket", "new", pattern(300_000))
        await cluster.settle()
        census = await census_status(cluster.store)
        assert census is not None
        assert census.chunks_unreadable > 0
        for name in ("m1", "m2", "m3"):
            cluster.machines[name].switch(on=True)
            await cluster.set_health(name, "up")
        await cluster.settle()
        assert await cluster.count(keyspace.REPAIR) == 0
        await check(cluster)


async def test_sharing_a_failure_domain_is_said(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, machines=3, drives=2, members=3) as cluster:
        await fill(cluster)
        await cluster.settle()
        status = await cluster.engine.status()
        assert status.domains == 3
        assert "3 failure domains for 6 fragments" in " ".join(status.warnings)
        # Two on each machine, never three.
        chunks: dict[bytes, Counter[str]] = {}
        for fragment, (name,) in cluster.found().items():
            chunks.setdefault(fragment[:16], Counter())[name] += 1
        assert {max(names.values()) for names in chunks.values()} <= {1, 2}
        await check(cluster)


async def test_a_store_opens_with_all_members_silent_and_says_so(
    tmp_path: Path, logs: Logs
) -> None:
    async with open_cluster(tmp_path) as cluster:
        await fill(cluster)
        for machine in cluster.machines.values():
            machine.switch(on=False)
        async with open_again(cluster.store.config, cluster.machines, cluster.clock) as other:
            other.store.random = SeededRandom(9)
            status = await other.engine.status()
            assert {drive.state for drive in status.drives} == {"failed"}
            with pytest.raises(Unavailable):
                await read(other.engine, "bucket", "3")

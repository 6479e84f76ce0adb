"""``lode node add|drain|remove|replace|list``: what an administrator does to members.

They open the store beside running gateways, whose services do the work; ``--wait`` follows it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cli.admin import ask_store, output_console
from cli.arguments import format_bytes
from cli.status_tables import drive_table, member_table
from engine import Engine
from engine.cluster.admin import ClusterAdmin, Placing
from engine.cluster.membership import read_rows
from engine.cluster.wire import connect_over_http
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import decode_lease
from engine.services.census import last_census
from engine.services.progress import running_work
from engine.services.status import store_status
from engine.types import StoreStatus, WorkStatus

POLL_S = 0.5

Done = Callable[[Engine], Awaitable[bool]]


def add_member(data: Path, address: str, placing: Placing, *, wait: bool, as_json: bool) -> None:
    """Take a daemon in, and print what it is called and which drives it brought."""

    async def ask(engine: Engine) -> tuple[str, list[str]]:
        name, drives = await _admin(engine).add(address, placing)
        if wait:
            await _follow(engine, _settled(engine.store.clock()))
        return name, drives

    name, drives = ask_store(data, ask)
    _say(as_json, {"member": name, "drives": drives}, f"{name}: {len(drives)} drives")


def drain_member(
    data: Path, name: str, *, force: bool, undo: bool, wait: bool, as_json: bool
) -> None:
    """Empty a member, or with ``undo`` keep it after all."""

    async def ask(engine: Engine) -> str:
        admin = _admin(engine)
        found = await (admin.undrain(name) if undo else admin.drain(name, force=force))
        if wait:
            settled = _settled(engine.store.clock())
            await _follow(engine, settled if undo else lambda engine: _is_drained(engine, found))
        return found

    found = ask_store(data, ask)
    state = "up" if undo else "drained" if wait else "draining"
    _say(as_json, {"member": found, "state": state}, f"{found}: {state}")


def remove_member(data: Path, name: str, *, force: bool, wait: bool, as_json: bool) -> None:
    """Forget a member, or have what it held made anew first."""

    async def ask(engine: Engine) -> tuple[str, bool]:
        found, forgotten = await _admin(engine).remove(name, force=force)
        if wait and not forgotten:
            await _follow(engine, lambda engine: _is_forgotten(engine, found))
            forgotten = True
        return found, forgotten

    found, forgotten = ask_store(data, ask)
    text = "removed" if forgotten else "given up; forgotten once its fragments are made anew"
    _say(as_json, {"member": found, "removed": forgotten}, f"{found}: {text}")


def replace_member(
    data: Path, name: str, address: str, placing: Placing, *, wait: bool, as_json: bool
) -> None:
    """Put a new machine in the place of a member."""

    async def ask(engine: Engine) -> tuple[str, str]:
        found, how = await _admin(engine).replace(name, address, placing)
        if wait:
            if how == "draining":
                await _follow(engine, lambda engine: _is_drained(engine, name))
            else:
                await _follow(engine, _settled(engine.store.clock()))
        return found, how

    found, how = ask_store(data, ask)
    text = "takes over" if how == "taken over" else f"is added; {name} is draining"
    _say(as_json, {"member": found, "how": how}, f"{found}: {text}")


def list_members(data: Path, *, as_json: bool) -> None:
    async def ask(engine: Engine) -> StoreStatus:
        return await store_status(engine.store)

    status = ask_store(data, ask)
    if as_json:
        fields = {"members": status.members, "drives": status.drives}
        print(msgspec.json.format(msgspec.json.encode(fields)).decode())
        return
    console = output_console()
    console.print(member_table(status.members))
    console.print()
    console.print(drive_table(status.drives))


def _admin(engine: Engine) -> ClusterAdmin:
    return ClusterAdmin(engine.store, connect_over_http(engine.store.config.member_tls))


def _say(as_json: bool, fields: dict[str, object], text: str) -> None:
    print(json.dumps(fields, indent=2) if as_json else text)


# Waiting. The work is done by gateways; what they write down says how far it is.


def _settled(since_ms: int) -> Done:
    """Return a question: has a census since then proved that every fragment is in its place?"""

    async def ask(engine: Engine) -> bool:
        census = await last_census(engine.store)
        rows = await engine.store.db.read(read_rows)
        rebuilding = any(node.state == "rebuilding" for node in rows.nodes.values())
        return (
            census is not None
            and census.started_ms >= since_ms
            and not census.counts.get("missing")
            and not rebuilding
            and not any(_moves(work) for work in await running_work(engine.store))
        )

    return ask


def _moves(work: WorkStatus) -> bool:
    return work.name != "scrub"


async def _is_drained(engine: Engine, name: str) -> bool:
    rows = await engine.store.db.read(read_rows)
    member_id, _ = rows.find(name)
    return all(node.state == "removed" for node in rows.nodes_of(member_id).values())


async def _is_forgotten(engine: Engine, name: str) -> bool:
    rows = await engine.store.db.read(read_rows)
    return name not in {member.name for member in rows.members.values()}


async def _is_served(engine: Engine) -> bool:
    """Return whether some gateway runs the services of the store."""

    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(keyspace.lease("heartbeat"))

    row = await engine.store.db.read(body)
    return row is not None and decode_lease(row).expires_ms > engine.store.clock()


async def _follow(engine: Engine, done: Done) -> None:
    """Return when the question is answered with yes; show running work on a terminal meanwhile."""
    console = Console(stderr=True)
    if not await _is_served(engine):
        console.print("no gateway runs: nothing happens until `lode serve` does", style="yellow")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}
        while not await done(engine):
            work = {item.name: item for item in await running_work(engine.store)}
            for name in tasks.keys() - work.keys():
                bars.remove_task(tasks.pop(name))
            for name, item in work.items():
                if name not in tasks:
                    tasks[name] = bars.add_task(item.title, total=item.total, detail="")
                detail = f"{format_bytes(item.bytes)}, {format_bytes(int(item.bytes_per_s))}/s"
                bars.update(tasks[name], completed=item.done, total=item.total, detail=detail)
            await trio.sleep(POLL_S)

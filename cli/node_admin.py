"""``lode node add|drain|remove|replace|list``: what an administrator does to members.

They open the store beside running gateways, whose services do the work; ``--wait`` follows it.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from cli.admin import ask_store, output_console
from cli.following import Done, follow
from cli.status_tables import drive_table, member_table
from engine import Engine
from engine.cluster.admin import ClusterAdmin, Placing
from engine.cluster.membership import read_rows
from engine.cluster.wire import connect_over_http
from engine.services.census import last_census
from engine.services.progress import running_work
from engine.services.status import store_status
from engine.types import StoreStatus, WorkStatus


def add_member(data: Path, address: str, placing: Placing, *, wait: bool, as_json: bool) -> None:
    """Take a daemon in, and print what it is called and which drives it brought."""

    async def ask(engine: Engine) -> tuple[str, list[str]]:
        name, drives = await _admin(engine).add(address, placing)
        if wait:
            await follow(engine, _settled(engine.store.clock()))
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
            await follow(engine, settled if undo else lambda engine: _is_drained(engine, found))
        return found

    found = ask_store(data, ask)
    state = "up" if undo else "drained" if wait else "draining"
    _say(as_json, {"member": found, "state": state}, f"{found}: {state}")


def remove_member(data: Path, name: str, *, force: bool, wait: bool, as_json: bool) -> None:
    """Forget a member, or have what it held made anew first."""

    async def ask(engine: Engine) -> tuple[str, bool]:
        found, forgotten = await _admin(engine).remove(name, force=force)
        if wait and not forgotten:
            await follow(engine, lambda engine: _is_forgotten(engine, found))
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
                await follow(engine, lambda engine: _is_drained(engine, name))
            else:
                await follow(engine, _settled(engine.store.clock()))
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


# Questions to follow.


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

"""Waiting for what gateways do: they write down how far it is, and a terminal shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cli.arguments import format_bytes
from engine import Engine
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import decode_lease
from engine.services.progress import running_work

POLL_S = 0.5

Done: TypeAlias = Callable[[Engine], Awaitable[bool]]


async def _is_served(engine: Engine) -> bool:
    """Return whether some gateway runs the services of the store."""

    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(keyspace.lease("heartbeat"))

    row = await engine.store.db.read(body)
    return row is not None and decode_lease(row).expires_ms > engine.store.clock()


async def follow(engine: Engine, done: Done) -> None:
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

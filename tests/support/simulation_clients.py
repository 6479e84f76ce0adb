"""Clients of a simulated cluster: they call engines as frontends do, and record what they see."""

from __future__ import annotations

import random
from collections.abc import Mapping

import trio

from engine.engine import Engine
from engine.errors import (
    ConflictError,
    Corrupt,
    EngineError,
    NoSpace,
    NoSuchKey,
    PreconditionFailed,
    Unavailable,
)
from engine.sessions import SessionExpired
from engine.types import NO_CONDITIONS, Attributes, CompletePart, Conditions
from tests.support.engine import CRC64, BytesSource, keep_crc64, put_part, read
from tests.support.history import Begun, Call, History, Workload
from tests.support.simulation_gateway import Gateway, GatewayGone

BUCKET = "bucket"
PATIENCE_S = (0.3, 3.0, 10.0)
"""How long clients wait for an answer."""
PAUSES_S = (0.3, 4.0)
"""What slow readers take, twice each: other clients replace meanwhile what they read, and the
collector comes by."""


class Nothing(Exception):
    """The request had certainly no effect."""


def conditions_of(call: Call) -> Conditions:
    if call.if_match is None and call.if_none_match is None:
        return NO_CONDITIONS
    return Conditions(
        if_match=None if call.if_match is None else (call.if_match,),
        if_none_match=None if call.if_none_match is None else (call.if_none_match,),
    )


async def _put(engine: Engine, call: Call) -> None:
    [data] = call.parts
    await engine.put(
        BUCKET,
        call.key,
        BytesSource(data),
        size=len(data) if len(data) % 2 else None,
        algorithms=CRC64,
        attributes=Attributes(),
        check=keep_crc64,
        conditions=conditions_of(call),
    )


async def _multipart(engine: Engine, call: Call) -> None:
    try:
        upload = await engine.create_upload(BUCKET, call.key, attributes=Attributes())
        parts = []
        for number, data in enumerate(call.parts, 1):
            part = await put_part(engine, BUCKET, call.key, upload.upload_id, number, data)
            parts.append(CompletePart(number, part.etag, []))
    except EngineError as error:
        raise Nothing from error
    await engine.complete_upload(
        BUCKET, call.key, upload.upload_id, parts, conditions=conditions_of(call)
    )


async def get(engine: Engine, key: str, *, pause_s: float = 0.0) -> tuple[str, bytes] | None:
    """Return ETag and bytes; the reader takes ``pause_s`` before the first buffer and after it."""
    try:
        async with await engine.open(BUCKET, key) as opened:
            if pause_s:
                await trio.sleep(pause_s)
            stream = await opened.stream(0, opened.info.size)
            pieces = []
            try:
                async for buffer in stream:
                    pieces.append(bytes(buffer))
                    if pause_s and len(pieces) == 1:
                        await trio.sleep(pause_s)
            finally:
                await stream.aclose()
            return opened.info.etag, b"".join(pieces)
    except NoSuchKey:
        return None


async def listing(engine: Engine, prefix: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    after: str | None = ""
    while after is not None:
        page = await engine.list_objects(BUCKET, prefix=prefix, after=after, limit=2)
        found |= {entry.key: entry.version.etag for entry in page.objects}
        after = page.next_after
    return found


class _Request:
    """A request that a gateway works on."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self.answer: object = None
        self.error: Exception | None = None


class Clients:
    def __init__(
        self, chance: random.Random, history: History, gateways: Mapping[str, Gateway]
    ) -> None:
        self._chance = chance
        self._history = history
        self._gateways = gateways
        self.corrupt: list[str] = []
        """Reads that were refused as corrupt."""
        self.errors: list[str] = []
        """What no engine may ever raise."""

    async def run(self, number: int, workload: Workload, count: int, pause_s: float) -> None:
        """Make ``count`` calls, one after another."""
        for _ in range(count):
            await trio.sleep(self._chance.random() * pause_s)
            call = workload.next()
            living = [name for name in sorted(self._gateways) if not self._gateways[name].crashed]
            if not living:
                continue
            gateway = self._gateways[self._chance.choice(living)]
            begun = self._history.begin(number, call, gateway.name)
            await self._ask(gateway, call, begun, workload)

    async def _ask(self, gateway: Gateway, call: Call, begun: Begun, workload: Workload) -> None:
        request = _Request()
        pause_s, patience_s = 0.0, self._chance.choice(PATIENCE_S)
        if call.kind == "get" and self._chance.random() < 0.2:
            pause_s = self._chance.choice(PAUSES_S)
            patience_s += 2 * pause_s  # else nobody would see what the read came to
        gateway.tasks.start_soon(self._serve, gateway, call, request, pause_s)
        with trio.move_on_after(patience_s):
            await request.over.wait()
        if not request.over.is_set():
            begun.unknown()
            if self._chance.random() < 0.5:
                request.scope.cancel()  # the gateway sees that the client is gone
            return
        self.record(call, begun, request.answer, request.error, workload)

    async def _serve(self, gateway: Gateway, call: Call, request: _Request, pause_s: float) -> None:
        try:
            with request.scope:
                request.answer = await self._do(gateway.engine, call, pause_s)
            if request.scope.cancelled_caught:
                request.error = Unavailable("cancelled")
            # The answer leaves the gateway only if that still runs.
            if gateway.passes():
                await gateway.gate()
        except trio.Cancelled:
            request.error = GatewayGone()
            raise
        except Exception as error:  # noqa: BLE001  recorded, and judged there
            request.error = GatewayGone() if gateway.crashed else error
        finally:
            request.over.set()

    async def _do(self, engine: Engine, call: Call, pause_s: float) -> object:
        match call.kind:
            case "put":
                await _put(engine, call)
                return None
            case "multipart":
                await _multipart(engine, call)
                return None
            case "delete":
                return await engine.delete(BUCKET, call.key, conditions=conditions_of(call))
            case "list":
                return await listing(engine, call.key)
            case _:
                return await get(engine, call.key, pause_s=pause_s)

    def record(
        self,
        call: Call,
        begun: Begun,
        answer: object,
        error: Exception | None,
        workload: Workload | None = None,
    ) -> None:
        match error:
            case None:
                self._answered(call, begun, answer, workload)
            case NoSuchKey() | PreconditionFailed():
                begun.refused(absent=isinstance(error, NoSuchKey))
                if workload is not None and isinstance(error, NoSuchKey):
                    workload.learned(call.key, None)
            case Nothing() | ConflictError() | NoSpace() | SessionExpired():
                begun.no_effect()
            case Corrupt():
                begun.unknown()
                self.corrupt.append(f"{call.kind} {call.key}: {error}")
            case Unavailable():
                begun.unknown()
            case _:
                begun.unknown()
                self.errors.append(f"{call.kind} {call.key}: {error!r}")

    def _answered(
        self, call: Call, begun: Begun, answer: object, workload: Workload | None
    ) -> None:
        etag: str | None = None
        match call.kind:
            case "get":
                assert answer is None or isinstance(answer, tuple)
                begun.found(answer)
                etag = None if answer is None else answer[0]
            case "list":
                assert isinstance(answer, Mapping)
                begun.listed(answer)
                return
            case "delete":
                begun.done()
            case _:
                begun.done()
                etag = call.etag
        if workload is not None:
            workload.learned(call.key, etag)


__all__ = ["BUCKET", "Clients", "get", "listing", "read"]

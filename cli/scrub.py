"""``lode scrub``: asks the services of a gateway to verify everything now."""

from __future__ import annotations

import json
from pathlib import Path

from cli.admin import ask_store
from cli.arguments import format_bytes
from cli.following import follow
from engine import Engine
from engine.services.scrub import DAMAGED, ask_for_scrub, last_scrub


def scrub(data: Path, *, wait: bool, as_json: bool) -> bool:
    """Ask for a scrub, and with ``wait`` print what it found; return whether that is nothing bad.

    Raises: ConfigError, EngineError.
    """

    async def ask(engine: Engine) -> dict[str, int]:
        store = engine.store
        asked_ms = await ask_for_scrub(store)
        if not wait:
            return {"asked_ms": asked_ms}

        async def is_done(engine: Engine) -> bool:
            record = await last_scrub(engine.store)
            return record is not None and record.ended and record.started_ms > asked_ms

        await follow(engine, is_done)
        record = await last_scrub(store)
        assert record is not None
        return {
            "chunks": record.done,
            "bytes": record.size,
            "damaged": record.counts.get(DAMAGED, 0),
            "unchecked": record.left,
        }

    found = ask_store(data, ask)
    if as_json:
        print(json.dumps(found, indent=2))
    elif not wait:
        print("asked for; lode status shows how far it is")
    else:
        print(
            f"{found['chunks']:,} chunks, {format_bytes(found['bytes'])}: {found['damaged']:,} "
            f"damaged, {found['unchecked']:,} could not be checked in full"
        )
    return not (found.get("damaged") or found.get("unchecked"))

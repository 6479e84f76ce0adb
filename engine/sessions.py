"""Sessions: what a process has under way, told to all others by one row that it renews.

Writing. Every chunk id begins with the id of the session that wrote it. A commit reads the
session's row in its own transaction, so once the collector has declared a session dead, nothing
written under it can become visible any more, however late the process wakes up; and the fragments
that it left behind are found by their prefix. No row is written per object.

Reading. The row carries a *horizon*: the start of the oldest read that is still running.
Collection leaves alone whatever was deleted after the horizon of any live session.

Concurrency: one task renews; everything else is synchronous between two checkpoints.
Why this and not an intent row per chunk: docs/decisions/0003-records-and-keyspace.md.
"""

from __future__ import annotations

import os
import socket

import structlog
import trio

from engine.errors import StorageError, Unavailable
from engine.ids import SESSION_ID_SIZE, ChunkId, Clock, Random, SessionId, session_of, timed_id
from engine.meta import keyspace
from engine.meta.kv import Database, Transaction
from engine.meta.records import FORMAT, SessionRecord, decode_session, encode

RENEW_S_MAX = 5.0


class Sessions:
    """The one session that this process has at a time, and the reads that it runs."""

    def __init__(self, db: Database, clock: Clock, random: Random, *, session_s: float) -> None:
        self._db = db
        self._clock = clock
        self._random = random
        self._session_ms = int(session_s * 1000)
        self._renew_s = min(session_s / 4, RENEW_S_MAX)
        self._log = structlog.get_logger()
        self._session_id = SessionId(b"")
        self._started_ms = 0
        self._chunks = 0
        self._reads: dict[int, int] = {}
        self._next_read = 0

    @property
    def session_id(self) -> SessionId:
        return self._session_id

    async def start(self) -> None:
        """Begin a session; durable on return."""
        self._session_id = SessionId(timed_id(self._clock, self._random, SESSION_ID_SIZE))
        self._started_ms = self._clock()
        self._chunks = 0
        key, value = self._row()

        async def body(tr: Transaction) -> None:
            tr.set(key, value)

        await self._db.run(body)

    async def renew(self) -> None:
        """Publish the horizon and push the expiry; a session that was declared dead is left
        behind for a new one."""
        key, value = self._row()

        async def body(tr: Transaction) -> bool:
            # In one transaction: a session that is declared dead meanwhile must not come back,
            # since what it wrote may be gone already.
            row = await tr.get(key)
            if row is None or decode_session(row).dead:
                return False
            tr.set(key, value)
            return True

        if not await self._db.run(body):
            self._log.warning("session expired", session=self._session_id.hex())
            await self.start()

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await trio.sleep(self._renew_s)
            try:
                await self.renew()
            except StorageError as error:
                self._log.error("session not renewed", error=str(error))

    async def finish(self) -> None:
        """End the session: nothing is written or read under it any more.

        A session that wrote chunks leaves its row, marked dead, to the collector: a commit whose
        outcome was unknown, or a node that did not answer, may have left fragments behind.
        """
        key, value = self._row(dead=True)

        async def body(tr: Transaction) -> None:
            if self._chunks:
                tr.set(key, value)
            else:
                tr.clear(key)

        await self._db.run(body)

    def _row(self, *, dead: bool = False) -> tuple[bytes, bytes]:
        """Return the session's key and its row as of now."""
        now = self._clock()
        record = SessionRecord(
            format=FORMAT,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            expires_ms=now + self._session_ms,
            read_horizon_ms=min(self._reads.values(), default=now),
            dead=dead,
        )
        return keyspace.session(self._session_id), encode(record)

    def next_chunk_id(self) -> ChunkId:
        self._chunks += 1
        return ChunkId(self._session_id + self._chunks.to_bytes(6, "big"))

    def read_started(self) -> int:
        """Return a token for ``read_ended``; until then nothing deleted from now on goes."""
        self._next_read += 1
        self._reads[self._next_read] = self._clock()
        return self._next_read

    def read_shared(self, token: int) -> int:
        """Return another token for what is protected by ``token``, which has not ended."""
        self._next_read += 1
        self._reads[self._next_read] = self._reads[token]
        return self._next_read

    def read_ended(self, token: int) -> None:
        self._reads.pop(token, None)

    def oldest_read_ms(self) -> int | None:
        """Return when the oldest read of this process that is still running began."""
        return min(self._reads.values(), default=None)


class SessionExpired(Unavailable):
    """The session under which bytes were staged was declared dead: they cannot be committed."""


async def fence(tr: Transaction, chunk_id: ChunkId) -> None:
    """Refuse to commit a chunk whose session was declared dead: its fragments may be gone.

    Raises: SessionExpired.
    """
    row = await tr.get(keyspace.session(session_of(chunk_id)))
    if row is None or decode_session(row).dead:
        raise SessionExpired("this process did not renew its session in time; try again")

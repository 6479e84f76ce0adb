"""Rows of a subspace that belong to the members of one folder, whatever is further below."""

from __future__ import annotations

from engine.listing import Cursor
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction


async def member_rows(
    tr: ReadTransaction, base: bytes, folder: bytes, first: bytes, last: bytes
) -> list[tuple[bytes, bytes]]:
    """Return (key, row) of members, with keys from ``first`` to ``last``, both included.

    ``base`` is what stands before the key in a row's key; a member that is a folder ends with a
    slash. Costs O(rows returned and folders passed), not O(rows below).
    """
    cursor = Cursor(tr, base + first, base + keyspace.after(last), step=64)
    start = len(base) + len(folder)
    found: list[tuple[bytes, bytes]] = []
    while (row := await cursor.peek()) is not None:
        slash = row[0].find(b"/", start)
        if slash < 0 or slash == len(row[0]) - 1:
            found.append((row[0][len(base) :], row[1]))
            cursor.advance()
        else:
            cursor.seek(keyspace.after_prefix(row[0][: slash + 1]))
    return found

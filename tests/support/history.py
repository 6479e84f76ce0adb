"""Histories of what clients did and saw, to be checked by ``tests.support.linearizable``.

* ``Workload`` makes calls up: small objects on few keys, so that clients meet.
* ``History`` records them, with their times, and finds bytes that nobody wrote.
* ``Client`` makes calls through a ``Door``; ``Boto3Door`` is S3 over HTTP.
* ``run_clients`` lets threads do so until they are told to stop.

For a cluster under test:

    history = History()
    doors = [lambda: Boto3Door(new_boto3_client(url), "bucket", url) for url in gateways]
    with run_clients(doors, history, clients=8, seed=1):
        ... break things ...
    history.save(path)
    assert history.problems() == []
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from tests.support.linearizable import Operation, State, check

Kind = Literal["put", "get", "delete", "list", "multipart"]


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    kind: Kind
    key: str
    """Of ``list``: the prefix."""
    parts: tuple[bytes, ...] = ()
    """The bytes of a put, or of each part of a multipart upload."""
    if_match: str | None = None
    if_none_match: str | None = None

    @property
    def etag(self) -> str:
        """What S3 calls these bytes; it is the value's name in the history."""
        digests = [hashlib.md5(part, usedforsecurity=False).digest() for part in self.parts]
        if self.kind == "put":
            return digests[0].hex()
        joined = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        return f"{joined}-{len(digests)}"


class Refused(Exception):
    """The condition did not hold; ``absent``: since there is no object."""

    def __init__(self, *, absent: bool) -> None:
        self.absent = absent


class NoEffect(Exception):
    """Certainly nothing was done: lost a race, no room, malformed."""


class Unknown(Exception):
    """It may have been done, may be done later, or never."""


class Door(Protocol):
    """How calls are made. Every method may raise Refused, NoEffect, Unknown."""

    where: str

    def put(self, call: Call) -> None: ...
    def multipart(self, call: Call) -> None: ...
    def delete(self, call: Call) -> None: ...

    def get(self, key: str) -> tuple[str, bytes] | None:
        """Return ETag and bytes, or None: there is no such object."""

    def list(self, prefix: str) -> Mapping[str, str]:
        """Return the ETags of all keys with the prefix."""


class Workload:
    """The calls of one client; repeatable."""

    def __init__(
        self, chance: random.Random, keys: Sequence[str], name: str, *, sizes: Sequence[int]
    ) -> None:
        """``sizes`` are sizes of objects and parts in bytes, at least 16 each: all contents
        differ. A multipart upload gets two or three parts, which a real store wants large: give
        ``multipart`` no weight there."""
        self._chance = chance
        self._keys = keys
        self._name = name
        self._sizes = sizes
        self._count = 0
        self._seen: dict[str, str] = {}
        self.weights: dict[Kind, int] = {
            "put": 10, "get": 12, "delete": 3, "list": 2, "multipart": 1
        }  # fmt: skip

    def learned(self, key: str, etag: State) -> None:
        """Take in what a key held lately, for conditions to come."""
        if etag is None:
            self._seen.pop(key, None)
        else:
            self._seen[key] = etag

    def next(self) -> Call:
        kind = self._chance.choices([*self.weights], [*self.weights.values()])[0]
        key = self._chance.choice(self._keys)
        match kind:
            case "put":
                return self._call(kind, key, (self._bytes(),), self._conditions(key))
            case "multipart":
                parts = tuple(self._bytes() for _ in range(self._chance.randint(1, 3)))
                return self._call(kind, key, parts, self._conditions(key))
            case "delete":
                condition = self._conditions(key)
                condition.pop("if_none_match", None)
                return self._call(kind, key, (), condition)
            case "list":
                return Call(kind=kind, key=self._chance.choice(["", key[:-1]]))
            case _:
                return Call(kind=kind, key=key)

    def _call(
        self, kind: Kind, key: str, parts: tuple[bytes, ...], conditions: Mapping[str, str]
    ) -> Call:
        return Call(
            kind=kind,
            key=key,
            parts=parts,
            if_match=conditions.get("if_match"),
            if_none_match=conditions.get("if_none_match"),
        )

    def _conditions(self, key: str) -> dict[str, str]:
        draw = self._chance.random()
        if draw < 0.2:
            return {"if_match": self._seen.get(key, "0" * 32)}
        return {"if_none_match": "*"} if draw < 0.35 else {}

    def _bytes(self) -> bytes:
        self._count += 1
        head = f"{self._name}-{self._count}-".encode().ljust(16, b"-")
        size = self._chance.choice(self._sizes)
        return head + self._chance.randbytes(max(0, size - len(head)))


class Begun:
    """A call that was recorded and has no answer yet; one method is called, once."""

    __slots__ = ("_begin", "_client", "_history", "_open", "_where", "call")

    def __init__(self, history: History, client: int, call: Call, where: str) -> None:
        self.call = call
        self._history = history
        self._client = client
        self._where = where
        self._begin = history.clock()
        self._open = True

    def _operation(self, key: str, **fields: Any) -> Operation:  # fields of Operation
        return Operation(
            client=self._client, key=key, begin=self._begin, where=self._where, **fields
        )

    def _close(self, *operations: Operation) -> None:
        if self._open:
            self._open = False
            self._history.settle(self, operations)

    def done(self) -> None:
        self._write(self._history.clock())

    def found(self, answer: tuple[str, bytes] | None) -> None:
        end = self._history.clock()
        if answer is not None:
            self._history.look(self.call.key, *answer)
        value = None if answer is None else answer[0]
        self._close(self._operation(self.call.key, kind="get", end=end, value=value))

    def listed(self, etags: Mapping[str, str]) -> None:
        end = self._history.clock()
        keys = {key for key in self._history.keys if key.startswith(self.call.key)}
        strange = [key for key in etags if key not in keys]
        if strange:
            self._history.note(f"list {self.call.key!r} shows keys never written: {strange}")
        self._close(
            *(
                self._operation(key, kind="get", end=end, value=etags.get(key))
                for key in sorted(keys)
            )
        )

    def refused(self, *, absent: bool) -> None:
        self._write(self._history.clock(), refused="absent" if absent else "condition")

    def no_effect(self) -> None:
        self._close()

    def unknown(self) -> None:
        if self.call.kind in ("get", "list"):
            self._close()
        else:
            self._write(None)

    def _write(self, end: float | None, refused: str = "") -> None:
        call = self.call
        self._close(
            self._operation(
                call.key,
                kind="delete" if call.kind == "delete" else "put",
                end=end,
                value=None if call.kind == "delete" else call.etag,
                if_match=call.if_match,
                if_none_match=call.if_none_match,
                refused=refused,
            )
        )


class History:
    """All that the clients of one run did. Thread-safe."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, keys: Sequence[str] = ()
    ) -> None:
        """``keys``: all keys that are in use; for listings, which say which ones are absent."""
        self.clock = clock
        self.keys = set(keys)
        self._lock = threading.Lock()
        self._open: dict[int, Begun] = {}
        self._operations: list[Operation] = []
        self._written: dict[str, bytes] = {}
        self._notes: list[str] = []
        self.answered = 0

    def begin(self, client: int, call: Call, where: str = "") -> Begun:
        begun = Begun(self, client, call, where)
        with self._lock:
            self._open[id(begun)] = begun
            if call.kind in ("put", "multipart"):
                self._written[call.etag] = hashlib.blake2b(b"".join(call.parts)).digest()
        return begun

    def settle(self, begun: Begun, operations: Sequence[Operation]) -> None:
        with self._lock:
            del self._open[id(begun)]
            self._operations.extend(operations)
            self.answered += 1

    def look(self, key: str, etag: str, content: bytes) -> None:
        """Note when a read did not give the bytes that were written under the ETag."""
        expected = self._written.get(etag)
        if expected is None:
            self.note(f"key {key!r} has ETag {etag}, which nobody wrote")
        elif hashlib.blake2b(content).digest() != expected:
            self.note(f"key {key!r} with ETag {etag}: WRONG BYTES ({len(content)} of them)")

    def note(self, problem: str) -> None:
        with self._lock:
            self._notes.append(problem)

    def operations(self) -> list[Operation]:
        """Return what was done so far; calls without an answer are of unknown outcome."""
        with self._lock:
            pending = list(self._open.values())
        for begun in pending:
            begun.unknown()
        return list(self._operations)

    def problems(self) -> list[str]:
        """Return what is wrong with the history, readable; nothing: it is linearizable, and every
        read gave bytes that were written."""
        return self._notes + [str(violation) for violation in check(self.operations())]

    def save(self, path: Path) -> None:
        """Write the operations as JSON lines."""
        lines = [msgspec.json.encode(operation) for operation in self.operations()]
        path.write_bytes(b"\n".join(lines) + b"\n")


def load(path: Path) -> list[Operation]:
    """Return the operations of a saved history."""
    lines = path.read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Operation) for line in lines if line]


class Client:
    """One client: makes its workload's calls, one after another, and records them."""

    def __init__(self, number: int, history: History, workload: Workload) -> None:
        self._number = number
        self._history = history
        self._workload = workload

    def step(self, door: Door) -> bool:
        """Make one call; return whether the door answered."""
        call = self._workload.next()
        begun = self._history.begin(self._number, call, door.where)
        try:
            self._make(door, call, begun)
        except Refused as refusal:
            begun.refused(absent=refusal.absent)
            if refusal.absent:
                self._workload.learned(call.key, None)
        except NoEffect:
            begun.no_effect()
        except Unknown:
            begun.unknown()
            return False
        return True

    def _make(self, door: Door, call: Call, begun: Begun) -> None:
        match call.kind:
            case "get":
                answer = door.get(call.key)
                begun.found(answer)
                self._workload.learned(call.key, None if answer is None else answer[0])
            case "list":
                begun.listed(door.list(call.key))
            case "delete":
                door.delete(call)
                begun.done()
                self._workload.learned(call.key, None)
            case _:
                (door.put if call.kind == "put" else door.multipart)(call)
                begun.done()
                self._workload.learned(call.key, call.etag)


PAUSE_S = 0.1
"""A client that got no answer waits so long: else a gateway that is down would be asked, and
unknown outcomes be recorded, thousands of times."""


@contextmanager
def run_clients(
    doors: Sequence[Callable[[], Door]],
    history: History,
    *,
    clients: int,
    seed: int,
    keys: Sequence[str] = tuple(f"key-{number}" for number in range(20)),
    sizes: Sequence[int] = (16, 2_000, 100_000, 400_000),
) -> Iterator[None]:
    """Let ``clients`` threads work while the context lasts, each on a gateway drawn per call.

    ``doors`` make a door to each gateway; they are called in the client's thread, once.
    Leaving waits for the calls that are under way.
    """
    stop = threading.Event()
    history.keys.update(keys)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            chance = random.Random(f"{seed} {number}")
            workload = Workload(chance, keys, f"{seed}.{number}", sizes=sizes)
            workload.weights["multipart"] = 0
            client = Client(number, history, workload)
            mine = [door() for door in doors]
            while not stop.is_set():
                if not client.step(chance.choice(mine)):
                    stop.wait(PAUSE_S)
        except BaseException as error:  # noqa: BLE001, ASYNC103  raised in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


class Boto3Door:
    """S3 over HTTP. The client should have time-outs of a few seconds and make no retries: a retry
    of a put that was done is refused by its own effect."""

    def __init__(self, client: Any, bucket: str, where: str) -> None:  # boto3 has no types
        self.where = where
        self._client = client
        self._bucket = bucket

    def _call(self, name: str, **parameters: Any) -> Any:
        from botocore.exceptions import (  # type: ignore[import-untyped]  # it has no types
            BotoCoreError,
            ClientError,
            HTTPClientError,
        )

        try:
            return getattr(self._client, name)(Bucket=self._bucket, **parameters)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (404, 412):
                raise Refused(absent=status == 404) from error
            if status == 409:
                raise NoEffect from error
            if status >= 500:
                raise Unknown from error
            raise
        except (BotoCoreError, HTTPClientError, OSError) as error:
            raise Unknown from error

    def put(self, call: Call) -> None:
        self._call("put_object", Key=call.key, Body=call.parts[0], **_headers(call))

    def multipart(self, call: Call) -> None:
        upload = {"Key": call.key}
        try:
            upload["UploadId"] = self._call("create_multipart_upload", Key=call.key)["UploadId"]
            for number, part in enumerate(call.parts, 1):
                self._call("upload_part", PartNumber=number, Body=part, **upload)
        except (Refused, Unknown) as error:
            raise NoEffect from error
        etags = [hashlib.md5(part, usedforsecurity=False).hexdigest() for part in call.parts]
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        self._call(
            "complete_multipart_upload",
            MultipartUpload={"Parts": parts}, **upload, **_headers(call),
        )  # fmt: skip

    def delete(self, call: Call) -> None:
        self._call("delete_object", Key=call.key, **_headers(call))

    def get(self, key: str) -> tuple[str, bytes] | None:
        from botocore.exceptions import BotoCoreError, HTTPClientError

        try:
            found = self._call("get_object", Key=key)
        except Refused:
            return None
        try:
            return found["ETag"].strip('"'), found["Body"].read()
        except (BotoCoreError, HTTPClientError, OSError) as error:
            raise Unknown from error

    def list(self, prefix: str) -> Mapping[str, str]:
        found: dict[str, str] = {}
        page = self._call("list_objects_v2", Prefix=prefix)
        while True:
            for entry in page.get("Contents", ()):
                found[entry["Key"]] = entry["ETag"].strip('"')
            token = page.get("NextContinuationToken")
            if token is None:
                return found
            page = self._call("list_objects_v2", Prefix=prefix, ContinuationToken=token)


def _headers(call: Call) -> dict[str, str]:
    headers = {}
    if call.if_match is not None:
        headers["IfMatch"] = f'"{call.if_match}"'
    if call.if_none_match is not None:
        headers["IfNoneMatch"] = call.if_none_match
    return headers

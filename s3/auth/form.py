"""multipart/form-data as browsers POST it to a bucket: bounded fields, then a streamed file.

Source: RFC 7578, and https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html: fields
behind the file are ignored.
"""

from __future__ import annotations

import re

from engine.http.message import Body, BodyBroken, Request
from s3.errors import S3Error, s3_error

FIELDS_SIZE_MAX = 20 * 1024
"""Bytes in front of the file's content, as S3 allows."""

FIELDS_MAX = 256
_BEHIND_SIZE_MAX = 64 * 1024
_DIRECT_SIZE_MIN = 1024
_PARAMETER = re.compile(r';\s*([a-z]+\*?)=(?:"((?:[^"\\]|\\.)*)"|([^;\s"]+))', re.IGNORECASE)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]\Z")


class Form:
    """A form whose fields have been read and whose file is still to be read."""

    __slots__ = ("fields", "file", "file_name", "file_type")

    def __init__(
        self, fields: dict[str, str], file: FormFile, file_name: str, file_type: str | None
    ) -> None:
        self.fields = fields
        """Value by lower-case name; ``${filename}`` in ``key`` is replaced."""
        self.file = file
        self.file_name = file_name
        """Without folders; empty when the client sent none."""
        self.file_type = file_type
        """Content-Type of the file's part."""


async def read_form(request: Request) -> Form:
    """Return the form once all its fields have come and its file begins.

    Raises:
        S3Error: PreconditionFailed, MalformedPOSTRequest, MaxPostPreDataLengthExceededError,
            InvalidArgument, IncompleteBody.
        BodyBroken: the client stalled, or broke HTTP's own framing.
    """
    delimiter = b"\r\n--" + _boundary(request.header(b"content-type") or b"")
    reader = _Reader(request.body)
    # A CRLF in front makes the first boundary look like all others.
    reader.buffer += b"\r\n"
    if await reader.until(delimiter):
        raise _malformed()
    fields: dict[str, str] = {}
    while True:
        await _next_part(reader)
        name, file_name, file_type = _parse_part(await reader.until(b"\r\n\r\n"))
        if name == "file":
            break
        value = await reader.until(delimiter)
        _add_field(fields, name, value)
    if "${filename}" in fields.get("key", ""):
        fields["key"] = fields["key"].replace("${filename}", file_name)
    file = FormFile(request.body, bytes(reader.buffer), delimiter)
    return Form(fields, file, file_name, file_type)


class FormFile:
    """The content of the file's part: ``readinto`` until it returns 0. One task reads it."""

    __slots__ = (
        "_behind",
        "_body",
        "_delimiter",
        "_done",
        "_max",
        "_min",
        "_pattern",
        "_ready",
        "size",
    )

    def __init__(self, body: Body, begin: bytes, delimiter: bytes) -> None:
        self.size = 0
        """Bytes of content found so far."""
        self._body = body
        self._delimiter = delimiter
        self._pattern = re.compile(re.escape(delimiter))
        self._behind = begin  # read from the body, not yet searched for the delimiter
        self._ready = b""  # content for readers with small buffers
        self._done = False
        self._min = 0
        self._max: int | None = None

    def limit(self, size_min: int, size_max: int | None) -> None:
        """Let the content have ``size_min`` to ``size_max`` bytes (inclusive) only."""
        self._min, self._max = size_min, size_max

    async def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 only at the end.

        The last bytes are handed on only when the whole body has come.

        Raises:
            S3Error: IncompleteBody, MalformedPOSTRequest, EntityTooLarge, EntityTooSmall.
            BodyBroken: the client stalled, or broke HTTP's own framing.
        """
        if len(buffer) >= _DIRECT_SIZE_MIN and not self._ready:
            return await self._produce(buffer)
        if not self._ready:
            scratch = memoryview(bytearray(_DIRECT_SIZE_MIN))
            self._ready = bytes(scratch[: await self._produce(scratch)])
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    async def _produce(self, buffer: memoryview) -> int:
        if self._done:
            return 0
        filled = 0
        while True:
            if self._behind:
                count = min(len(self._behind), len(buffer) - filled)
                buffer[filled : filled + count] = self._behind[:count]
                self._behind = self._behind[count:]
            else:
                count = await _read(self._body, buffer[filled:])
                if count == 0:
                    raise _incomplete()
            filled += count
            found = self._pattern.search(buffer[:filled])
            if found is not None:
                rest = bytes(buffer[found.end() : filled]) + self._behind
                self._count(found.start())
                await self._end(rest)
                return found.start()
            held = self._held(buffer[:filled])
            if held < filled:
                self._behind = bytes(buffer[filled - held : filled]) + self._behind
                self._count(filled - held)
                return filled - held

    def _held(self, data: memoryview) -> int:
        """Return how many bytes at the end of ``data`` may be the delimiter's beginning."""
        tail = bytes(data[max(0, len(data) - len(self._delimiter) + 1) :])
        at = tail.find(b"\r")
        while at >= 0:
            if self._delimiter.startswith(tail[at:]):
                return len(tail) - at
            at = tail.find(b"\r", at + 1)
        return 0

    def _count(self, count: int) -> None:
        self.size += count
        if self._max is not None and self.size > self._max:
            raise s3_error(
                "EntityTooLarge", ProposedSize=str(self.size), MaxSizeAllowed=str(self._max)
            )

    async def _end(self, rest: bytes) -> None:
        scratch = memoryview(bytearray(4096))
        while count := await _read(self._body, scratch):
            rest += scratch[:count]
            if len(rest) > _BEHIND_SIZE_MAX:
                raise _malformed()
        if rest[:2] not in (b"--", b"\r\n"):
            raise _malformed()
        if self.size < self._min:
            raise s3_error(
                "EntityTooSmall", ProposedSize=str(self.size), MinSizeAllowed=str(self._min)
            )
        self._done = True


class _Reader:
    """Bytes in front of the file's content, taken piece by piece within the limit."""

    __slots__ = ("_body", "_left", "_scratch", "buffer")

    def __init__(self, body: Body) -> None:
        self._body = body
        self._left = FIELDS_SIZE_MAX
        self._scratch = memoryview(bytearray(4096))
        self.buffer = bytearray()

    async def until(self, end: bytes) -> bytes:
        """Return the bytes in front of ``end``; both are taken from the buffer."""
        searched = 0
        while True:
            found = self.buffer.find(end, searched)
            if found >= 0:
                self._spend(found + len(end))
                taken = bytes(self.buffer[:found])
                del self.buffer[: found + len(end)]
                return taken
            searched = max(0, len(self.buffer) - len(end) + 1)
            await self._fill()

    async def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._fill()
        self._spend(count)
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise s3_error("MaxPostPreDataLengthExceededError")

    async def _fill(self) -> None:
        if len(self.buffer) > self._left:
            raise s3_error("MaxPostPreDataLengthExceededError")
        count = await _read(self._body, self._scratch)
        if count == 0:
            raise _incomplete()
        self.buffer += self._scratch[:count]


async def _next_part(reader: _Reader) -> None:
    mark = await reader.take(2)
    if mark == b"--":
        raise s3_error(
            "InvalidArgument",
            "POST requires exactly one file upload per request.",
            ArgumentName="file",
            ArgumentValue="0",
        )
    if mark != b"\r\n":
        raise _malformed()


def _parse_part(head: bytes) -> tuple[str, str, str | None]:
    """Return (lower-case name, file name, content type) of a part from its header lines."""
    disposition = content_type = None
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        match name.strip().lower():
            case b"content-disposition":
                disposition = _text(value.strip())
            case b"content-type":
                content_type = _text(value.strip())
    if disposition is None or not disposition.lower().startswith("form-data"):
        raise _malformed()
    parameters = {
        # Only quotes are escaped: clients send the backslashes of their paths as they are.
        found[1].lower(): found[3] if found[2] is None else found[2].replace('\\"', '"')
        for found in _PARAMETER.finditer(disposition)
    }
    if not parameters.get("name"):
        raise _malformed()
    # Some browsers send the whole path; a client's folders mean nothing here.
    file_name = re.split(r"[/\\]", parameters.get("filename", ""))[-1]
    return parameters["name"].lower(), file_name, content_type


def _add_field(fields: dict[str, str], name: str, value: bytes) -> None:
    if len(fields) >= FIELDS_MAX:
        raise s3_error("MaxPostPreDataLengthExceededError")
    text = _text(value)
    if name not in fields:
        fields[name] = text
    elif name.startswith("x-amz-meta-"):
        fields[name] += "," + text
    else:
        raise s3_error(
            "InvalidArgument",
            "A form field may be given only once",
            ArgumentName=name,
            ArgumentValue=text[:256],
        )


def _boundary(content_type: bytes) -> bytes:
    text = content_type.decode("latin-1")
    if text.split(";", 1)[0].strip().lower() != "multipart/form-data":
        raise s3_error(
            "PreconditionFailed",
            Condition="Bucket POST must be of the enclosure-type multipart/form-data",
        )
    for found in _PARAMETER.finditer(text):
        if found[1].lower() == "boundary":
            boundary = found[2] if found[2] is not None else found[3]
            if _BOUNDARY.match(boundary):
                return boundary.encode()
    raise _malformed()


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _malformed() from None


async def _read(body: Body, target: memoryview) -> int:
    try:
        return await body.readinto(target)
    except BodyBroken as broken:
        if broken.reason == "disconnected":
            raise _incomplete() from broken
        raise


def _malformed() -> S3Error:
    return s3_error("MalformedPOSTRequest")


def _incomplete() -> S3Error:
    return s3_error("IncompleteBody", "The request body terminated unexpectedly")

"""The body of an upload as the S3 API means it: aws-chunked framing taken off and verified.

::

    body    = *chunk last trailers
    chunk   = size [";chunk-signature=" 64HEX] CRLF data CRLF        size in hexadecimal, not 0
    last    = "0" [";chunk-signature=" 64HEX] CRLF
    trailers without: CRLF
            with:     *(name ":" value CRLF) ["x-amz-trailer-signature:" 64HEX CRLF] CRLF

Each signature covers the one before it, the first the signature of the request.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html and
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
"""

from __future__ import annotations

import hashlib
import hmac
from binascii import hexlify

import trio

from engine.http.message import Body, BodyBroken, Request
from s3.auth import canonical
from s3.auth.sigv4 import Identity, PayloadMode, SigningContext
from s3.errors import S3Error, s3_error

CHUNK_SIZE_MIN = 8192
"""Every chunk but the last has so many bytes at least, as S3 demands."""

_BUFFER_SIZE = 8192
_LINE_SIZE_MAX = 1024
_SIZE_DIGITS_MAX = 16
_TRAILER_LINES_MAX = 16
_THREAD_SIZE_MIN = 1 << 20
_SIGNATURE = b"chunk-signature="
_TRAILER_SIGNATURE = b"x-amz-trailer-signature"
_HEX = b"0123456789abcdefABCDEF"

_WITH_TRAILERS = (PayloadMode.STREAMING_SIGNED_TRAILER, PayloadMode.STREAMING_UNSIGNED_TRAILER)
_STREAMING = (PayloadMode.STREAMING_SIGNED, *_WITH_TRAILERS)


def has_trailers(identity: Identity) -> bool:
    """Return whether the body of the request ends in trailers."""
    return identity.payload in _WITH_TRAILERS


def open_chunked(request: Request, identity: Identity) -> ChunkedBody | None:
    """Return the decoder for the request's body, or None when its bytes are the object's.

    Raises:
        S3Error: MissingContentLength or InvalidArgument for ``x-amz-decoded-content-length``.
    """
    mode = identity.payload
    if mode not in _STREAMING:
        return None
    raw = request.header(b"x-amz-decoded-content-length")
    if raw is None:
        raise s3_error("MissingContentLength")
    if not raw.isdigit() or len(raw) > _SIZE_DIGITS_MAX:
        raise s3_error(
            "InvalidArgument",
            "x-amz-decoded-content-length is not a number of bytes",
            ArgumentName="x-amz-decoded-content-length",
            ArgumentValue=raw[:64].decode("latin-1"),
        )
    declared: frozenset[bytes] | None = None
    if mode in _WITH_TRAILERS:
        names = (request.header(b"x-amz-trailer") or b"").lower().split(b",")
        declared = frozenset(name.strip() for name in names if name.strip())
    signing = None if mode is PayloadMode.STREAMING_UNSIGNED_TRAILER else identity.signing
    return ChunkedBody(request.body, length=int(raw), signing=signing, trailers=declared)


class ChunkedBody:
    """The decoded bytes, as a ``Body``. One task reads it.

    Bytes are handed on before their chunk's signature has been seen, except for the last ones:
    those come when all of the body, trailers included, has come and is verified. So whoever got
    ``length`` bytes got the right ones; for ``length`` 0, call ``finish``.

    Args:
        body: the framed bytes.
        length: bytes that must be in the chunks, together.
        signing: None: nothing is signed.
        trailers: names that must come, and no others; None: a mode without trailers.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_declared",
        "_done",
        "_end",
        "_hash",
        "_left",
        "_number",
        "_previous",
        "_previous_size",
        "_received",
        "_signature",
        "_signing",
        "_start",
        "_view",
        "length",
        "trailers",
    )

    def __init__(
        self,
        body: Body,
        *,
        length: int,
        signing: SigningContext | None,
        trailers: frozenset[bytes] | None,
    ) -> None:
        self.length: int | None = length
        self.trailers: dict[str, str] = {}
        """Value by lower-case name; always this dict, filled before the last byte is handed on."""
        self._body = body
        self._signing = signing
        self._declared = trailers
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # what of the buffer is read and not yet used
        self._left = 0  # bytes of the current chunk that are still to come
        self._received = 0  # bytes of data handed on
        self._number = 0  # of the current chunk, from 1
        self._previous_size = 0
        self._previous = signing.seed if signing is not None else b""
        self._signature = b""  # that the current chunk must have
        self._hash = hashlib.sha256()
        self._done = False

    async def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 only at the end.

        Raises:
            S3Error: IncompleteBody (cut off, or broken framing), SignatureDoesNotMatch,
                InvalidChunkSizeError, MalformedTrailerError.
            BodyBroken: the client stalled, or broke HTTP's own framing.
        """
        filled, size = 0, len(buffer)
        while not self._done:
            if self._left == 0:
                pause = filled == size or self._start == self._end
                if filled and pause and self._received != self.length:
                    return filled
                await self._next_chunk()
                continue
            if filled == size or (filled and self._start == self._end):
                return filled
            count = min(self._left, size - filled)
            target = buffer[filled : filled + count]
            if self._start == self._end and count > _BUFFER_SIZE // 2:
                count = await self._read(target)
            else:
                if self._start == self._end:
                    await self._fill()
                count = min(count, self._end - self._start)
                target[:count] = self._view[self._start : self._start + count]
                self._start += count
            if self._signing is not None:
                await self._update(target[:count])
            self._left -= count
            self._received += count
            filled += count
        return filled

    async def finish(self) -> None:
        """Verify the end of a body all of whose bytes have been read; harmless when repeated.

        Raises: what ``readinto`` raises.
        """
        while not self._done:
            if self._left:
                raise _incomplete()
            await self._next_chunk()

    async def _update(self, piece: memoryview) -> None:
        if len(piece) >= _THREAD_SIZE_MIN:
            await trio.to_thread.run_sync(self._hash.update, piece)
        else:
            self._hash.update(piece)

    async def _next_chunk(self) -> None:
        """Verify the end of the current chunk and take up the next, or end the body."""
        if self._number:
            await self._expect_blank_line()
            if self._signing is not None:
                self._verify_chunk(hexlify(self._hash.digest()))
                self._hash = hashlib.sha256()
        size, self._signature = self._parse_head(await self._line())
        self._number += 1
        if size == 0:
            if self._received != self.length:
                raise _incomplete()
            if self._signing is not None:
                self._verify_chunk(canonical.EMPTY_SHA256)
            await self._read_end()
            self._done = True
            return
        if self._number > 1 and self._previous_size < CHUNK_SIZE_MIN:
            raise s3_error(
                "InvalidChunkSizeError",
                Chunk=str(self._number),
                BadChunkSize=str(self._previous_size),
            )
        if size > (self.length or 0) - self._received:
            raise _incomplete()
        self._left = self._previous_size = size

    def _parse_head(self, line: bytes) -> tuple[int, bytes]:
        digits, semicolon, extension = line.partition(b";")
        if not digits or len(digits) > _SIZE_DIGITS_MAX or digits.translate(None, _HEX):
            raise _incomplete()
        if self._signing is None:
            return int(digits, 16), b""
        if not semicolon or not extension.startswith(_SIGNATURE):
            raise _incomplete()
        return int(digits, 16), extension[len(_SIGNATURE) :]

    def _verify_chunk(self, digest: bytes) -> None:
        signing = self._signing
        assert signing is not None
        text = canonical.chunk_to_sign(signing.timestamp, signing.scope, self._previous, digest)
        self._verify(text, self._signature)
        self._previous = self._signature

    def _verify(self, text: bytes, signature: bytes) -> None:
        assert self._signing is not None
        if not hmac.compare_digest(canonical.sign(self._signing.key, text), signature):
            raise s3_error("SignatureDoesNotMatch")

    async def _read_end(self) -> None:
        if self._declared is not None:
            await self._read_trailers(self._declared)
            return
        await self._expect_blank_line()
        if not await self._at_end():
            raise _incomplete()

    async def _read_trailers(self, declared: frozenset[bytes]) -> None:
        """Read to the end of the body, so that nothing can stand behind the trailers.

        Lines may end in LF alone and blank lines may stand between them: that is how AWS's own
        description of signed trailers, and the clients that followed it, write them.
        """
        found: list[tuple[bytes, bytes]] = []
        signature: bytes | None = None
        line = b"-"
        for _ in range(_TRAILER_LINES_MAX):
            if await self._at_end():
                break
            line = await self._line(strict=False)
            if not line:
                continue
            name, colon, value = line.partition(b":")
            name, value = name.strip().lower(), value.strip()
            if not colon or signature is not None:
                raise s3_error("MalformedTrailerError")
            if name == _TRAILER_SIGNATURE and self._signing is not None:
                signature = value
            else:
                found.append((name, value))
        else:
            raise s3_error("MalformedTrailerError")
        if line:
            raise _incomplete()
        if len(found) != len(declared) or {name for name, _ in found} != declared:
            raise s3_error("MalformedTrailerError")
        if self._signing is not None:
            if signature is None:
                raise s3_error("MalformedTrailerError")
            signing = self._signing
            text = canonical.trailer_to_sign(
                signing.timestamp, signing.scope, self._previous, found
            )
            self._verify(text, signature)
        self.trailers.update(
            {name.decode("latin-1"): value.decode("latin-1") for name, value in found}
        )

    async def _expect_blank_line(self) -> None:
        if await self._line():
            raise _incomplete()

    async def _line(self, *, strict: bool = True) -> bytes:
        """Return the next line without its end, which is CRLF, or LF unless ``strict``."""
        searched = 0
        while True:
            found = self._buffer.find(b"\n", self._start + searched, self._end)
            if found >= 0:
                break
            searched = self._end - self._start
            if searched > _LINE_SIZE_MAX:
                raise _incomplete()
            await self._fill()
        line = bytes(self._view[self._start : found])
        self._start = found + 1
        if len(line) > _LINE_SIZE_MAX:
            raise _incomplete()
        if line.endswith(b"\r"):
            return line[:-1]
        if strict:
            raise _incomplete()
        return line

    async def _fill(self) -> None:
        """Read at least one more byte into the buffer."""
        if not await self._try_fill():
            raise _incomplete()

    async def _at_end(self) -> bool:
        return self._start == self._end and not await self._try_fill()

    async def _try_fill(self) -> bool:
        kept = self._end - self._start
        if self._start:
            self._buffer[:kept] = self._buffer[self._start : self._end]
            self._start, self._end = 0, kept
        count = await self._read(self._view[kept:])
        self._end += count
        return count > 0

    async def _read(self, target: memoryview) -> int:
        try:
            count = await self._body.readinto(target)
        except BodyBroken as broken:
            if broken.reason == "disconnected":
                raise _incomplete() from broken
            raise
        if count == 0 and self._left:
            raise _incomplete()
        return count


def _incomplete() -> S3Error:
    return s3_error("IncompleteBody", "The request body terminated unexpectedly")

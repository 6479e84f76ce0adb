"""Extended attributes: what S3 knows of an object, under ``user.s3.`` names.

Read: ``etag``, ``version-id``, ``content-type``, ``storage-class``, ``checksum.ALGORITHM``, and
``metadata.NAME`` for user metadata. The last can be set and removed as well. All values are the
bytes that S3 would send. Behind an option, since answering makes ``ls -l`` ask for each file.
"""

from __future__ import annotations

import base64
import errno
import re
from collections.abc import Callable

import pyfuse3

from engine.errors import InvalidArgument
from engine.meta.records import VersionRecord
from engine.types import Pairs
from fs.errors import Refused
from fs.inodes import Kind, Node
from fs.view import View
from fs.writing import Writing

PREFIX = "user.s3."
METADATA = PREFIX + "metadata."
METADATA_BYTES_MAX = 2048
"""S3's limit for all names and values of an object."""


_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
"""What user metadata can be called: S3 shows it as a header. RFC 9110, 5.6.2, in lower case."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
"""No header's value has these."""


class ExtendedAttributes:
    def __init__(self, view: View, writing: Writing) -> None:
        self._view = view
        self._writing = writing

    def _check(self) -> None:
        """Raises Refused (ENOSYS): the kernel asks never again."""
        if not self._view.options.xattr:
            raise Refused(errno.ENOSYS)

    async def _all(self, node: Node) -> dict[bytes, bytes]:
        self._check()
        if node.kind is Kind.VERSION:
            engine = self._view.engine
            info = await engine.head(node.bucket, node.key, version_id=node.version_id)
            return _attributes_of(info.record, info.version_id)
        if node.kind is not Kind.FILE:
            return {}
        if node.unlinked:
            return {}
        path = await self._view.paths.find(node.bucket, node.key)
        named: dict[bytes, bytes] = {}
        if path.record is not None:
            shown = path.record.version_id if path.bucket.versioning else None
            named = _attributes_of(path.record, shown)
        if node.draft is not None:
            named = {n: value for n, value in named.items() if not n.startswith(METADATA.encode())}
            named |= _metadata_of(node.draft.metadata)
        return named

    async def get(self, node: Node, name: bytes) -> bytes:
        """Raises Refused: ENODATA, ENOSYS."""
        self._check()
        if not name.startswith(PREFIX.encode()):
            # Security labels and ACLs, which the kernel asks for before each write.
            raise Refused(pyfuse3.ENOATTR)
        if name.startswith(METADATA.encode()):
            name = name.lower()
        value = (await self._all(node)).get(name)
        if value is None:
            raise Refused(pyfuse3.ENOATTR)
        return value

    async def names(self, node: Node) -> list[bytes]:
        return list(await self._all(node))

    async def set(self, node: Node, name: bytes, value: bytes) -> None:
        key = self._settable(node, name)
        if _CONTROL.search(value):
            raise Refused(errno.EINVAL)
        text = value.decode("latin-1")

        def change(pairs: Pairs) -> Pairs:
            changed = list({**dict(pairs), key: text}.items())
            if sum(len(k) + len(v) for k, v in changed) > METADATA_BYTES_MAX:
                raise InvalidArgument("user metadata", "too large")
            return changed

        try:
            await self._change(node, change)
        except InvalidArgument:
            raise Refused(errno.ENOSPC) from None

    async def remove(self, node: Node, name: bytes) -> None:
        key = self._settable(node, name)
        await self.get(node, name)
        await self._change(node, lambda pairs: [pair for pair in pairs if pair[0] != key])

    async def _change(self, node: Node, change: Callable[[Pairs], Pairs]) -> None:
        if node.draft is not None:
            await node.draft.set_metadata(change)
        elif node.unlinked:
            raise Refused(errno.ENOENT)
        else:
            await self._view.engine.set_metadata(node.bucket, node.key, change)

    def _settable(self, node: Node, name: bytes) -> str:
        """Return the name of the user metadata. Raises Refused: ENOTSUP, EROFS."""
        self._check()
        try:
            text = name.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(errno.ENOTSUP) from None
        key = text[len(METADATA) :].lower()
        if not text.startswith(METADATA) or not _NAME.fullmatch(key) or node.kind is not Kind.FILE:
            raise Refused(errno.ENOTSUP)
        self._writing.check_writable(node)
        return key


def _attributes_of(record: VersionRecord, version_id: str | None) -> dict[bytes, bytes]:
    named = {"etag": record.etag, "storage-class": record.storage_class}
    if version_id is not None:
        named["version-id"] = version_id
    for header, value in record.headers:
        if header == "content-type":
            named["content-type"] = value
    for checksum in record.checksums:
        shown = base64.b64encode(checksum.value).decode()
        if checksum.parts:
            shown += f"-{checksum.parts}"
        named[f"checksum.{checksum.algorithm.lower()}"] = shown
    answer = {(PREFIX + name).encode(): _as_sent(value) for name, value in named.items()}
    return answer | _metadata_of(record.metadata)


def _metadata_of(metadata: Pairs) -> dict[bytes, bytes]:
    return {(METADATA + key).encode(): _as_sent(value) for key, value in metadata}


def _as_sent(value: str) -> bytes:
    """Return a header's value as the bytes that S3 takes and gives: each a character here."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode()  # no header: another program of ours kept it

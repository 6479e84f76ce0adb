"""Running calls against the model and a door side by side, and comparing all that can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from tests.support.doors import Door, Refused, VersionPage
from tests.support.model import NULL, Id, Model

NO_UPLOAD = "0" * 32


@dataclass(frozen=True)
class VersionOf:
    """Stands for the ``index``-th id (modulo their number) that the key ever had."""

    bucket: str
    key: str
    index: int


@dataclass(frozen=True)
class UploadOf:
    """Stands for the ``index``-th upload that was ever begun, with its bucket and key."""

    index: int


@dataclass(frozen=True)
class EtagOf:
    """Stands for the ETag of the key's current version."""

    bucket: str
    key: str


@dataclass(frozen=True)
class Parts:
    """Stands for (number, ETag) of parts of the upload; ``numbers`` may name absent ones."""

    index: int
    numbers: tuple[int, ...]


class Call:
    """One call of a door: its name and its arguments, in which placeholders may stand."""

    def __init__(self, name: str, *args: object, **options: object) -> None:
        self.name = name
        self.args = args
        self.options = options

    def __repr__(self) -> str:
        shown = [repr(arg) for arg in self.args]
        shown += [f"{name}={value!r}" for name, value in self.options.items()]
        return f"Call({', '.join([repr(self.name), *shown])})"


@dataclass(frozen=True)
class Names:
    """Which id of the store is which id of the model."""

    real: dict[str, str]
    ours: dict[str, str]

    def bind(self, ours: Id, real: object) -> bool:
        if not isinstance(real, str):
            return False
        if self.real.setdefault(ours, real) != real:
            return False
        return self.ours.setdefault(real, ours) == ours

    def same(self, expected: object, actual: object) -> bool:
        """Compare deeply; ids that are new on both sides become bound to each other."""
        if isinstance(expected, Id):
            return self.bind(expected, actual)
        if isinstance(expected, tuple) and isinstance(actual, tuple):
            return len(expected) == len(actual) and all(map(self.same, expected, actual))
        if is_dataclass(expected) and type(expected) is type(actual):
            return all(
                self.same(getattr(expected, f.name), getattr(actual, f.name))
                for f in fields(expected)
            )
        return expected == actual


class Scenario:
    def __init__(self, model: Model, door: Door) -> None:
        self.model = model
        self.door = door
        self.names = Names({}, {})
        self._uploads: list[tuple[str, str, Id]] = []
        self._versions: dict[tuple[str, str], list[str]] = {}

    async def run(self, calls: list[Call]) -> None:
        for call in calls:
            await self.apply(call)

    async def apply(self, call: Call) -> object:
        """Make the call on both sides; what they answer must be the same."""
        resolved = [self._resolve(arg) for arg in call.args]
        args = [arg for part in resolved for arg in (part if isinstance(part, _Spread) else [part])]
        options = {name: self._resolve(value) for name, value in call.options.items()}
        expected = self._ask_model(call.name, args, options)
        actual = await self._ask_door(call.name, args, options)
        assert self.names.same(expected, actual), (
            f"{call!r}\nwith {args} {options}\nmodel: {expected!r}\nstore: {actual!r}"
        )
        self._remember(call.name, args, expected)
        return expected

    def _ask_model(self, name: str, args: list[object], options: dict[str, object]) -> object:
        method: Any = getattr(self.model, name)
        try:
            return method(*args, **options)
        except Refused as error:
            return ("refused", error.name)

    async def _ask_door(self, name: str, args: list[object], options: dict[str, object]) -> object:
        method: Any = getattr(self.door, name)
        real_args = [self._real(arg) for arg in args]
        real_options = {key: self._real(value) for key, value in options.items()}
        try:
            return await method(*real_args, **real_options)
        except Refused as error:
            return ("refused", error.name)

    def _real(self, value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(self._real, value))
        return self.names.real.get(value, value) if isinstance(value, Id) else value

    def _resolve(self, value: object) -> object:
        match value:
            case VersionOf(bucket, key, index):
                known = [*self._versions.get((bucket, key), []), NULL]
                return known[index % len(known)]
            case EtagOf(bucket, key):
                found = self.model.buckets.get(bucket)
                versions = found.keys.get(key) if found else None
                return versions[0].etag if versions and versions[0].etag else "0" * 32
            case UploadOf(index):
                if not self._uploads:
                    return _Spread(["bucket-a", "a", NO_UPLOAD])
                return _Spread(list(self._uploads[index % len(self._uploads)]))
            case Parts(index, numbers):
                return self._parts(index, numbers)
            case tuple():
                return tuple(self._resolve(item) for item in value)
            case _:
                return value

    def _parts(self, index: int, numbers: tuple[int, ...]) -> object:
        """Return (number, ETag) for Complete; 0 means every part that there is."""
        bucket, _, upload_id = (
            self._uploads[index % len(self._uploads)] if self._uploads else 3 * [""]
        )
        found = self.model.buckets.get(bucket)
        upload = found.uploads.get(upload_id) if found else None
        parts = upload.parts if upload else {}
        if 0 in numbers:
            numbers = tuple(sorted(parts)) or (1,)
        return tuple((n, parts[n][1] if n in parts else "0" * 32) for n in numbers)

    def _remember(self, name: str, args: list[object], answer: object) -> None:
        if name == "create_upload" and isinstance(answer, Id):
            self._uploads.append((str(args[0]), str(args[1]), answer))
        for bucket_name, bucket in self.model.buckets.items():
            for key, versions in bucket.keys.items():
                known = self._versions.setdefault((bucket_name, key), [])
                newest = versions[0].version_id
                if newest != NULL and newest not in known:
                    known.append(newest)

    # Looking at everything

    async def compare_all(self) -> None:
        """Compare every version's bytes and attributes, and every listing in several ways."""
        await self.apply(Call("list_buckets"))
        for name, bucket in self.model.buckets.items():
            for key, versions in bucket.keys.items():
                await self.apply(Call("get", name, key))
                for version in versions:
                    await self.apply(Call("get", name, key, version_id=version.version_id))
                    if not version.delete_marker:
                        await self.apply(Call("get_tags", name, key, version_id=version.version_id))
            for delimiter in ("", "/"):
                for limit in (1000, 3):
                    await self.walk_objects(name, delimiter=delimiter, limit=limit)
                    await self.walk_versions(name, delimiter=delimiter, limit=limit)
                    await self.walk_uploads(name, delimiter=delimiter, limit=limit)
            for upload_id, upload in bucket.uploads.items():
                await self.apply(Call("list_parts", name, upload.key, upload_id))

    async def walk_objects(self, bucket: str, **options: object) -> None:
        """List page by page, each from where the one before said that the next one starts."""
        after: str | None = ""
        while after is not None:
            page = await self.apply(Call("list_objects", bucket, after=after, **options))
            after = getattr(page, "next_after", None)

    async def walk_versions(self, bucket: str, **options: object) -> None:
        key, version = "", ""
        while True:
            page = await self.apply(
                Call("list_versions", bucket, key_marker=key, version_id_marker=version, **options)
            )
            if not isinstance(page, VersionPage) or page.next_key is None:
                return
            key, version = page.next_key, page.next_version_id or ""

    async def walk_uploads(self, bucket: str, **options: object) -> None:
        key, upload = "", ""
        while True:
            page: Any = await self.apply(
                Call("list_uploads", bucket, key_marker=key, upload_id_marker=upload, **options)
            )
            if getattr(page, "next_key", None) is None:
                return
            key, upload = page.next_key, page.next_upload_id or ""

    async def delete_all(self) -> None:
        for call in list(self._deletes()):
            await self.apply(call)
        await self.apply(Call("list_buckets"))

    def _deletes(self) -> Iterator[Call]:
        for name, bucket in self.model.buckets.items():
            for upload_id, upload in bucket.uploads.items():
                yield Call("abort", name, upload.key, upload_id)
            for key, versions in bucket.keys.items():
                for version in versions:
                    yield Call("delete", name, key, version_id=version.version_id)
            yield Call("delete_bucket", name)


class _Spread(list[object]):
    """Several arguments in the place of one."""

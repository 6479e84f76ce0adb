"""Random lists of calls: few buckets and nasty keys, so that calls meet one another."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.doors import Pairs
from tests.support.engine import border_sizes, pattern
from tests.support.scenario import Call, EtagOf, Parts, UploadOf, VersionOf

BUCKETS = ("bucket-a", "bucket-b")
KEYS = (
    "a",
    "a/",
    "a/b",
    "a/b/c",
    "a//",
    "a0",
    "//",
    ".",
    "../a",
    "\x00",
    "a\x00",
    "a\x00\x00b",
    "é ü+%2F&<>\"'",
    "\x7f\x80",
    "\uffff",
    "\U0010ffff",
    "k" * 1024,
    "a/" + "\U0001f600" * 255,
)
PART_SIZE_MIN = 1000
"""What a part that is not the last must have; set it with ``part_size_min``."""

_bucket = st.sampled_from((BUCKETS[0], BUCKETS[0], BUCKETS[0], BUCKETS[1]))
_key = st.sampled_from(KEYS)
_index = st.integers(0, 5)
_data = st.builds(pattern, st.sampled_from(border_sizes()), st.integers(0, 3))
_part = st.builds(
    pattern, st.sampled_from((0, 50, 999, 1000, 5000, 20_000, 140_000)), st.integers(0, 3)
)
_metadata = st.sampled_from(((), (("m", "1"),), (("mtime", "1700000000.5"), ("z", "ä b"))))
_ascii_metadata = st.sampled_from(((), (("m", "1"),), (("mtime", "1700000000.5"), ("z", "a b"))))
_tags = st.sampled_from(((), (("t", "1"),), (("b", "x y"), ("a", ""))))
_numbers = st.sampled_from(((0,), (0,), (0,), (0,), (1,), (1, 2), (2, 1), (1, 1), (1, 7)))
_prefix = st.sampled_from(("", "", "a", "a/", "a/b", "/", "\x00", "é", "zz", "\U0010ffff"))
_delimiter = st.sampled_from(("", "/", "/", "\x00", "b", "//"))
_marker = st.one_of(
    st.just(""), st.just(""), _key, st.sampled_from(("a/b/", "a/c", "0", "\uffff/"))
)
_limit = st.sampled_from((0, 1, 2, 3, 1000))


def _version(bucket: str, key: str) -> st.SearchStrategy[VersionOf | None]:
    return st.one_of(st.none(), st.builds(VersionOf, st.just(bucket), st.just(key), _index))


@st.composite
def _copy(draw: st.DrawFn, metadata: st.SearchStrategy[Pairs]) -> Call:
    source, target = (draw(_bucket), draw(_key)), (draw(_bucket), draw(_key))
    if draw(st.booleans()):
        target = source
    chosen = draw(metadata)
    version = draw(_version(*source))
    # S3 refuses a copy onto itself that changes nothing.
    keep = source != target and draw(st.booleans())
    return Call("copy", *source, *target, version_id=version, metadata=None if keep else chosen)


@st.composite
def _on_version(draw: st.DrawFn, name: str) -> Call:
    bucket, key = draw(_bucket), draw(_key)
    version = draw(
        st.one_of(st.none(), st.builds(VersionOf, st.just(bucket), st.just(key), _index))
    )
    match name:
        case "set_tags":
            return Call(name, bucket, key, draw(_tags), version_id=version)
        case "get":
            first = draw(st.sampled_from((0, 1, 100, 5000, 131_071)))
            last = first + draw(st.sampled_from((0, 1, 16_384, 200_000)))
            ranged = {"first": first, "last": last} if draw(st.booleans()) else {}
            return Call(name, bucket, key, version_id=version, **ranged)
        case _:
            return Call(name, bucket, key, version_id=version)


@st.composite
def _conditional(draw: st.DrawFn) -> Call:
    bucket, key = draw(_bucket), draw(_key)
    etag = draw(st.sampled_from((EtagOf(bucket, key), "*", "1" * 32)))
    kind = draw(st.integers(0, 4))
    match kind:
        case 0:
            return Call("put", bucket, key, draw(_data), if_none_match=True)
        case 1:
            return Call("put", bucket, key, draw(_data), if_match=etag)
        case 2:
            return Call("get", bucket, key, if_match=etag)
        case 3:
            return Call("get", bucket, key, if_none_match=etag)
        case _:
            return Call("delete", bucket, key, if_match=etag)


@st.composite
def _many(draw: st.DrawFn) -> Call:
    bucket = draw(_bucket)
    items = []
    for key in draw(st.lists(_key, min_size=1, max_size=4, unique=True)):
        items.append((key, draw(_version(bucket, key))))
    return Call("delete_many", bucket, tuple(items))


def _listing(name: str, marker: str) -> st.SearchStrategy[Call]:
    return st.builds(
        lambda bucket, prefix, delimiter, after, limit: Call(
            name, bucket, prefix=prefix, delimiter=delimiter, limit=limit, **{marker: after}
        ),
        _bucket,
        _prefix,
        _delimiter,
        _marker,
        _limit,
    )


def calls(*, ascii_metadata: bool = False) -> st.SearchStrategy[list[Call]]:
    """Return lists of calls that begin with a bucket, which may have versioning."""
    metadata = _ascii_metadata if ascii_metadata else _metadata

    def call(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
        return st.builds(lambda *drawn: Call(name, *drawn), *arguments)

    put = st.builds(
        lambda bucket, key, data, chosen: Call("put", bucket, key, data, metadata=chosen),
        _bucket,
        _key,
        _data,
        metadata,
    )
    upload = st.builds(
        lambda bucket, key, chosen: Call("create_upload", bucket, key, metadata=chosen),
        _bucket,
        _key,
        metadata,
    )
    one_upload = st.builds(UploadOf, _index)
    versioning = call("set_versioning", _bucket, st.sampled_from(("Enabled", "Suspended")))
    number = st.integers(1, 4)
    any_call = st.one_of(
        put,
        put,
        put,
        _on_version("delete"),
        _on_version("delete"),
        _on_version("get"),
        _on_version("head"),
        _on_version("set_tags"),
        _conditional(),
        _conditional(),
        _copy(metadata),
        _many(),
        versioning,
        upload,
        upload,
        call("put_part", one_upload, number, _part),
        call("put_part", one_upload, number, _part),
        st.builds(
            lambda bucket, key, chosen, n: Call("copy_part", bucket, key, chosen, n),
            _bucket,
            _key,
            one_upload,
            number,
        ),
        st.builds(
            lambda index, numbers: Call("complete", UploadOf(index), Parts(index, numbers)),
            _index,
            _numbers,
        ),
        call("abort", one_upload),
        call("list_parts", one_upload),
        _listing("list_objects", "after"),
        _listing("list_versions", "key_marker"),
        _listing("list_uploads", "key_marker"),
        call("create_bucket", _bucket),
        call("delete_bucket", _bucket),
        st.just(Call("collect")),
    )
    start = st.sampled_from(
        (
            [Call("create_bucket", BUCKETS[0])],
            [
                Call("create_bucket", BUCKETS[0]),
                Call("set_versioning", BUCKETS[0], "Enabled"),
            ],
            [Call("create_bucket", BUCKETS[0]), Call("create_bucket", BUCKETS[1])],
        )
    )
    return st.builds(
        lambda first, rest: first + rest, start, st.lists(any_call, min_size=1, max_size=40)
    )

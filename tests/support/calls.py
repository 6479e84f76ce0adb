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

_SCRIPT_MAX = 60
_TARGETS_MAX = 4

Target = tuple[str, str]
"""Bucket and key."""

_bucket = st.sampled_from((BUCKETS[0], BUCKETS[0], BUCKETS[0], BUCKETS[1]))
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
    st.just(""), st.sampled_from(KEYS), st.sampled_from(("a/b/", "a/c", "0", "\uffff/"))
)
_limit = st.sampled_from((0, 1, 2, 3, 1000))
_upload = st.builds(UploadOf, _index)
_number = st.integers(1, 4)


def _call(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Call]:
    return st.builds(lambda *drawn: Call(name, *drawn), *arguments)


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


_ELSEWHERE = (
    _call("put_part", _upload, _number, _part),
    _call("put_part", _upload, _number, _part),
    _call("put_part", _upload, _number, _part),
    st.builds(
        lambda index, numbers: Call("complete", UploadOf(index), Parts(index, numbers)),
        _index,
        _numbers,
    ),
    _call("abort", _upload),
    _call("list_parts", _upload),
    _listing("list_objects", "after"),
    _listing("list_versions", "key_marker"),
    _listing("list_uploads", "key_marker"),
    _call("set_versioning", _bucket, st.sampled_from(("Enabled", "Suspended"))),
    _call("set_versioning", _bucket, st.sampled_from(("Enabled", "Suspended"))),
    _call("create_bucket", _bucket),
    _call("delete_bucket", _bucket),
    st.just(Call("collect")),
)
"""Calls that name no key of the script."""


def _version(target: Target) -> st.SearchStrategy[VersionOf | None]:
    return st.one_of(st.none(), st.builds(VersionOf, *map(st.just, target), _index))


@st.composite
def _copy(
    draw: st.DrawFn, source: Target, target: Target, metadata: st.SearchStrategy[Pairs]
) -> Call:
    # S3 refuses a copy onto itself that changes nothing.
    keep = source != target and draw(st.booleans())
    return Call(
        "copy",
        *source,
        *target,
        version_id=draw(_version(source)),
        metadata=None if keep else draw(metadata),
    )


@st.composite
def _get(draw: st.DrawFn, target: Target) -> Call:
    ranged = {}
    if draw(st.booleans()):
        first = draw(st.sampled_from((0, 1, 100, 5000, 131_071)))
        last = first + draw(st.sampled_from((0, 1, 16_384, 200_000)))
        ranged = {"first": first, "last": last}
    return Call("get", *target, version_id=draw(_version(target)), **ranged)


@st.composite
def _conditional(draw: st.DrawFn, target: Target) -> Call:
    etag = draw(st.sampled_from((EtagOf(*target), "*", "1" * 32)))
    kind = draw(st.integers(0, 4))
    match kind:
        case 0:
            return Call("put", *target, draw(_data), if_none_match=True)
        case 1:
            return Call("put", *target, draw(_data), if_match=etag)
        case 2:
            return Call("get", *target, if_match=etag)
        case 3:
            return Call("get", *target, if_none_match=etag)
        case _:
            return Call("delete", *target, if_match=etag)


@st.composite
def _on(draw: st.DrawFn, targets: list[Target], metadata: st.SearchStrategy[Pairs]) -> Call:
    """Draw a call on one of the targets, or any other."""
    kind = draw(st.integers(0, 17))
    if kind > 12:
        return draw(st.one_of(_ELSEWHERE))
    target = draw(st.sampled_from(targets))
    match kind:
        case 0 | 1 | 2:
            return Call("put", *target, draw(_data), metadata=draw(metadata))
        case 3 | 4 | 5:
            return Call("delete", *target, version_id=draw(_version(target)))
        case 6:
            return draw(_get(target))
        case 7:
            return Call("head", *target, version_id=draw(_version(target)))
        case 8:
            return Call("set_tags", *target, draw(_tags), version_id=draw(_version(target)))
        case 9:
            return draw(_conditional(target))
        case 10:
            return draw(_copy(draw(st.sampled_from(targets)), target, metadata))
        case 11:
            return draw(
                st.one_of(
                    st.just(Call("create_upload", *target, metadata=draw(metadata))),
                    st.builds(lambda u, n: Call("copy_part", *target, u, n), _upload, _number),
                )
            )
        case _:
            chosen = draw(st.lists(st.sampled_from(targets), min_size=1, unique=True))
            items = [(key, draw(_version((target[0], key)))) for _, key in chosen]
            return Call("delete_many", target[0], tuple(items))


_STARTS = (
    [Call("create_bucket", BUCKETS[0])],
    [Call("create_bucket", BUCKETS[0]), Call("set_versioning", BUCKETS[0], "Enabled")],
    [Call("create_bucket", BUCKETS[0]), Call("create_bucket", BUCKETS[1])],
)


@st.composite
def calls(draw: st.DrawFn, *, ascii_metadata: bool = False) -> list[Call]:
    """Return calls that begin with a bucket, which may have versioning, on one to four keys."""
    metadata = _ascii_metadata if ascii_metadata else _metadata
    targets = draw(
        st.lists(
            st.tuples(_bucket, st.sampled_from(KEYS)),
            min_size=1,
            max_size=_TARGETS_MAX,
            unique=True,
        )
    )
    start = draw(st.sampled_from(_STARTS))
    # A list of its own would have seven calls on average: too few to meet one another.
    size = draw(st.integers(1, _SCRIPT_MAX))
    return start + [draw(_on(targets, metadata)) for _ in range(size)]

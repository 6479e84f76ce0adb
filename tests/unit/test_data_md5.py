"""MD5 of many streams side by side equals that of hashlib, whichever way it is computed."""

from __future__ import annotations

import hashlib
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.md5 import BEST, METHODS, PLAIN, Kind, LaneMd5

_md5lanes = pytest.importorskip("engine.data._md5lanes", reason="there is no C compiler")

each_method = pytest.mark.parametrize("method", METHODS)
each_kind = pytest.mark.parametrize("kind", [BEST, PLAIN], ids=["lanes", "plain"])

# RFC 1321, A.5.
VECTORS = {
    b"": "d41d8cd98f00b204e9800998ecf8427e",
    b"a": "0cc175b9c0f1b6a831c399e269772661",
    b"abc": "900150983cd24fb0d6963f7d28e17f72",
    b"message digest": "f96b697d7cb7938d525a2f31aaf161d0",
    b"abcdefghijklmnopqrstuvwxyz": "c3fcd3d76192e4007dfb496cca67e13b",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789": (
        "d174ab98d277d9f5a5611c2c9f419d9f"
    ),
    b"1234567890" * 8: "57edf4a22be3c955ac49da2e2107b67a",
}


def expected(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


@each_kind
def test_the_vectors_of_the_rfc(kind: Kind) -> None:
    for text, digest in VECTORS.items():
        md5 = kind.new()
        md5.update(text)
        assert md5.digest().hex() == digest


@each_kind
@pytest.mark.parametrize("size", [*range(54, 66), *range(118, 130), 4095, 4096, 4097])
def test_edges_of_blocks_and_of_padding(kind: Kind, size: int) -> None:
    md5 = kind.new()
    md5.update(content(size))
    assert md5.digest() == expected(content(size))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_split_gives_the_same_and_a_digest_ends_nothing(pieces: list[bytes]) -> None:
    md5 = LaneMd5()
    so_far = b""
    for piece in pieces:
        md5.update(piece)
        so_far += piece
        assert md5.digest() == expected(so_far)


@each_method
@settings(deadline=None)
@given(st.data())
def test_streams_side_by_side_do_not_meet(method: str, data: st.DataObject) -> None:
    streams = [LaneMd5() for _ in range(data.draw(st.integers(1, 20), "streams"))]
    contents = [b""] * len(streams)
    for _ in range(3):
        chosen = data.draw(st.lists(st.sampled_from(range(len(streams))), max_size=32), "chosen")
        sizes = st.integers(0, 700) | st.sampled_from([0, 55, 56, 63, 64, 128, 4096])
        pieces = [content(data.draw(sizes, "size"), index) for index in range(len(chosen))]
        LaneMd5.update_each([streams[index] for index in chosen], pieces, method)
        for index, piece in zip(chosen, pieces, strict=True):
            contents[index] += piece
    assert [md5.digest() for md5 in streams] == [expected(whole) for whole in contents]


@each_method
def test_lanes_that_end_are_filled_with_who_waits(method: str) -> None:
    sizes = [64 * (1 + index * 37 % 101) for index in range(64)]
    streams = [LaneMd5() for _ in sizes]
    contents = [content(size, index) for index, size in enumerate(sizes)]
    LaneMd5.update_each(streams, contents, method)
    assert [md5.digest() for md5 in streams] == [expected(whole) for whole in contents]


@each_method
def test_a_stream_that_comes_more_than_once_is_hashed_in_order(method: str) -> None:
    streams = [LaneMd5() for _ in range(5)]
    pieces = [content(64 * (index % 7) + index % 3, index) for index in range(30)]
    LaneMd5.update_each(streams * 6, pieces, method)
    assert [md5.digest() for md5 in streams] == [
        expected(b"".join(pieces[index::5])) for index in range(5)
    ]


@each_method
def test_bytes_at_any_address(method: str) -> None:
    whole = memoryview(content(8192 + 64))
    streams = [LaneMd5() for _ in range(17)]
    LaneMd5.update_each(streams, [whole[at : at + 8192] for at in range(17)], method)
    assert [md5.digest() for md5 in streams] == [
        expected(bytes(whole[at : at + 8192])) for at in range(17)
    ]


def test_a_length_of_more_bits_than_32() -> None:
    """2 GiB of nothing and one byte more; as one stream that starts late, since that is quick."""
    size = (1 << 31) + 1
    state = bytearray(struct.pack("<4I", 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476))
    md5 = LaneMd5()
    md5.update(b"x")
    md5._size = size
    [last] = [b"x\x80" + bytes((55 - size) % 64) + struct.pack("<Q", size * 8)]
    _md5lanes.update([state], [last])
    assert md5.digest() == bytes(state)


@pytest.mark.soak
def test_more_than_four_gibibytes() -> None:
    piece = content(1 << 20)
    lanes, plain = LaneMd5(), PLAIN.new()
    for _ in range(4097):
        lanes.update(piece)
        plain.update(piece)
    assert lanes.digest() == plain.digest()


def test_threads_hash_streams_of_their_own_at_once() -> None:
    wholes = [content(300_000, index) for index in range(4)]
    digests: list[list[bytes]] = [[] for _ in wholes]

    def run(index: int) -> None:
        for _ in range(20):
            streams = [LaneMd5() for _ in range(5)]
            LaneMd5.update_each(streams, [wholes[index]] * 5)
            digests[index] += [md5.digest() for md5 in streams]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [[expected(whole)] * 100 for whole in wholes]


@pytest.mark.parametrize(
    ("states", "data", "method"),
    [
        ([bytearray(16)], [bytes(63)], None),
        ([bytearray(15)], [bytes(64)], None),
        ([bytearray(16)], [], None),
        ([bytearray(16) for _ in range(65)], [bytes(64)] * 65, None),
        ([bytearray(16)], [bytes(64)], "no such method"),
    ],
)
def test_what_does_not_fit_is_refused(
    states: list[bytearray], data: list[bytes], method: str | None
) -> None:
    before = [bytes(state) for state in states]
    with pytest.raises(ValueError):
        _md5lanes.update(states, data, method)
    assert [bytes(state) for state in states] == before


def test_what_is_no_buffer_is_refused_and_buffers_are_let_go() -> None:
    state, data = bytearray(16), bytearray(64)
    with pytest.raises(TypeError):
        _md5lanes.update([state, bytearray(16)], [data, "text"])
    with pytest.raises(BufferError):
        _md5lanes.update([bytes(16)], [data])
    state.append(0)  # refused while a buffer of it is held
    data.append(0)


def test_every_method_is_no_wider_than_what_is_quicker() -> None:
    assert list(METHODS.values()) == sorted(METHODS.values(), reverse=True)
    assert METHODS["scalar"] == 1

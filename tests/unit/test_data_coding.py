"""Erasure coding."""

from __future__ import annotations

import itertools
import random
import threading

import pytest
from pyeclib.ec_iface import ECDriver

from engine.data.coding import BACKEND, HEADER_SIZE, Coder, Coders
from engine.data.isal import encoder_for

GEOMETRIES = [(1, 0), (1, 1), (1, 2), (2, 1), (3, 0), (4, 2), (10, 4), (20, 10)]


def blocks_of(coder: Coder, stripe: bytes) -> dict[int, memoryview]:
    size = len(stripe) // coder.data_blocks
    data = [memoryview(stripe)[at : at + size] for at in range(0, len(stripe), size)]
    return dict(enumerate(data + coder.encode(stripe)))


@pytest.mark.parametrize(("k", "m"), GEOMETRIES)
@pytest.mark.parametrize("size", [64, 128, 192, 1984, 65_536])
@pytest.mark.parametrize("direct", [True, False])
def test_any_k_blocks_give_all_others(
    k: int, m: int, size: int, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr("engine.data.coding.encoder_for", lambda *_: None)
    chance = random.Random(k * 100 + m)
    coder = Coder(k, m)
    stripe = chance.randbytes(k * size)
    blocks = blocks_of(coder, stripe)
    assert len(blocks) == k + m
    assert {len(block) for block in blocks.values()} == {size}
    choices = list(itertools.islice(itertools.combinations(range(k + m), k), 3000))
    for present in chance.sample(choices, min(len(choices), 20)):
        have = {index: blocks[index] for index in present}
        assert coder.decode(have, size) == stripe
        lost = [index for index in blocks if index not in have]
        if lost:
            places = {index: memoryview(bytearray(size)) for index in lost}
            copies = {index: memoryview(bytearray(block)) for index, block in have.items()}
            coder.recover_into(copies, places, size)
            assert places == {index: blocks[index] for index in lost}


@pytest.mark.parametrize(("k", "m"), [(2, 1), (4, 2), (10, 4), (20, 10)])
@pytest.mark.parametrize("direct", [True, False])
def test_parity_is_the_same_whoever_computes_it(
    k: int, m: int, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not direct:
        monkeypatch.setattr("engine.data.coding.encoder_for", lambda *_: None)
    coder = Coder(k, m)
    for size in (64, 192, 4096, 65_536):
        stripe = bytearray(random.Random(size).randbytes(k * size))
        parity = bytearray(m * size)
        coder.encode_into(memoryview(stripe), memoryview(parity))
        assert parity == b"".join(Coder(k, m).encode(stripe))


def test_the_library_that_pyeclib_brings_is_found() -> None:
    """Without it everything works, at twice the cost: on a machine of ours it must be there."""
    assert encoder_for(4, 2) is not None


@pytest.mark.parametrize(("k", "m"), [(2, 1), (4, 2), (10, 4)])
def test_headers_depend_on_nothing_but_index_and_size(k: int, m: int) -> None:
    """Decoding puts headers of a stripe of zeros before blocks that were kept without any."""
    driver = ECDriver(k=k, m=m, ec_type=BACKEND)
    for size in (64, 4096):
        zeros = driver.encode(bytes(k * size))
        for seed in range(5):
            fragments = driver.encode(random.Random(seed).randbytes(k * size))
            assert [f[:HEADER_SIZE] for f in fragments] == [z[:HEADER_SIZE] for z in zeros]
            assert {len(f) for f in fragments} == {HEADER_SIZE + size}


def test_code_stays_what_it_is() -> None:
    """Parity on disk depends on the matrix; another one needs another format version."""
    parity = Coder(4, 2).encode(bytes(range(256)))
    assert [bytes(block[:8]).hex() for block in parity] == ["87a7c7e707274767", "6f4f2f0fefcfaf8f"]


def test_too_few_blocks_are_an_error() -> None:
    coder = Coder(4, 2)
    blocks = blocks_of(coder, bytes(256))
    with pytest.raises(ValueError, match="3 blocks of 4"):
        coder.decode({index: blocks[index] for index in (0, 2, 5)}, 64)


def test_coders_are_shared_between_threads() -> None:
    coders = Coders()
    stripe = random.Random(3).randbytes(4 * 4096)
    expected = blocks_of(Coder(4, 2), stripe)
    wrong: list[str] = []

    def work() -> None:
        for size in range(64, 64 * 100, 64):
            coder = coders.get(4, 2)
            blocks = blocks_of(coder, stripe)
            if blocks != expected:
                wrong.append("encode")
            have = {index: blocks[index] for index in (1, 2, 4, 5)}
            if coder.decode(have, 4096) != stripe:
                wrong.append("decode")
            some = blocks_of(coder, stripe[: 4 * size][: len(stripe) // 256 * 256])
            if (
                coder.decode({i: some[i] for i in (0, 3, 4, 5)}, len(some[0]))
                != stripe[: 4 * len(some[0])]
            ):
                wrong.append("decode of another size")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert coders.get(4, 2) is coders.get(4, 2)

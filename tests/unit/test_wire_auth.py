"""Who may ask a member: the challenge, the numbers, the signatures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.node.contract import NodeRefused
from engine.node.wire.auth import Secret, Signer, Verifier, proof

SECRET = Secret(b"the secret of this cluster")
CLIENT, SERVER = b"c" * 16, b"s" * 16
REQUEST = (b"POST", b"/v1/nodes/00/delete", b"17", b"", b"x" * 17)


def pair() -> tuple[Signer, Verifier]:
    key = SECRET.connection_key(CLIENT, SERVER)
    return Signer(key), Verifier(key)


def test_requests_are_taken_in_the_order_in_which_they_were_signed() -> None:
    signer, verifier = pair()
    for _ in range(3):
        verifier.verify(signer.sign(*REQUEST), *REQUEST)


def test_a_recorded_request_is_refused_on_its_own_connection() -> None:
    signer, verifier = pair()
    recorded = signer.sign(*REQUEST)
    verifier.verify(recorded, *REQUEST)
    with pytest.raises(NodeRefused):
        verifier.verify(recorded, *REQUEST)
    verifier.verify(signer.sign(*REQUEST), *REQUEST)


def test_a_request_that_was_held_back_is_refused() -> None:
    signer, verifier = pair()
    signer.sign(*REQUEST)
    with pytest.raises(NodeRefused):
        verifier.verify(signer.sign(*REQUEST), *REQUEST)


@pytest.mark.parametrize("halves", [(b"d" * 16, SERVER), (CLIENT, b"t" * 16)])
def test_a_recorded_request_is_refused_on_another_connection(halves: tuple[bytes, bytes]) -> None:
    signer, _ = pair()
    with pytest.raises(NodeRefused):
        Verifier(SECRET.connection_key(*halves)).verify(signer.sign(*REQUEST), *REQUEST)


@pytest.mark.parametrize(
    "changed",
    [
        (b"PUT", *REQUEST[1:]),
        (REQUEST[0], b"/v1/nodes/01/delete", *REQUEST[2:]),
        (*REQUEST[:2], b"18", *REQUEST[3:]),
        (*REQUEST[:3], b"bytes=0-1", REQUEST[4]),
        (*REQUEST[:4], b"x" * 16 + b"y"),
        # The same bytes, cut into parts in another way.
        (b"POST", b"/v1/nodes/00/delete\n17", b"", b"", b"x" * 17),
    ],
)
def test_a_request_that_was_changed_is_refused(changed: tuple[bytes, ...]) -> None:
    signer, verifier = pair()
    with pytest.raises(NodeRefused):
        verifier.verify(signer.sign(*REQUEST), *changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, b"", b"1", b"1 ", b"x y", b"01 " + b"0" * 64])
def test_a_request_without_a_signature_is_refused(value: bytes | None) -> None:
    _, verifier = pair()
    with pytest.raises(NodeRefused):
        verifier.verify(value, *REQUEST)


def test_a_refused_request_uses_no_number_up() -> None:
    signer, verifier = pair()
    with pytest.raises(NodeRefused):
        verifier.verify(b"1 forged", *REQUEST)
    verifier.verify(signer.sign(*REQUEST), *REQUEST)


def _ends() -> tuple[Signer, Verifier]:
    signer, verifier = pair()
    verifier.verify(signer.sign(*REQUEST), *REQUEST)
    return signer, verifier


def test_the_end_of_a_body_says_how_long_it_is() -> None:
    signer, verifier = _ends()
    verifier.verify_end(signer.trailer(1000), 1000)


@pytest.mark.parametrize(
    "end",
    [
        lambda signer: None,
        lambda signer: signer.trailer(1001),
        lambda signer: b"1000",
        lambda signer: b"1000 " + signer.trailer(999).split(b" ")[1],
    ],
)
def test_a_body_that_ends_elsewhere_is_refused(end: Callable[[Signer], bytes | None]) -> None:
    signer, verifier = _ends()
    with pytest.raises(NodeRefused):
        verifier.verify_end(end(signer), 1000)


def test_the_end_of_another_request_is_refused() -> None:
    signer, verifier = _ends()
    recorded = signer.trailer(1000)
    verifier.verify(signer.sign(*REQUEST), *REQUEST)
    with pytest.raises(NodeRefused):
        verifier.verify_end(recorded, 1000)


def test_the_member_proves_that_it_knows_the_secret() -> None:
    key = SECRET.connection_key(CLIENT, SERVER)
    other = Secret(b"the secret of another cluster").connection_key(CLIENT, SERVER)
    assert proof(key) == proof(SECRET.connection_key(CLIENT, SERVER))
    assert proof(key) != proof(other)


def test_white_space_around_a_secret_does_not_count() -> None:
    key = Secret(b" the secret of this cluster\n").connection_key(CLIENT, SERVER)
    assert key == SECRET.connection_key(CLIENT, SERVER)


def test_a_short_secret_is_refused_and_none_is_printed() -> None:
    with pytest.raises(ValueError, match="16"):
        Secret(b"short\n         ")
    assert "cluster" not in repr(SECRET)

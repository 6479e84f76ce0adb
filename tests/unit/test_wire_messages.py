"""What goes over the wire, and comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ids import FragmentId
from engine.node import contract
from engine.node.contract import FragmentInfo, NodeBusy, NodeDown, NodeError
from engine.node.identity import DriveEmpty
from engine.node.wire.messages import (
    ERRORS,
    AdoptionRefused,
    Verdict,
    error_of,
    pack_infos,
    pack_verdicts,
    status_of,
    unpack_ids,
    unpack_infos,
    unpack_verdicts,
)

ids = st.binary(min_size=17, max_size=17).map(FragmentId)


def contract_errors() -> list[type[NodeError]]:
    return [
        kind
        for kind in vars(contract).values()
        if isinstance(kind, type) and issubclass(kind, NodeError) and kind is not NodeError
    ]


def test_every_error_of_the_contract_is_in_the_table() -> None:
    assert {error.kind for error in ERRORS} == {*contract_errors(), AdoptionRefused}
    assert len({error.code for error in ERRORS}) == len(ERRORS)


@pytest.mark.parametrize("kind", [error.kind for error in ERRORS])
def test_an_error_arrives_as_what_it_was(kind: type[NodeError]) -> None:
    status, code = status_of(kind("what happened"))
    assert status >= 400
    error = error_of(code, status, "what happened")
    assert type(error) is kind
    assert str(error) == "what happened"


def test_an_error_that_the_table_does_not_know_arrives_as_the_nearest_above_it() -> None:
    assert status_of(DriveEmpty("/drive", "was never formatted")) == (502, b"down")
    assert status_of(NodeError("something")) == (502, b"down")


@pytest.mark.parametrize(("code", "status"), [(None, 500), (b"unheard-of", 418), (None, 404)])
def test_an_answer_that_no_member_gives_means_that_the_node_is_down(
    code: bytes | None, status: int
) -> None:
    error = error_of(code, status, "somewhere")
    assert type(error) is NodeDown
    assert str(status) in str(error)


def test_a_busy_node_is_not_down() -> None:
    assert not issubclass(NodeBusy, NodeDown)
    assert status_of(NodeBusy("much to do"))[0] == 503


@given(st.lists(st.tuples(ids, st.integers(0, 2**64 - 1)), max_size=20))
def test_lists_arrive_as_they_were(rows: list[tuple[FragmentId, int]]) -> None:
    infos = [FragmentInfo(fragment, size) for fragment, size in rows]
    packed = pack_infos(infos)
    assert unpack_infos(packed) == infos
    assert len(packed) == 25 * len(infos)
    if packed:
        with pytest.raises(ValueError):
            unpack_infos(packed[:-1])


@given(st.lists(ids, max_size=20))
def test_ids_arrive_as_they_were(fragments: list[FragmentId]) -> None:
    packed = b"".join(fragments)
    assert unpack_ids(packed) == fragments
    with pytest.raises(ValueError):
        unpack_ids(packed + b"x")


@given(st.lists(st.sampled_from(("whole", "missing", "damaged")), max_size=20))
def test_verdicts_arrive_as_they_were(verdicts: list[Verdict]) -> None:
    assert unpack_verdicts(pack_verdicts(verdicts)) == verdicts


def test_a_byte_that_is_no_verdict_is_refused() -> None:
    with pytest.raises(ValueError):
        unpack_verdicts(b"\x00\x07")

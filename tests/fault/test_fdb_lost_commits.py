"""An answer to a commit that is lost, in every kind of transaction that the program has, on a real
FoundationDB server: nothing is done twice, and nothing is lost."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.meta.fdb import FdbLocation
from tests.support import fdb_server
from tests.support.logs import Logs
from tests.support.lost_commits import Fate, Loss, losing, rows_of
from tests.support.transaction_scenes import SCENES, Stage
from tests.support.transactions import kinds, strangers


def test_every_kind_of_transaction_has_a_scene_for_fdb() -> None:
    """Runs without a server. What is missing goes into ``tests/support/transaction_scenes.py``."""
    shown = set().union(*(scene.kinds for scene in SCENES.values()))
    assert kinds() - shown == set(), "kinds of transactions that no scene shows"
    assert shown - kinds() == set(), "kinds that are no more"
    assert strangers() == [], "databases under names that tests.support.transactions does not know"


async def play(name: str, loss: Loss, path: Path) -> tuple[Any, dict[bytes, Any], set[str]]:
    """Return what a scene answered, the rows that it left, and the kinds whose answers it lost."""
    own = fdb_server.location(path)
    location = FdbLocation(own.cluster_file, f"test-{uuid.uuid4().hex[:16]}", own.library)
    fate = Fate()
    with losing(loss, location, fate) as lost:
        answer = await SCENES[name].play(Stage(path, location, fate))
    return answer, await rows_of(location), set(lost.lost)


@pytest.mark.parametrize("name", SCENES)
def test_lost_commit_answers_change_nothing_on_fdb(name: str, tmp_path: Path, logs: Logs) -> None:
    logs.expect("")
    path = tmp_path / "store"
    ends = {}
    for loss in Loss:
        path.mkdir()
        # A clock that stands still: on a busy machine nothing takes too long for the store.
        answer, rows, lost = trio.run(play, name, loss, path, clock=MockClock())
        ends[loss] = answer, rows
        path.rename(tmp_path / loss.name)
        if loss is not Loss.NONE:
            assert SCENES[name].kinds <= lost, "the scene does not show them"
    for loss in (Loss.APPLIED, Loss.DROPPED):
        assert ends[loss][1] == ends[Loss.NONE][1], loss.value
        assert ends[loss][0] == ends[Loss.NONE][0], loss.value

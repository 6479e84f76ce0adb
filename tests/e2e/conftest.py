"""A server of its own for each file of tests: six drives, 4+2, two workers."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import s3_client
from tests.support.server import Server, serving_coded


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds ``store``, ``store.log`` and ``drive1`` to ``drive6``; removed behind the tests."""
    folder = tmp_path_factory.mktemp("served")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(store_folder: Path) -> Iterator[Server]:
    """The server must end well and have had nothing to complain about."""
    with serving_coded(store_folder, "--domain", "localhost") as server:
        yield server
        assert server.stop() == 0
    assert server.troubles == []


@pytest.fixture(scope="module")
def s3(server: Server) -> Iterator[Any]:
    client = s3_client(server)
    yield client
    client.close()


@pytest.fixture(scope="module")
def make_bucket(s3: Any) -> Callable[[], str]:
    numbers = itertools.count(1)

    def make() -> str:
        name = f"bucket-{next(numbers)}"
        s3.create_bucket(Bucket=name)
        return name

    return make


@pytest.fixture
def bucket(make_bucket: Callable[[], str]) -> str:
    """A new and empty bucket."""
    return make_bucket()

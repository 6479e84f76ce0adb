"""What is put in the place of pyfuse3's way of listening to the kernel."""

from __future__ import annotations

import pyfuse3

from fs.incoming import Incoming
from fs.kernel import read_by


def never() -> None:
    raise AssertionError("the connection is there")


def test_pyfuse3_still_has_the_function_that_is_replaced() -> None:
    wait = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    assert callable(wait)
    read_by(Incoming(never))  # nothing is mounted by this process: nothing happens
    assert pyfuse3._wait_fuse_readable is wait  # type: ignore[attr-defined]

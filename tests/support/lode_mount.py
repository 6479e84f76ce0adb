"""``lode mount`` as people run it: a process of its own, from the command line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.server import LODE, ROOT, clean_environment

STOP_S = 120.0


@contextmanager
def lode_mount(store: Path, bucket: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run ``lode mount --foreground`` until the block ends, unless it was killed and waited for;
    unmounted whatever happens."""
    with suppress(FileExistsError):
        path.mkdir()  # a dead mount is there, but neither a file nor a folder
    command = [*LODE, "mount", "--foreground", "--data", str(store), bucket, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready")
            yield process
            if process.poll() is None:
                process.terminate()
                assert process.wait(STOP_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if os.path.ismount(path) or not os.access(path, os.F_OK):
                subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)

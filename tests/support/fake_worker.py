"""A stand-in for ``cli.worker`` whose life follows a script; the supervisor is what is tested.

    python fake_worker.py FOLDER STEP...

The n-th process started (counted in FOLDER) plays the n-th step, later ones the last step:
``serve`` until SIGTERM, ``die`` after it was ready, ``refuse`` by a report, ``usage`` by a report,
``silent`` until killed, ``vanish`` without a report, ``deaf`` to SIGTERM. Each leaves a line in
FOLDER/lives: number, step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main(folder: Path, steps: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    config = json.loads(sys.stdin.readline())
    lives = folder / f"lives-{config['number']}"
    count = len(lives.read_text().splitlines()) if lives.exists() else 0
    step = steps[min(count, len(steps) - 1)]
    with lives.open("a") as file:
        print(os.getpid(), step, *sorted(os.environ), file=file)
    match step:
        case "serve":
            report(ready=True)
            signal.sigwait({signal.SIGTERM})
        case "deaf":
            report(ready=True)
            signal.pause()
        case "die":
            report(ready=True)
            os._exit(7)
        case "refuse":
            report(ready=False, message="the disk is on fire")
            sys.exit(1)
        case "usage":
            report(ready=False, message="no such folder", usage=True)
            sys.exit(2)
        case "silent":
            signal.pause()
        case "vanish":
            os.kill(os.getpid(), signal.SIGKILL)


def report(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

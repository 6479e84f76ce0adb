"""Starts the workers, replaces those that die, and stops all of them together.

Concurrency: one trio run, a task per worker, one for signals and one for the time limit of a
stop. ``_processes`` and ``_failure`` change only between awaits; ``_stop`` is set once. A worker:

    spawn → config on its stdin → report on its stdout → serving → exit → back-off → spawn

A mount stands aside from the workers: the server goes on without it, however often it dies, and
when somebody unmounts it, it stays so until the server is started again.

docs/decisions/0001-supervisor-and-workers.md says why there are processes at all.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog
import trio

from cli.credentials import ACCESS_VARIABLE, SECRET_VARIABLE
from cli.handover import Report, WorkerConfig, decode_report, encode_config
from cli.outcome import WorkersFailed
from engine.errors import ConfigError

log = structlog.get_logger()

REPORT_SIZE_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits for what; all in seconds."""

    start_s: float = 600.0
    """For a worker to accept requests: a node may have to recover its volumes first."""
    stop_s: float = 45.0
    """For a worker to end after a stop was asked for; it allows running requests 30 of them."""
    again_s: float = 0.5
    """Signals that follow the first so soon are the same request: `timeout` and some terminals
    signal the process and then its group."""
    kill_s: float = 5.0
    """For the kernel to take a killed process away."""
    quick_s: float = 10.0
    """A worker that dies sooner than this after it was ready died quickly."""
    quick_deaths_max: int = 5
    """So many quick deaths of one worker in a row end the server."""
    delay_s: float = 0.1
    """Before the first restart; doubled for each further quick death."""
    delay_s_max: float = 5.0
    aside_delay_s_max: float = 60.0
    """The same of a process that the others do not need: it is started again for ever."""


DEFAULT_PATIENCE = Patience()


class Supervisor:
    """Runs one process per config: ``command`` with the config on its standard input.

    Args:
        configs: their ``sockets`` must be open in this process; workers inherit them.
        ready: called once, when every worker accepts requests.
        environment: variables that the workers get beside the supervisor's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        configs: Sequence[WorkerConfig],
        *,
        ready: Callable[[], None],
        patience: Patience = DEFAULT_PATIENCE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = dict(environment or {})
        self._serving: set[int] = set()
        self._command = list(command)
        self._configs = list(configs)
        self._ready = ready
        self._patience = patience
        self._waiting = len(self._configs)
        self._processes: set[trio.Process] = set()
        self._stop = trio.Event()
        self._failure: ConfigError | WorkersFailed | None = None

    def missing(self) -> list[str]:
        """Return what does not serve now, to be shown to people; all of it while stopping."""
        if self._stop.is_set():
            return ["the server is stopping"]
        numbers = [
            config.number
            for config in self._configs
            # A mount that is away is no reason to send S3 requests elsewhere.
            if self._waiting or not _stands_aside(config)
        ]
        return [f"worker {number}" for number in numbers if number not in self._serving]

    async def run(self, beside: Callable[[], Awaitable[None]] | None = None) -> None:
        """Serve until SIGTERM or SIGINT.

        ``beside`` runs along with the workers, and is cancelled when they have ended.

        The first signal lets running requests end, within the time limit; a second signal, or
        the limit, kills the workers. No worker is left on return, nor on any exception.

        Raises:
            ConfigError: a worker cannot start with what the user asked for.
            WorkersFailed: a worker did not start, or died quickly too often.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                nursery.start_soon(self._limit_stop)
                if beside is not None:
                    nursery.start_soon(beside)
                async with trio.open_nursery() as workers:
                    for config in self._configs:
                        workers.start_soon(self._keep_running, config)
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        asked_at = 0.0
        async for number in signals:
            if self._stop.is_set():
                if trio.current_time() - asked_at < self._patience.again_s:
                    continue
                log.warning("second signal: killing the workers")
                self._kill_all()
            else:
                asked_at = trio.current_time()
                log.info("stopping", signal=signal.Signals(number).name)
                self._ask_to_stop()

    async def _limit_stop(self) -> None:
        await self._stop.wait()
        await trio.sleep(self._patience.stop_s)
        log.warning("workers did not stop in time: killing them", limit_s=self._patience.stop_s)
        self._kill_all()

    def _ask_to_stop(self) -> None:
        self._stop.set()
        for process in self._processes:
            process.terminate()

    def _kill_all(self) -> None:
        for process in self._processes:
            process.kill()

    def _fail(self, error: ConfigError | WorkersFailed) -> None:
        """End the server with the first failure; the other workers finish their requests."""
        if self._failure is None:
            self._failure = error
        if not self._stop.is_set():
            self._ask_to_stop()

    async def _keep_running(self, config: WorkerConfig) -> None:
        served = False
        quick_deaths = 0
        while not self._stop.is_set():
            report, status, lived_s = await self._run_once(config, first=not served)
            if self._stop.is_set():
                return
            if not served and not (report is not None and report.ready):
                self._fail(_start_failure(config.number, report, status))
                return
            served = True
            quick_deaths = quick_deaths + 1 if lived_s < self._patience.quick_s else 0
            if _stands_aside(config):
                if status == 0:
                    await self._leave_unmounted(config)
                    return
            elif quick_deaths > self._patience.quick_deaths_max:
                self._fail(
                    WorkersFailed(
                        f"worker {config.number} died {quick_deaths} times in a row "
                        f"({_describe(status)}); the log above says why"
                    )
                )
                return
            delay_s = self._delay_s(config, quick_deaths)
            log.error(
                "mount died; mounting again"
                if _stands_aside(config)
                else "worker died; starting another",
                worker=config.number,
                ended=_describe(status),
                why=report.message if report is not None else "",
                delay_s=delay_s,
            )
            with trio.move_on_after(delay_s):
                await self._stop.wait()

    def _delay_s(self, config: WorkerConfig, quick_deaths: int) -> float:
        patience = self._patience
        longest = patience.aside_delay_s_max if _stands_aside(config) else patience.delay_s_max
        # Who died often enough would make the number too large for a float.
        return min(patience.delay_s * 2.0 ** min(max(0, quick_deaths - 1), 30), longest)

    async def _leave_unmounted(self, config: WorkerConfig) -> None:
        """Somebody unmounted it, or asked its process to end: they had a reason."""
        assert config.mount is not None
        log.warning(
            "unmounted by somebody; it stays so until the server is started again",
            worker=config.number,
            target=str(config.mount.target),
        )
        await self._stop.wait()

    async def _run_once(
        self, config: WorkerConfig, *, first: bool
    ) -> tuple[Report | None, int, float]:
        """Run one process to its end.

        Returns its report (None: there was none), its return code, and how long it served.
        """
        process = await self._spawn(config)
        ready_at = trio.current_time()
        try:
            report = await self._exchange(process, config)
            ready_at = trio.current_time()
            if report is not None and report.ready:
                self._serving.add(config.number)
                if first:
                    self._waiting -= 1
                    if self._waiting == 0 and not self._stop.is_set():
                        self._ready()
                else:
                    log.info("worker serves again", worker=config.number)
            elif report is None:
                # Either it is dead already, or it said nothing for so long that it should be.
                process.kill()
            status = await process.wait()
            return report, status, trio.current_time() - ready_at
        finally:
            self._processes.discard(process)
            self._serving.discard(config.number)
            with trio.move_on_after(self._patience.kill_s, shield=True):
                await _put_away(process)

    async def _spawn(self, config: WorkerConfig) -> trio.Process:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in (ACCESS_VARIABLE, SECRET_VARIABLE)
        }
        process = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[*config.sockets, config.board],
            env=environment | self._environment,
        )
        self._processes.add(process)
        if self._stop.is_set():
            process.terminate()
        return process

    async def _exchange(self, process: trio.Process, config: WorkerConfig) -> Report | None:
        """Hand the config over and return what the worker reports; None: it died or is silent."""
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        with trio.move_on_after(self._patience.start_s):
            try:
                await process.stdin.send_all(encode_config(config))
                while not line.endswith(b"\n") and len(line) <= REPORT_SIZE_MAX:
                    received = await process.stdout.receive_some()
                    if not received:
                        break
                    line += received
                return decode_report(line)
            except (trio.BrokenResourceError, msgspec.DecodeError):
                return None
        return None


async def _put_away(process: trio.Process) -> None:
    """Leave neither a process nor a pipe behind."""
    if process.returncode is None:
        process.kill()
        await process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            await pipe.aclose()


def _stands_aside(config: WorkerConfig) -> bool:
    """Say whether the others serve without it."""
    return config.mount is not None


def _start_failure(number: int, report: Report | None, status: int) -> ConfigError | WorkersFailed:
    if report is None or not report.message:
        return WorkersFailed(f"worker {number} did not start ({_describe(status)})")
    if report.usage:
        return ConfigError(report.message)
    return WorkersFailed(f"worker {number} did not start: {report.message}")


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"

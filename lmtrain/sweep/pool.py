"""The jobs of sweeps and searches: each in a fresh interpreter, if its directory shows that it is to be done."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lmtrain.errors import INTERRUPTED, SUCCESSFUL, status_of
from lmtrain.files.limited import read_json
from lmtrain.files.lock import FileLock, run_lock
from lmtrain.loop.stop_request import SIGNALS
from lmtrain.sweep.gpus import deal
from lmtrain.sweep.job import Ended, Job
from lmtrain.sweep.job_directory import to_do
from lmtrain.terminal.redact import redacted

PARENT = "LMTRAIN_PARENT"  # in a job's environment: the process without which it stops (`__main__.end_with`)
AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID")  # by which `wandb agent` knows the one run it has started
LOG = "job.log"
LOCK = ".job.lock"
LOG_TAIL_BYTES = 20_000


@dataclass
class Running:
    """A job's process."""

    job: Job
    process: "subprocess.Popen[bytes]"
    slot: int
    resumed: bool
    lock: FileLock  # held by the process as well, which may outlive this one
    log_start: int
    result_before: int | None
    forwarded: int = 0  # of the signals that came
    since: float = field(default_factory=time.monotonic)


class JobPool:
    """Runs up to `n_jobs` jobs at once (null: as many as there are deals of `gpus_per_job` GPUs; without any, one).

    Nobody waits in here: `poll`, a few times a second, starts what can start and returns what has ended. A job that is
    being run by another process is waited for. The first signal that asks to stop reaches every job that runs, which
    saves and stops, and no other one starts; further signals reach them as well. Leaving the pool stops what runs.

    Raises:
        ConfigError: there are fewer GPUs than `gpus_per_job`.
    """

    def __init__(
        self, *, n_jobs: int | None, gpus_per_job: int | None, retry_failed: bool, search_path: Sequence[str] = ()
    ) -> None:
        self._slots = deal(n_jobs, gpus_per_job)  # each one's environment variables
        self._retry_failed = retry_failed
        self._search_path = tuple(search_path)
        self._queue: list[Job] = []
        self._looked_at: set[int] = set()
        self._signals: list[int] = []
        self._previous: dict[int, Any] = {}
        self.running: list[Running] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers elsewhere
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.running:
                self._note(signal.SIGTERM, None)
            for running in self.running:
                running.process.wait()
                running.lock.release()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    @property
    def stopped(self) -> int | None:
        """The signal that asked to stop."""
        return self._signals[0] if self._signals else None

    @property
    def n_jobs(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        """Slots without a job, running or submitted."""
        return max(0, len(self._slots) - len(self.running) - len(self._queue))

    @property
    def unfinished(self) -> int:
        """Jobs submitted that have not ended."""
        return len(self.running) + len(self._queue)

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def poll(self) -> list[Ended]:
        """Starts what can start; what has ended since the last call."""
        self._forward()
        ended = []
        for running in self.running[:]:
            if (code := running.process.poll()) is not None:
                self.running.remove(running)
                ended.append(self._end(running, code))
                running.lock.release()
        for job in self._queue:
            if self.stopped is not None:
                ended.append(Ended(job, "not started", None, None, {}, ran=False))
            elif (self._slot() is not None or id(job) not in self._looked_at) and (outcome := self._start(job)):
                ended.append(outcome)
            self._looked_at.add(id(job))  # what was done before is told at once, and the rest in its turn
        settled = {id(one.job) for one in self.running} | {id(one.job) for one in ended}
        self._queue = [job for job in self._queue if id(job) not in settled]
        self._looked_at -= settled
        return ended

    def _slot(self) -> int | None:
        used = {running.slot for running in self.running}
        return next((slot for slot in range(len(self._slots)) if slot not in used), None)

    def _start(self, job: Job) -> Ended | None:
        """Starts the job's process if there is a slot and nobody else runs it; how it ended, if it has before."""
        slot = self._slot()
        if (slot is None and not job.directory.is_dir()) or (lock := _lock_job(job.directory)) is None:
            return None
        try:
            decision = to_do(job.directory, job.overrides, self._search_path, retry_failed=self._retry_failed)
            if decision.status is not None:
                result = decision.result
                objective = result.get("objective")
                return Ended(job, decision.status, objective, decision.reason, result, ran=False)
            if slot is not None:
                self.running.append(_run(job, decision.arguments, decision.resumes, slot, self._slots[slot], lock))
                lock = None
            return None
        finally:
            if lock is not None:
                lock.release()

    def _end(self, running: Running, code: int) -> Ended:
        fresh = code == 0 or _written_at(running.job.directory) != running.result_before
        result = read_json(running.job.directory / "result.json") if fresh else {}
        status = result.get("status") or status_of(code)
        if not fresh and self.stopped is not None:  # before it could see to signals
            status = INTERRUPTED.status
        reason = None if status in SUCCESSFUL else result.get("error") or _reason(running, code)
        return Ended(running.job, status, result.get("objective"), reason, result, ran=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._forward()

    def _forward(self) -> None:
        for running in self.running:
            while running.forwarded < len(self._signals):
                running.forwarded += 1
                running.process.send_signal(self._signals[running.forwarded - 1])


def _lock_job(directory: Path) -> FileLock | None:
    """Lock a job's directory for its process and this one; return None if another process uses it.

    The kernel frees the lock when both are gone, so an orphan of a killed sweep keeps its directory to itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    if not lock.try_acquire():
        return None
    if run_lock(directory).is_held():  # by a run that no sweep has started
        lock.release()
        return None
    return lock


def _run(
    job: Job, arguments: Sequence[str], resumes: bool, slot: int, variables: Mapping[str, str], lock: FileLock
) -> Running:
    command = [sys.executable, "-m", "lmtrain", *arguments]
    if not resumes:
        (job.directory / "result.json").unlink(missing_ok=True)  # of a failed one that is run anew
    result_before = _written_at(job.directory)
    inherited = {name: value for name, value in os.environ.items() if name not in AGENTS}
    with (job.directory / LOG).open("ab") as log:
        log_start = log.tell()
        log.write(f"$ {shlex.join(redacted(['python', *command[1:]]))}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**inherited, **variables, PARENT: str(os.getpid())},
            start_new_session=True,  # Ctrl-C in the terminal is for the sweep, which hands it on
            pass_fds=[lock.fileno()],
        )
    return Running(job, process, slot, resumes, lock, log_start, result_before)


def _written_at(directory: Path) -> int | None:
    """Tells a result from the one before."""
    try:
        return (directory / "result.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _reason(running: Running, code: int) -> str:
    """Why a process ended that has left no result: what killed it, or its last words."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    with (running.job.directory / LOG).open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(running.log_start, end - LOG_TAIL_BYTES))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    words = [line for line in lines if any(map(str.isalnum, line)) and not line.startswith("$ ")]
    return words[-1] if words else f"exit code {code}"

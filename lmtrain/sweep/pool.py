"""Runs the jobs of sweeps and searches that still have work to do, each in a fresh interpreter."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lmtrain.errors import INTERRUPTED, SUCCESSFUL, status_of
from lmtrain.files.durable import make_folder
from lmtrain.files.limited import read_json
from lmtrain.files.lock import FileLock, run_lock
from lmtrain.loop.stop_request import signals_to_handle
from lmtrain.machine import PARENT
from lmtrain.sweep.gpus import slot_variables
from lmtrain.sweep.job import NOT_STARTED, Job, JobEnd
from lmtrain.sweep.job_directory import RemainingWork, remaining_work
from lmtrain.terminal.redact import redacted

VariablesOf = Callable[[Sequence[str]], Mapping[str, str]]

AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID")  # `wandb agent` sets them for the one run that it starts
LOG = "job.log"
LOCK = ".job.lock"
LOG_TAIL_BYTES = 20_000


@dataclass
class RunningJob:
    """A job whose process is running."""

    job: Job
    process: "subprocess.Popen[bytes]"
    slot: int
    resumed: bool
    lock: FileLock  # the job's process holds it too, because it may outlive this process
    log_start: int
    result_before: int | None
    forwarded: int = 0  # number of signals that were sent to the process
    since: float = field(default_factory=time.monotonic)


class JobPool:
    """Runs up to `n_jobs` jobs at the same time (None: one per `gpus_per_job` GPUs, or one without GPUs).

    A job may have up to `processes` processes, each of which gets a GPU.

    No method blocks. Call `poll` a few times a second: it starts jobs and returns those that have ended. A job that
    another process is running stays in the queue. After a stop signal no job starts; the signal, and any further ones,
    are forwarded to the running jobs, which save and stop. Leaving the pool (a context manager) stops the running jobs.

    `variables_of` is called with the arguments of each process before it starts, and returns variables of its
    environment.

    Raises:
        ConfigError: there are fewer GPUs than `gpus_per_job`.
    """

    def __init__(
        self,
        *,
        n_jobs: int | None,
        gpus_per_job: int | None,
        retry_failed: bool,
        search_path: Sequence[str] = (),
        processes: int = 1,
        variables_of: VariablesOf | None = None,
    ) -> None:
        self._slots = slot_variables(n_jobs, gpus_per_job, processes)  # the environment variables of each slot
        self._retry_failed = retry_failed
        self._search_path = tuple(search_path)
        self._variables_of = variables_of
        self._queue: list[Job] = []
        self._looked_at: set[int] = set()
        self._signals: list[int] = []
        self._previous: dict[int, Any] = {}
        self.running: list[RunningJob] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._previous = {number: signal.signal(number, self._on_signal) for number in signals_to_handle()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.running:
                self._on_signal(signal.SIGTERM, None)
            for running in self.running:
                running.process.wait()
                running.lock.release()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    @property
    def stopped(self) -> int | None:
        """The number of the first stop signal; None if there was none."""
        return self._signals[0] if self._signals else None

    @property
    def signals(self) -> Sequence[int]:
        """The numbers of all signals that have arrived, in their order."""
        return tuple(self._signals)

    @property
    def n_jobs(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        """The number of slots for which no job is running or queued."""
        return max(0, len(self._slots) - len(self.running) - len(self._queue))

    @property
    def unfinished(self) -> int:
        """The number of submitted jobs that have not ended."""
        return len(self.running) + len(self._queue)

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def poll(self) -> list[JobEnd]:
        """Start jobs if slots are free, and return the jobs that have ended since the last call."""
        self._forward_signals()
        ended = []
        for running in self.running[:]:
            if (code := running.process.poll()) is not None:
                self.running.remove(running)
                ended.append(self._end(running, code))
                running.lock.release()
        for job in self._queue:
            if self.stopped is not None:
                ended.append(JobEnd(job, NOT_STARTED, None, None, {}, ran=False))
            elif (self._free_slot() is not None or id(job) not in self._looked_at) and (outcome := self._start(job)):
                ended.append(outcome)
            self._looked_at.add(id(job))  # each job is checked once even without a free slot, as it may be done already
        settled = {id(one.job) for one in self.running} | {id(one.job) for one in ended}
        self._queue = [job for job in self._queue if id(job) not in settled]
        self._looked_at -= settled
        return ended

    def _free_slot(self) -> int | None:
        used = {running.slot for running in self.running}
        return next((slot for slot in range(len(self._slots)) if slot not in used), None)

    def _start(self, job: Job) -> JobEnd | None:
        """Start the job's process if possible; return how the job ended if it ended earlier."""
        slot = self._free_slot()
        if (slot is None and not job.directory.is_dir()) or (lock := _lock_job(job.directory)) is None:
            return None
        try:
            work = remaining_work(job.directory, job.overrides, self._search_path, retry_failed=self._retry_failed)
            if work.status is not None:
                result = work.result
                objective = result.get("objective")
                return JobEnd(job, work.status, objective, work.reason, result, ran=False)
            if slot is not None:
                more = self._variables_of(work.arguments) if self._variables_of is not None else {}
                self.running.append(_start_process(job, work, slot, {**self._slots[slot], **more}, lock))
                lock = None
            return None
        finally:
            if lock is not None:
                lock.release()

    def _end(self, running: RunningJob, code: int) -> JobEnd:
        fresh = code == 0 or _result_time_ns(running.job.directory) != running.result_before
        result = read_json(running.job.directory / "result.json") if fresh else {}
        status = result.get("status") or status_of(code)
        if not fresh and self.stopped is not None:  # stopped before it had installed its signal handlers
            status = INTERRUPTED.status
        reason = None if status in SUCCESSFUL else result.get("error") or _failure_reason(running, code)
        return JobEnd(running.job, status, result.get("objective"), reason, result, ran=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._forward_signals()

    def _forward_signals(self) -> None:
        for running in self.running:
            while running.forwarded < len(self._signals):
                running.forwarded += 1
                running.process.send_signal(self._signals[running.forwarded - 1])


def _lock_job(directory: Path) -> FileLock | None:
    """Lock a job's directory for this process and the job's process; return None if another process uses it.

    The kernel frees the lock when both processes have ended, so a job that outlives a killed sweep keeps its directory.
    """
    make_folder(directory)
    lock = FileLock(directory / LOCK)
    if not lock.try_acquire():
        return None
    if run_lock(directory).is_held():  # by a run that was not started by a sweep
        lock.release()
        return None
    return lock


def _start_process(
    job: Job, work: RemainingWork, slot: int, variables: Mapping[str, str], lock: FileLock
) -> RunningJob:
    command = [sys.executable, "-m", "lmtrain", *work.arguments]
    if not work.resumes:
        (job.directory / "result.json").unlink(missing_ok=True)  # from a failed attempt that is now retried
    result_before = _result_time_ns(job.directory)
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
            start_new_session=True,  # Ctrl-C in the terminal reaches only the sweep, which forwards it
            pass_fds=[lock.fileno()],
        )
    return RunningJob(job, process, slot, work.resumes, lock, log_start, result_before)


def _result_time_ns(directory: Path) -> int | None:
    """Return the time at which the result was written, to recognise a new result; None without a result."""
    try:
        return (directory / "result.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _failure_reason(running: RunningJob, code: int) -> str:
    """Return why a process ended without a result: the signal that killed it, or the last line of its output."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    with (running.job.directory / LOG).open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(running.log_start, end - LOG_TAIL_BYTES))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    words = [line for line in lines if any(map(str.isalnum, line)) and not line.startswith("$ ")]
    return words[-1] if words else f"exit code {code}"

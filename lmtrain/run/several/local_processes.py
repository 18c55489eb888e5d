"""Starts the processes of one run on this host, as torchrun would, and ends as the run does; needs no torch.

torchrun itself is for runs on several hosts. On one, its launcher would import torch once more, kill a process that
saves for longer than 30 seconds, leave the processes alone after a second signal, and forget how the run has ended.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from lmtrain.config.batch_size import check_shards, for_processes
from lmtrain.config.devices import check_own_gpus
from lmtrain.errors import COMPLETED, FAILED, INTERRUPTED, PRUNED, TERMINATED, ConfigError, ending_by_signal
from lmtrain.loop.stop_request import SIGNALS, signals_to_handle
from lmtrain.machine import PARENT, THREADS, available_cores
from lmtrain.parallel.world import (
    LOCAL_RANK,
    LOCAL_WORLD_SIZE,
    MASTER_ADDRESS,
    MASTER_PORT,
    RANK,
    STORE_SOCKET,
    WORLD_SIZE,
)

WORLD_SIZE_KEY = "parallel.world_size"
HOST = "127.0.0.1"
POLL_S = 0.05
FAILURE_GRACE_S = 15.0  # after a failure, the others learn of it and end by themselves
END_GRACE_S = 60.0  # after rank 0 has ended as planned; and after SIGTERM, while it still runs
PLANNED = (COMPLETED, PRUNED, INTERRUPTED, TERMINATED)  # the other processes may take long to save


def processes_to_start(cfg: DictConfig, otherwise: int = 1) -> int:
    """Return how many processes a checked config asks for, or `otherwise`; 1 is this process alone.

    Raises:
        ConfigError: They would not find a GPU each, or can't share the batches or the model.
    """
    size = int((cfg.get("parallel") or {}).get("world_size") or otherwise)
    if size > 1:
        check_own_gpus(cfg, size, WORLD_SIZE_KEY)
        for_processes(cfg, size)  # refuses batches that they can't share
    check_shards(cfg, size)
    return size


def refuse_processes(cfg: Mapping[str, Any], command: str) -> None:
    """Raise ConfigError if a checked config asks for several processes, for what one process does."""
    size = int((cfg.get("parallel") or {}).get("world_size") or 1)
    if size > 1:
        raise ConfigError(f"{WORLD_SIZE_KEY}={size}: {command} works in one process; give {WORLD_SIZE_KEY}=null")


def recorded_processes(environment: Mapping[str, Any]) -> int:
    """Return how many processes a run had, according to its `environment.json`."""
    size = environment.get("world_size")
    return size if isinstance(size, int) and size > 0 else 1


def run_here(size: int, arguments: Sequence[str], folder: Path) -> int:
    """Run a command in so many processes, each of which trains as under torchrun; return the exit code of the run."""
    with LocalProcesses(size, arguments, folder) as processes:
        return processes.run()


class LocalProcesses:
    """The processes of one run on this host, each with the same command; a context manager.

    Every signal that stops a run is passed on to each of them once. They also stop if this process is killed.

    Args:
        size: The number of processes.
        arguments: The arguments after `python -m lmtrain`.
        folder: The folder in which they start.
    """

    def __init__(self, size: int, arguments: Sequence[str], folder: Path) -> None:
        self.size, self.folder = size, folder
        self.command = [sys.executable, "-m", "lmtrain", *arguments]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._signals: list[int] = []
        self._passed_on: list[int] = []  # the number of signals that each process has got
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "LocalProcesses":
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._previous = {number: signal.signal(number, self._on_signal) for number in signals_to_handle()}
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self) -> int:
        """Start the processes, wait until all have ended, and return the exit code of the run, that of rank 0."""
        # Rank 0 inherits the socket that the others connect to, so nothing else can take its port.
        with socket.create_server((HOST, 0), backlog=self.size) as store:
            for rank in range(self.size):
                if self._signals:
                    break
                self._processes.append(self._start(rank, store))
                self._passed_on.append(0)
        self._wait()
        if self._signals and (len(self._processes) < self.size or self._processes[0].returncode < 0):
            return ending_by_signal(self._signals[0]).exit_code
        code = self._processes[0].returncode
        if code < 0:
            return ending_by_signal(-code).exit_code if -code in SIGNALS else FAILED.exit_code
        return code

    def _start(self, rank: int, store: socket.socket) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self.command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            env=self._environment(rank, store),
            start_new_session=True,  # Ctrl-C in the terminal reaches only this process, which passes it on
            pass_fds=[store.fileno()] if rank == 0 else [],
        )

    def _environment(self, rank: int, store: socket.socket) -> Mapping[str, str]:
        """Return the environment of a process, with what torchrun sets for it."""
        place = {RANK: rank, LOCAL_RANK: rank, WORLD_SIZE: self.size, LOCAL_WORLD_SIZE: self.size}
        address = dict(zip((MASTER_ADDRESS, MASTER_PORT), store.getsockname(), strict=True))
        own = {STORE_SOCKET: store.fileno()} if rank == 0 else {}
        threads = {THREADS: max(1, available_cores() // self.size)} if THREADS not in os.environ else {}
        added = {**place, **address, **own, **threads, PARENT: os.getpid()}
        return os.environ | {name: str(value) for name, value in added.items()}

    def _wait(self) -> None:
        """Wait for all processes. Once one has failed, or rank 0 has ended, the others get only limited time."""
        reported: set[int] = set()
        deadline = terminated = None
        while (codes := [process.poll() for process in self._processes]).count(None):
            self._pass_on()
            for rank, code in enumerate(codes):
                if code is not None and code < 0 and rank not in reported and not self._signals:
                    reported.add(rank)
                    _report_killed(rank, -code)
            now = time.monotonic()
            failed = any(code is not None and code not in {ending.exit_code for ending in PLANNED} for code in codes)
            if deadline is None and (failed or codes[0] is not None):
                deadline = now + (FAILURE_GRACE_S if failed else END_GRACE_S)
            if deadline is not None and now > deadline:
                self._send(signal.SIGKILL if terminated else signal.SIGTERM)
                # Rank 0 may be saving; once it has ended, nothing is left to save.
                terminated, deadline = True, now + (END_GRACE_S if codes[0] is None else FAILURE_GRACE_S)
            time.sleep(POLL_S)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._pass_on()

    def _pass_on(self) -> None:
        for rank, process in enumerate(self._processes[: len(self._passed_on)]):
            while self._passed_on[rank] < len(self._signals):
                self._passed_on[rank] += 1
                process.send_signal(self._signals[self._passed_on[rank] - 1])

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)


def _report_killed(rank: int, number: int) -> None:
    reason = " (out of memory?)" if number == signal.SIGKILL else ""
    sys.stderr.write(f"rank {rank} was killed by {signal.Signals(number).name}{reason}\n")

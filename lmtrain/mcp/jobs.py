"""Runs lmtrain's commands in processes of their own, one training command at a time, within the budget."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from lmtrain.errors import ConfigError
from lmtrain.machine import PARENT
from lmtrain.mcp.budget import ComputeBudget
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.redact import redact

# Without the option --network, nothing is uploaded or downloaded.
OFFLINE = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
POLL_S = 0.1
BUDGET_POLL_S = 1.0
GRACE_S = 60.0  # for a stopped command to save its state
SHORT_S = 600.0  # the longest that a command may take whose answer is waited for
TAIL_BYTES = 4_000


@dataclass
class RunningCommand:
    """A command that has been started; `exit_code` is None while it runs. `directory` is that of its run or sweep."""

    job: str
    directory: str
    process: "subprocess.Popen[bytes]"
    log: Path
    answer: Path | None  # its standard output, if that is JSON
    began: float = field(default_factory=time.monotonic)
    exit_code: int | None = None
    seconds: float = 0.0
    stopped: float | None = None  # when it was asked to stop, in time.monotonic seconds


class Commands:
    """Starts, watches and stops the commands of one server; the folder is the current folder of each command."""

    def __init__(self, folder: Path, budget: ComputeBudget, *, network: bool) -> None:
        self.folder, self.budget, self.network = folder, budget, network
        self.started: dict[str, RunningCommand] = {}

    def start(
        self, words: Sequence[str], directory_option: str, given: str | None, *, answers: bool = False
    ) -> RunningCommand:
        """Start a training command that writes to a directory: the given one, or one of its own in `outputs/mcp`.

        `directory_option` is the override or option that sets the directory, up to its value. A command
        that `answers` prints JSON to its standard output.

        Raises:
            ConfigError: the budget is spent, or another one is running.
        """
        if running := next((one for one in self.started.values() if one.exit_code is None), None):
            raise ConfigError(f"{running.job} is running; wait for it, or stop it, before the next one starts")
        self.budget.check()
        job = self.budget.new_job(list(words))
        directory = given or str(self.budget.path.parent.relative_to(self.folder) / job)
        command = [*words, *([] if given else [f"{directory_option}{directory}"])]
        log = self.budget.log_file(job)
        answer = log.with_suffix(".json") if answers else None
        with log.open("wb") as file, (answer or log).open("ab") as printed:
            process = subprocess.Popen(
                self._command(command),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=file,
                start_new_session=True,  # signals go to the command alone, which forwards them to its own jobs
            )
        self.started[job] = RunningCommand(job, directory, process, log, answer)
        return self.started[job]

    async def finish(self, words: Sequence[str]) -> tuple[int, str, str]:
        """Run a short command to its end; return its exit code, standard output and standard error."""
        self.budget.check()
        job, began = self.budget.new_job(list(words)), time.monotonic()
        code = -1
        try:
            with anyio.fail_after(SHORT_S):
                done = await anyio.run_process(
                    self._command(words),
                    check=False,
                    cwd=self.folder,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                )
            code = done.returncode
        except TimeoutError:
            raise ConfigError(f"{' '.join(words)}: took longer than {SHORT_S:.0f} seconds") from None
        finally:
            self.budget.end_job(job, time.monotonic() - began, code)
        return code, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    async def watch(self) -> None:
        """Note the ends of commands, and stop those that have spent the budget; runs as long as the server."""
        while True:
            for one in self.started.values():
                self._look_at(one)
                if one.exit_code is None and self.budget.left() <= 0:
                    self.stop(one)
            await anyio.sleep(BUDGET_POLL_S)

    async def wait(self, job: str, seconds: float) -> RunningCommand:
        """Return a command when it has ended, or after so many seconds."""
        one = self.find(job)
        with anyio.move_on_after(seconds):
            while one.exit_code is None:
                self._look_at(one)
                await anyio.sleep(POLL_S)
        return one

    def find(self, job: str) -> RunningCommand:
        if job not in self.started:
            raise ConfigError(f"{job}: no such job; this server has started {', '.join(self.started) or 'none'}")
        return self.started[job]

    def stop(self, one: RunningCommand) -> None:
        """Ask a command to save its state and stop."""
        if one.exit_code is None and one.stopped is None:
            one.stopped = time.monotonic()
            one.process.send_signal(signal.SIGTERM)

    def stop_all(self) -> None:
        """Stop all commands and wait until they have ended."""
        for one in self.started.values():
            self.stop(one)
        for one in self.started.values():
            if one.exit_code is None:
                try:
                    one.process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    os.killpg(one.process.pid, signal.SIGKILL)
                    one.process.wait()
                self._look_at(one)

    def _look_at(self, one: RunningCommand) -> None:
        if one.exit_code is not None:
            return
        one.seconds = time.monotonic() - one.began
        if (code := one.process.poll()) is not None:
            one.exit_code = code
            self.budget.end_job(one.job, one.seconds, code)
        elif one.stopped is not None and time.monotonic() - one.stopped > GRACE_S:
            os.killpg(one.process.pid, signal.SIGKILL)

    @staticmethod
    def _command(words: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "lmtrain", *words]

    def _environment(self) -> dict[str, str]:
        offline = {} if self.network else OFFLINE
        return {**os.environ, **offline, PARENT: str(os.getpid()), "COLUMNS": "120", "NO_COLOR": "1"}


def describe(one: RunningCommand) -> dict[str, Any]:
    """Return the state of a command for a tool's answer: name, state, exit code, seconds and the end of its output."""
    with one.log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - TAIL_BYTES))
        tail = file.read().decode(errors="replace")
    return {
        "job": one.job,
        "directory": one.directory,
        "state": "running" if one.exit_code is None else "ended",
        "exit_code": one.exit_code,
        "seconds": round(one.seconds, 1),
        "output": redact("\n".join(map(visible, tail.splitlines()))),
    }

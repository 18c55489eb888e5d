"""Runs the command line as a user would, in the foreground or in the background."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lmtrain.files.metrics import read_metrics
from support.network import Host

UTF8 = {"PYTHONIOENCODING": "utf-8"}  # tests compare output with characters that not every locale has


class Started:
    """A command that runs in the background, with an interface like `subprocess.Popen`. Its output goes to files."""

    def __init__(self, arguments: tuple[str, ...], pid: int, folder: Path) -> None:
        self.arguments, self.pid, self.folder = arguments, pid, folder

    def poll(self) -> int | None:
        code = self.folder / "code"
        return int(code.read_text(encoding="utf-8")) if code.exists() else None

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.arguments, timeout, self.stdout, self.stderr)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # the process has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()

    def end(self) -> None:
        """Kill the command and the processes that it started, as far as they are in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")


class Cli:
    """Runs `python -m lmtrain …` in a folder, as a user would, but without W&B settings from the environment.

    The command runs in a fork of a process that has already imported torch. A call with a PYTHONPATH starts a new
    interpreter instead; `start` does not support that.
    """

    def __init__(self, server: "Callable[[], subprocess.Popen[str]]", folder: Path, output: Callable[[], Path]) -> None:
        self.server, self.folder, self.output = server, folder, output
        self.started: list[Started] = []

    def __call__(self, *arguments: str, timeout: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        if "PYTHONPATH" in environment:
            return subprocess.run(
                [sys.executable, "-m", "lmtrain", *arguments],
                cwd=self.folder,
                env=clean_environment() | environment,
                capture_output=True,
                encoding="utf-8",
                timeout=timeout,
                check=False,
            )
        process = self.start(*arguments, **environment)
        try:
            code = process.wait(timeout)
        finally:
            process.end()
        return subprocess.CompletedProcess(arguments, code, process.stdout, process.stderr)

    def start(
        self,
        *arguments: str,
        folder: Path | None = None,
        merged: bool = False,
        forked_jobs: int = 0,
        host: Host | None = None,
        **environment: str,
    ) -> Started:
        """Start a command in the background. It is killed at the end of the test if it still runs.

        If `merged`, what it prints to stderr is in its `stdout`, as in a terminal. The first `forked_jobs` jobs of a
        sweep are forks too, instead of new interpreters. With a `host`, it runs there.
        """
        assert "PYTHONPATH" not in environment
        output, server = self.output(), self.server()
        files = {name: str(output / name) for name in ("stdout", "stderr", "code")}
        if merged:
            files["stderr"] = files["stdout"]
        for name in ("stdout", "stderr"):
            Path(files[name]).touch()
        variables = clean_environment() | environment
        place = {
            "folder": str(folder or self.folder),
            "environment": variables,
            "jobs": forked_jobs,
            "host": host and (host.namespace, host.name),
        }
        request = {"arguments": arguments, **place, **files}
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{json.dumps(request)}\n")
        server.stdin.flush()
        pid = server.stdout.readline()
        assert pid, "the fork server has ended"
        self.started.append(Started(arguments, int(pid), output))
        return self.started[-1]

    def close(self) -> None:
        for process in self.started:
            process.end()


def clean_environment() -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "LMTRAIN_CACHE" or not key.startswith(("WANDB_", "LMTRAIN_", "HYDRA_"))
    }
    return kept | UTF8 | {"PYTHONPATH": ""}


def wait_for_step(run: Path, step: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and any(
            line["step"] >= step for line in read_metrics(run / "metrics.jsonl")
        ):
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} did not reach step {step}")


def wait_for_line(words: str, process: Started, timeout_s: float = 60) -> str:
    """Wait for a line with these words on the standard output of a process, and return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ended, lines = process.poll() is not None, process.stdout.splitlines()
        if found := [line for line in lines if words in line]:
            return found[0]
        assert not ended, process.stdout + process.stderr
        time.sleep(0.01)
    raise AssertionError(f"the process did not print {words!r}")

"""Starts the processes of a run with torchrun, and asks them for rounds of steps."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.benchmark.scaling import process
from lmtrain.errors import ConfigError

START_S = 900.0
POLL_S = 0.2
END_S = 30.0
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@dataclass(frozen=True)
class Round:
    """What a round took: the seconds of the slowest process, and the bytes that each sent, if they are counted."""

    seconds: float
    sent: list[int] | None


class Team:
    """The processes of a run, which wait until they are asked for a round.

    Args:
        cfg: The checked config.
        folder: A new folder for their files.
        size: The number of processes.
        threads: The threads of each.
    """

    def __init__(self, cfg: DictConfig, folder: Path, size: int, threads: str) -> None:
        self.size, self.folder, self.theory = size, folder, 0.0
        self.held: list[dict[str, int]] = []
        folder.mkdir()
        OmegaConf.save(cfg, folder / process.CONFIG)
        self._server = socket.socket(socket.AF_UNIX)
        address = str(folder / "socket")  # short, as the folder for temporary files is
        self._server.bind(address)
        self._server.listen()
        self._server.settimeout(POLL_S)
        (folder / process.ADDRESS).write_text(address, encoding="utf-8")
        command = [*TORCHRUN, f"--nproc-per-node={size}", "-m", process.__name__, str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
        self._log: IO[str] = (folder / "log").open("w", encoding="utf-8")
        self._processes = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        self._connection: socket.socket | None = None
        self._stream: IO[str] | None = None

    def meet(self) -> None:
        """Wait until the processes have done their first steps.

        Raises:
            ConfigError: They found a mistake in the config.
            RuntimeError: They failed.
        """
        end = time.monotonic() + START_S
        while self._connection is None:
            with contextlib.suppress(TimeoutError):
                self._connection, _ = self._server.accept()
                self._connection.settimeout(None)
                self._stream = self._connection.makefile("rw", encoding="utf-8")
                break
            if self._processes.poll() is not None or time.monotonic() > end:
                raise self._failure()
        answer = self._answer()
        self.theory, self.held = answer["theory"], answer["held"]

    def measure(self, do: str, steps: int) -> Round:
        """Ask for so many steps of a kind."""
        assert self._stream is not None
        with contextlib.suppress(BrokenPipeError):  # the processes have failed, as `_answer` reports
            self._stream.write(json.dumps({"do": do, "steps": steps}) + "\n")
            self._stream.flush()
        answers = self._answer()
        sent = [each["bytes"] for each in answers]
        return Round(max(each["seconds"] for each in answers), None if None in sent else sent)

    def _answer(self) -> Any:
        assert self._stream is not None
        line = self._stream.readline()
        if not line:
            raise self._failure()
        answer = json.loads(line)
        if isinstance(answer, dict) and "mistake" in answer:
            raise ConfigError(answer["mistake"])
        return answer

    def _failure(self) -> RuntimeError:
        lines = (self.folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line and "ChildFailedError" not in line]
        return RuntimeError(f"the benchmark's {self.size} processes failed: {(errors or lines or ['no message'])[-1]}")

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None and self._connection is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._connection.close()  # the end of the requests
        self._server.close()
        try:
            self._processes.wait(END_S if error[0] is None else 1)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes.wait(END_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes.pid, signal.SIGKILL)
            self._processes.wait()
        self._log.close()

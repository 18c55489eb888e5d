"""Lets a contender take turns with the others: it reports a round, then waits until it may train the next one.

The contest starts each contender as a separate process, with two pipes whose numbers are in the environment. This file
needs only the standard library, because every contender has its own environment.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PIPES = "PEERS_PIPES"
CONTEXT_BYTES = 1 << 30  # about what CUDA itself needs for a process


def read_task() -> SimpleNamespace:
    """Return what to train: sizes, batch, optimizer settings, files and number format (see `contest.py`)."""
    return SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


class Turns:
    """Reports rounds to the contest. A round's time starts with the permission to train it.

    Args:
        facts: What to say about the contender in its first report, such as its number of parameters.
        packages: Packages whose versions are reported.
    """

    def __init__(self, packages: tuple[str, ...] = (), **facts: Any) -> None:
        requests, reports = map(int, os.environ[PIPES].split(","))
        self._requests = os.fdopen(requests, encoding="utf-8")
        self._reports = os.fdopen(reports, "w", encoding="utf-8")
        versions = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
        self._facts = {**facts, "versions": versions}
        self._step, self._started = 0, time.perf_counter()

    def report(self, step: int, losses: list[float], *, mean: bool = False) -> None:
        """Report that `step` steps are done, and wait for the next turn.

        Args:
            step: Steps done since the start.
            losses: Losses of the last steps of the round; at least that of its last step.
            mean: `losses` is the mean over all steps of the round.
        """
        memory = self._memory()  # also waits for a GPU
        seconds = time.perf_counter() - self._started
        report = {"step": step, "losses": losses, "mean": mean, "seconds": seconds / (step - self._step), **memory}
        print(json.dumps(report | self._facts), file=self._reports, flush=True)
        self._facts = {}
        if not self._requests.readline():
            os._exit(0)  # the contest is over; whatever this process was doing does not matter
        self._step, self._started = step, time.perf_counter()

    def _memory(self) -> dict[str, int]:
        """Return the memory of a GPU in bytes: the peak, and what the process keeps. The contest measures the CPU's."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return {}
        torch.cuda.synchronize()
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "held_bytes": torch.cuda.memory_reserved() + CONTEXT_BYTES,
            "capacity_bytes": torch.cuda.mem_get_info()[1],
        }

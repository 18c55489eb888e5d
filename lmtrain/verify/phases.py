"""Shows to other processes what a run is doing."""

import functools
import importlib
import mmap
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# The functions that run during a phase, in any thread; of several phases at the same time, the first one counts.
PHASES: Mapping[str, tuple[str, ...]] = {
    "pruning": ("lmtrain.checkpoint.folder:CheckpointFolder._delete",),
    "saving": ("lmtrain.checkpoint.folder:CheckpointFolder.save",),
    "evaluating": ("lmtrain.loop.evaluation:evaluate",),
    "training": ("lmtrain.trainer:Trainer.fit",),
}
STARTING, ENDING = "start-up", "ending"
PHASE_NAMES = (STARTING, *PHASES, ENDING)
# The time when the start-up ended (time.monotonic), the number of the current phase, and a count for each phase.
COUNTERS = struct.Struct(f"<d{1 + len(PHASE_NAMES)}I")


def find_function(name: str) -> tuple[Any, str, Callable[..., Any]]:
    """Find `module:qualified.name`; return the module or class that holds it, its name there, and the function."""
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    return owner, attribute, getattr(owner, attribute)


class PhaseRecorder:
    """Writes the current phase of this process to a small file, whenever a function of a phase begins or ends.

    The functions are wrapped. To look at the stacks of the other threads instead, as a sampling profiler does, crashes
    Python 3.11 while the compiler of torch runs: it makes frames that are not safe to walk from another thread.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), COUNTERS.size)
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._seen, self._began = [0] * len(PHASE_NAMES), 0.0
        self._show(STARTING)

    def install(self) -> None:
        """Wrap the functions of all phases in this process."""
        for phase, names in PHASES.items():
            for owner, attribute, function in map(find_function, names):
                setattr(owner, attribute, self._wrapped(function, phase))

    def _wrapped(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._count(phase, 1)
            try:
                return function(*args, **kwargs)
            finally:
                self._count(phase, -1)

        return wrapper

    def _count(self, phase: str, change: int) -> None:
        with self._lock:
            self._running[phase] += change
            self._began = self._began or time.monotonic()
            self._show(next((name for name in PHASES if self._running[name]), ENDING))

    def _show(self, phase: str) -> None:
        number = PHASE_NAMES.index(phase)
        self._seen[number] += 1
        COUNTERS.pack_into(self._memory, 0, self._began, number, *self._seen)


class PhaseFile:
    """Reads the file of a PhaseRecorder, even after its process was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(COUNTERS.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), COUNTERS.size, access=mmap.ACCESS_READ)

    def now(self) -> str:
        return PHASE_NAMES[int(self._read()[1])]

    def began(self) -> float | None:
        """Return the time.monotonic at which the start-up ended; None if it has not ended."""
        return float(self._read()[0]) or None

    def seen(self) -> frozenset[str]:
        """Return the phases that were seen at least once."""
        return frozenset(name for name, count in zip(PHASE_NAMES, self._read()[2:], strict=True) if count)

    def _read(self) -> tuple[Any, ...]:
        return COUNTERS.unpack_from(self._memory)

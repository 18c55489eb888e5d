"""Shows to other processes what a run is doing."""

import functools
import importlib
import mmap
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

# The functions by which a phase is recognised on the stack of any thread; the first phase that matches counts.
PHASES: Mapping[str, tuple[str, ...]] = {
    "pruning": ("lmtrain.checkpoint.folder:CheckpointFolder._remove",),
    "saving": ("lmtrain.checkpoint.folder:CheckpointFolder.save",),
    "evaluating": ("lmtrain.loop.evaluation:evaluate",),
    "training": ("lmtrain.trainer:Trainer.fit",),
}
STARTING, ENDING = "start-up", "ending"
PHASE_NAMES = (STARTING, *PHASES, ENDING)
SAMPLE_S = 0.0005
# The time when the start-up ended (time.monotonic), the number of the current phase, and a count for each phase.
COUNTERS = struct.Struct(f"<d{1 + len(PHASE_NAMES)}I")


def code_of(name: str) -> CodeType:
    """Return the code object of `module:qualified.name`."""
    module, _, path = name.partition(":")
    function: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    code: CodeType = function.__code__
    return code


class PhaseMonitor(threading.Thread):
    """Writes the current phase of this process to a small file, many times a second."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.codes: dict[CodeType, str] = {code_of(name): phase for phase, names in PHASES.items() for name in names}
        self.trained = False

    def run(self) -> None:
        seen, began = [0] * len(PHASE_NAMES), 0.0
        with self.path.open("r+b") as file, mmap.mmap(file.fileno(), COUNTERS.size) as memory:
            while True:
                number = PHASE_NAMES.index(self.phase())
                seen[number] += 1
                if number and not began:
                    began = time.monotonic()
                COUNTERS.pack_into(memory, 0, began, number, *seen)
                time.sleep(SAMPLE_S)

    def phase(self) -> str:
        own = threading.get_ident()
        frames = (frame for thread, frame in sys._current_frames().items() if thread != own)
        found = {self.codes[code] for frame in frames for code in _codes_on_stack(frame) if code in self.codes}
        self.trained = self.trained or bool(found)
        return next((name for name in PHASES if name in found), ENDING if self.trained else STARTING)


def _codes_on_stack(frame: Any) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


class PhaseFile:
    """Reads the file of a PhaseMonitor, even after its process was killed."""

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

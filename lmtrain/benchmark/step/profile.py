"""Records some steps with torch.profiler, with the phases of the step as annotations."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from lmtrain.benchmark.step.timeline import marked
from lmtrain.benchmark.step.trace_summary import PHASE
from lmtrain.benchmark.step.training import TrainingInTurns
from lmtrain.system import System


class Annotations:
    """Marks as annotations in a trace, in the place of a `Timeline`."""

    def __init__(self) -> None:
        self._open: Any = None

    def mark(self, phase: str) -> None:
        """Begin a phase, and end the one before."""
        self.end()
        self._open = record_function(PHASE + phase)
        self._open.__enter__()

    def end(self) -> None:
        """End the phase."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = None


@contextlib.contextmanager
def profiled(training: TrainingInTurns, system: System, file: Path) -> Iterator[None]:
    """Record the steps in this context, and write the trace for Perfetto; a name that ends in .gz is compressed."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library prints lines of no use to anybody
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (system.device.type == "cuda")
    annotations = Annotations()
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        training.marks = annotations
        try:
            with marked(training.trainer, annotations):
                yield
        finally:
            annotations.end()
            training.marks = None
    profiler.export_chrome_trace(str(file))

"""Runs lmtrain up to the end of the first training step, and writes how long each phase of the start took.

It is the script of a process of its own. Its arguments are the file to write, the moment at which the process was
started (in seconds of `time.perf_counter`, which all processes share), and the arguments of lmtrain. It imports nothing
of lmtrain by itself, so that it can also measure another version.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import resource
import runpy
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

INTERPRETER = "starting the interpreter"
CONFIG = "lmtrain, Hydra and the config"
TORCH = "importing torch"
TRAINER = "importing the trainer"
PARTS = "building the parts"
WEIGHTS = "initialising the weights"
ENVIRONMENT = "recording the environment"
LOGGERS = "starting the loggers"
STEP = "computing the first step"
REST = "the rest"
PHASES = (INTERPRETER, CONFIG, TORCH, TRAINER, PARTS, WEIGHTS, ENVIRONMENT, LOGGERS, STEP, REST)
UNAVOIDABLE = (TORCH, WEIGHTS, STEP)

IMPORTS = {"torch": TORCH, "lmtrain.train_run": TRAINER}
# The phase that each function begins, and ends when it returns. A name that is missing in another version is skipped.
FUNCTIONS = {
    "lmtrain.train_run": {"run": REST, "build_recorder": LOGGERS, "keep_tokenizer": PARTS},
    "lmtrain.parts": {"check_model_size": PARTS, "build_parts": PARTS, "build_model": WEIGHTS},
    "lmtrain.run.start": {"load_start": PARTS},
    "lmtrain.run.background": {"BackgroundFacts.get": ENVIRONMENT, "BackgroundFacts.wait_for_trial": PARTS},
    "lmtrain.run.environment": {"describe_environment": ENVIRONMENT},
    "lmtrain.run.provenance": {"record_start": ENVIRONMENT},
    "lmtrain.trainer": {"Trainer.step": STEP},
}
WHOLE = ("check_model_size",)  # functions whose calls of other functions begin no phase


class Phases:
    """Adds up the wall time of each phase, and the CPU time of this process in it; a phase may be inside another one.

    Only the main thread begins and ends phases; the CPU time is that of all threads.
    """

    def __init__(self, started: float) -> None:
        self.wall: Counter[str] = Counter()
        self.cpu: Counter[str] = Counter()
        self._stack, self._whole = [INTERPRETER], 0
        self._wall, self._cpu = started, 0.0
        self.begin(CONFIG)

    def begin(self, phase: str) -> None:
        self._count()
        self._stack.append(phase)

    def end(self) -> None:
        self._count()
        self._stack.pop()

    def _count(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall[self._stack[-1]] += wall - self._wall  # type: ignore[assignment]  # a Counter may have floats
        self.cpu[self._stack[-1]] += cpu - self._cpu  # type: ignore[assignment]
        self._wall, self._cpu = wall, cpu

    def measured(self, function: Callable[..., Any], phase: str, after: Callable[..., None] | None = None) -> Any:
        """Return a function that does the same and counts as a phase; `after` is called with its arguments."""
        whole = function.__name__ in WHOLE

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._whole or threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            self.begin(phase)
            self._whole += whole
            try:
                returned = function(*args, **kwargs)
            finally:
                self._whole -= whole
                self.end()
            if after is not None:
                after(*args)
            return returned

        return call


class Finder(importlib.abc.MetaPathFinder):
    """Measures the import of the modules in IMPORTS, and the functions in FUNCTIONS, once their module is imported."""

    def __init__(self, phases: Phases, after_step: Callable[[Any], None]) -> None:
        self.phases, self.after_step = phases, after_step

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in IMPORTS and fullname not in FUNCTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            if fullname in IMPORTS:
                execute = self.phases.measured(execute, IMPORTS[fullname])

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._measure_functions(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _measure_functions(self, module: ModuleType) -> None:
        for name, phase in FUNCTIONS.get(module.__name__, {}).items():
            owner, _, attribute = name.rpartition(".")
            place: Any = getattr(module, owner, None) if owner else module
            if (function := getattr(place, attribute, None)) is not None:
                setattr(place, attribute, self.phases.measured(function, phase, self._after(phase)))

    def _after(self, phase: str) -> Callable[..., None] | None:
        return self.after_step if phase == STEP else None


def main(file: str, started: str, arguments: Sequence[str]) -> None:
    phases = Phases(float(started))

    def end(trainer: Any) -> None:
        """Write the result and end the process, without a checkpoint."""
        measured = {phase: [phases.wall[phase], phases.cpu[phase]] for phase in PHASES}
        trainer.logger.close("interrupted")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(file, "w", encoding="utf-8") as stream:
            json.dump({"phases": measured, "other_processes_cpu_s": used.ru_utime + used.ru_stime}, stream)
        os._exit(0)

    sys.meta_path.insert(0, Finder(phases, end))
    sys.argv = ["lmtrain", *arguments]
    runpy.run_module("lmtrain", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])

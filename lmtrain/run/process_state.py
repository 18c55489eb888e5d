"""Restores the state of a process after a run from Python: log handlers, paths and torch's settings."""

import contextlib
import gc
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmtrain.terminal.paths import change_folder, shell_folder

# A process has one set of torch's random generators and settings; other code that uses them would change a run's bits.
_training = threading.Lock()
_using_torch = threading.Lock()


@contextlib.contextmanager
def training_alone() -> Iterator[None]:
    """Allow only one run at a time to train in this process.

    Raises:
        RuntimeError: Another thread is training already.
    """
    if not _training.acquire(blocking=False):
        raise RuntimeError(
            "another run is training in this process, and both would draw from torch's random generators; wait for it, "
            "or use one process for each run"
        )
    try:
        yield
    finally:
        _training.release()


@contextlib.contextmanager
def using_torch() -> Iterator[None]:
    """Use torch while no run of this process is training, and restore torch's state afterwards.

    Raises:
        RuntimeError: A run is training in another thread.
    """
    if _training.locked():
        raise RuntimeError(
            "a run is training in this process, and its random numbers would change; wait for it, or use another "
            "process, such as the commands `sample` and `evaluate`"
        )
    with restored_torch():
        yield


@contextlib.contextmanager
def importing_from_here() -> Iterator[None]:
    """Make the user's own modules in the current folder importable, as the command line does."""
    shell_folder.cache_clear()  # the folder may have changed since the last call
    folder = os.getcwd()
    missing = folder not in sys.path
    if missing:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if missing and folder in sys.path:
            sys.path.remove(folder)


@contextlib.contextmanager
def restored_process(arguments: Sequence[str]) -> Iterator[None]:
    """Let the `with` block run as `lmtrain ARGUMENTS`, then restore logging, the current folder and `sys.argv`."""
    root, own = logging.getLogger(), logging.getLogger("lmtrain")
    handlers, levels = root.handlers[:], (root.level, own.level)
    captures_warnings = getattr(warnings.showwarning, "__module__", "") == "logging"
    argv, folder, path = sys.argv, os.getcwd(), sys.path[:]
    sys.argv = ["lmtrain", *arguments]  # a run records these
    # The run has its own console and log file; without this, lines would appear twice and the caller's log be closed.
    root.handlers[:] = [handler for handler in handlers if not _writes_lines(handler)]
    try:
        with importing_from_here():
            yield
    finally:
        added = [handler for handler in root.handlers if handler not in handlers]
        root.handlers[:] = handlers
        for handler in added:
            handler.close()
        root.setLevel(levels[0])
        own.setLevel(levels[1])
        logging.captureWarnings(captures_warnings)
        sys.argv = argv
        if (left := os.getcwd()) != folder:  # a resumed run changes to the folder it was started in
            if left in sys.path and left not in path:
                sys.path.remove(left)
            change_folder(Path(folder))
        shell_folder.cache_clear()


@contextlib.contextmanager
def restored_torch() -> Iterator[None]:
    """Restore torch's settings and the states of all random generators that a run seeds."""
    import numpy as np
    import torch

    with _using_torch:
        numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        deterministic = torch.get_deterministic_debug_mode()
        fill: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        benchmark = torch.backends.cudnn.benchmark
        cuda = (torch.cuda.current_device(), torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
            torch.set_rng_state(numbers[2])
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            _set_deterministic(torch, deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = benchmark
            if cuda is not None:
                torch.cuda.set_device(cuda[0])
                torch.cuda.set_rng_state_all(cuda[1])


def forget_earlier_runs() -> None:
    """Clear what earlier runs left in this process, so that this run behaves like the first one.

    Otherwise `torch.compile` would stop compiling after a few models of one class, and the memory peak would include
    the earlier runs.
    """
    import torch

    gc.collect()  # reference cycles keep the model and optimizer of an ended run; Python may collect them much later
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def _set_deterministic(torch: Any, mode: int) -> None:
    if "torch._inductor.config" in sys.modules:  # it has its own setting, which only this function sets
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
    else:
        torch.set_deterministic_debug_mode(mode)


def _writes_lines(handler: logging.Handler) -> bool:
    """Return whether a handler writes to the terminal or to a log file."""
    return isinstance(handler, logging.FileHandler) or getattr(handler, "stream", None) in (sys.stdout, sys.stderr)

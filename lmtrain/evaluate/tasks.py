"""Runs tasks of the EleutherAI harness (lm-eval) from local files.

Its tasks are code: a task file may name Python functions, and its templates can call any method.
"""

import contextlib
import io
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from lmtrain.errors import DataError
from lmtrain.evaluate.harness import HarnessModel
from lmtrain.terminal.as_text import first_few

BOOTSTRAPS = 1000  # for the standard errors of what is not a mean; means have a formula
FEWSHOT_SEED = 1234  # the harness's own


@dataclass(frozen=True)
class TaskMetric:
    """A result of a task, such as `acc`, with its standard error, if there is one."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    samples: int


def run_tasks(
    model: HarnessModel, tasks: Sequence[str], folder: Path, *, limit: int | None = None, fewshot: int | None = None
) -> list[TaskMetric]:
    """Run tasks that files in a folder describe. Random generators stay unchanged, and no network is used.

    Args:
        model: The model.
        tasks: Names of tasks or groups.
        folder: The folder with task files (YAML) and their data; paths in them are relative to it.
        limit: The first questions of each task only; None means all.
        fewshot: Examples before each question; None means as many as the task says.

    Raises:
        DataError: There is no such task, or its files can't be used.
    """
    folder = folder.absolute()  # before the current folder changes
    with _quiet(), _unchanged_generators(), contextlib.chdir(folder):
        manager = _manager(tasks, folder)
        try:
            found = simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=fewshot,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=FEWSHOT_SEED,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a task file can fail in any way
            raise _unusable(tasks, error) from error
    return list(_metrics(found or {}))


def check_tasks(tasks: Sequence[str], folder: Path) -> None:
    """Raise DataError if a folder has no such tasks, or their data can't be read."""
    folder = folder.absolute()  # before the current folder changes
    with _quiet(), _unchanged_generators(), contextlib.chdir(folder):
        manager = _manager(tasks, folder)
        try:
            manager.load(list(tasks))
        except Exception as error:  # a task file can fail in any way
            raise _unusable(tasks, error) from error


def _unusable(tasks: Sequence[str], error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{','.join(tasks)}: the harness can't run this ({reason[:300]})")


def _manager(tasks: Sequence[str], folder: Path) -> TaskManager:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    known = sorted(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        there = f"it has {first_few(known, 12)}" if known else "it has no task files"
        raise DataError(f"{unknown[0]}: no such task in {folder}; {there}")
    return manager


def _metrics(found: Mapping[str, Any]) -> Iterator[TaskMetric]:
    counts = found.get("n-samples", {})
    for task, values in found.get("results", {}).items():
        for key, value in values.items():
            name, _, filtered = key.partition(",")
            if name.endswith("_stderr") or not isinstance(value, int | float) or not filtered:
                continue
            error = values.get(f"{name}_stderr,{filtered}")
            metric = name if filtered == "none" else f"{name}/{filtered}"
            sure = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            yield TaskMetric(task, metric, float(value), sure, int(counts.get(task, {}).get("effective", 0)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's log lines and progress bars away, and let it use neither a network nor more processes."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    changed = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1", "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    logger.setLevel(logging.CRITICAL)
    switches = [(datasets.config, "HF_DATASETS_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE"),
                (huggingface_hub.constants, "HF_HUB_OFFLINE")]  # fmt: skip
    online = [getattr(module, name, None) for module, name in switches]
    for module, name in switches:  # they have read the variables when they were imported
        setattr(module, name, True)
    errors = os.dup(2)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            os.dup2(nowhere.fileno(), 2)  # git, which it asks for its version, is another process
            yield
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        logger.setLevel(level)
        for (module, name), was in zip(switches, online, strict=True):
            setattr(module, name, was)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _unchanged_generators() -> Iterator[None]:
    """Give Python's, NumPy's and torch's random generators their state back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

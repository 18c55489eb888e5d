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
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import datasets
import huggingface_hub
import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from lmtrain.errors import DataError
from lmtrain.evaluate.harness import HarnessModel
from lmtrain.terminal.as_text import first_few

BOOTSTRAPS = 1000  # for the standard errors of what is not a mean; means have a formula
FEWSHOT_SEED = 1234  # the harness's own
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
OFFLINE_SWITCHES = ((datasets.config, "HF_DATASETS_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE"),
                    (huggingface_hub.constants, "HF_HUB_OFFLINE"))  # fmt: skip


@dataclass(frozen=True)
class TaskMetric:
    """A result of a task or of a group of tasks, such as `acc`, with its standard error, if there is one."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    samples: int


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their data, as `load_tasks` returns them; they can be run more than once."""

    names: Sequence[str]
    content: Mapping[str, Any]

    def run(self, model: HarnessModel, limit: int | None = None) -> list[TaskMetric]:
        """Return what the tasks say about a model. Random generators stay unchanged.

        Args:
            model: The model.
            limit: The first questions of each task only; None means all.

        Raises:
            DataError: The files of a task can't be used. Errors of the model are raised as they are.
        """
        for task in self.content["tasks"].values():
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with _quiet(), _unchanged_generators(), _naming(self.names, model):
            found = evaluate(model, dict(self.content), limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=False)
        return list(_metrics(found["results"]))


def load_tasks(tasks: Sequence[str], folder: Path, *, fewshot: int | None = None) -> LoadedTasks:
    """Read tasks that files in a folder describe, and their data. Hugging Face's libraries stay offline.

    The current folder of this process is that one for a moment, because task files name their data that way.

    Args:
        tasks: Names of tasks or groups.
        folder: The folder with task files (YAML) and their data; paths in them are relative to it.
        fewshot: Examples before each question; None means as many as the task says, or none. A task that says 0 keeps
            it, as the harness does.

    Raises:
        DataError: There is no such task, or its files can't be used.
    """
    folder = folder.absolute()  # before the current folder changes
    with _quiet(), _unchanged_generators(), contextlib.chdir(folder):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        known = sorted(manager.all_tasks)
        if unknown := [task for task in tasks if task not in known]:
            there = f"it has {first_few(known, 12)}" if known else "it has no task files"
            if (file := folder / f"{unknown[0]}.yaml").is_file():
                there = f"{file.name} is not YAML with this name under `task`, or is damaged"
            raise DataError(f"{unknown[0]}: no such task in {folder}; {there}")
        with _naming(tasks):
            content = manager.load(list(tasks))
            for task in content["tasks"].values():
                said = task.get_config("num_fewshot")
                if said is None or (fewshot is not None and said != 0):
                    task.set_config(key="num_fewshot", value=fewshot or 0)
    return LoadedTasks(tasks, content)


@contextlib.contextmanager
def _naming(tasks: Sequence[str], model: HarnessModel | None = None) -> Iterator[None]:
    """Turn any error into one of the tasks, unless it is one of the model or of the memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a task file can fail in any way
        if model is not None and model.failure is error and not isinstance(error, ValueError):
            raise  # a ValueError is about the text of a question, such as a character without a token
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{','.join(tasks)}: the harness can't run this ({reason[:300]})") from error


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> Iterator[TaskMetric]:
    for task, values in results.items():
        for key, value in values.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not _is_number(value):
                continue
            error = values.get(f"{name}_stderr,{filtered}")
            metric = name if filtered == "none" else f"{name}/{filtered}"
            sure = float(error) if _is_number(error) and math.isfinite(error) else None
            yield TaskMetric(task, metric, float(value), sure, int(values.get("sample_len", 0)))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)  # NumPy's scalars are such numbers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's log lines and progress bars away, and let it use neither a network nor more processes."""
    logger = logging.getLogger("lm_eval")
    with contextlib.ExitStack() as restored:
        restored.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        for name, value in OFFLINE.items():
            restored.callback(_set_variable, name, os.environ.get(name))
            os.environ[name] = value
        for module, name in OFFLINE_SWITCHES:  # they have read the variables when they were imported
            if hasattr(module, name):
                restored.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, True)
        restored.enter_context(contextlib.redirect_stderr(io.StringIO()))
        restored.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _set_variable(name: str, value: str | None) -> None:
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

"""Finds run directories and loads from each the config, result, environment and metrics."""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.checkpoint.steps import CHECKPOINTS
from lmtrain.compare.labels import canonical_json, folder_names, hashable, labels_of, setting_text
from lmtrain.compare.run_files import read_config, read_record, read_sample, read_series
from lmtrain.files.links import refuse_links
from lmtrain.files.numbers import as_float
from lmtrain.run.directory import RUN_FILES, status_without_result
from lmtrain.run.identity import NEUTRAL_KEYS
from lmtrain.terminal.as_text import printable, visible

AXES = ("step", "tokens", "flops", "seconds")
# Settings that change no result of a run: those that its config hash leaves out, and how much is logged and kept.
NEUTRAL_SETTING = re.compile(
    "|".join(
        [
            *(rf"{key}(\..*)?" for key in NEUTRAL_KEYS),
            "sample_tokens",
            r"trainer\.(log_interval|checkpoint_interval|keep_checkpoints|keep_every)",
        ]
    )
)
ORIGIN_KEYS = ("fork", "step")  # the checkpoint that a run started from; it is shown as the run's parent
DATA_PATH_KEYS = re.compile(r"data\.paths?(\..*)?|prepare(\..*)?")  # ignored if the data fingerprints are equal
FOLLOWING_GROUP = "scheduler."  # its values are taken from other groups, unless they are set
MAX_STATUS_CHARS = 20
SKIPPED_FOLDERS = {CHECKPOINTS, ".hydra", "wandb", "bad-batches", ".git", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class ComparedRun:
    """A run, loaded from the files in its folder.

    Attributes:
        path: The run directory.
        label: A short name that is unique among the loaded runs.
        config: The resolved config, flat, with dotted keys.
        status: The status in `result.json`; without that file `running` or `unfinished`.
        result: The content of `result.json`; empty if the run has none.
        environment: The content of `environment.json`; empty if the run has none.
        metrics: An array per metric, all of the same length, with NaN where a line does not have the metric. It always
            has `step`, `tokens`, `seconds` and `flops`.
        sample: The text in `sample.txt`.
        parent: In words, the run that this one was forked from or repeats; None if there is none.
    """

    path: Path
    label: str
    config: Mapping[str, Any]
    status: str
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    sample: str | None
    parent: str | None

    def series(self, metric: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Return the finite points (x, y) of a metric over one of `AXES`; empty if it was never logged."""
        if metric not in self.metrics or x not in self.metrics:
            return np.empty(0), np.empty(0)
        xs, ys = self.metrics[x], self.metrics[metric]
        finite = np.isfinite(xs) & np.isfinite(ys)
        return xs[finite], ys[finite]

    def last(self, metric: str) -> float:
        """Return the value in the last line of the metrics; NaN if there are no lines."""
        column = self.metrics[metric]
        return float(column[-1]) if len(column) else float("nan")

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def parameters(self) -> float:
        """Return the number of parameters of the model; NaN if the run did not record it."""
        return as_float(_mapping_at(self.environment, "model").get("parameters"))

    @property
    def flops_per_token(self) -> float:
        return as_float(_mapping_at(self.environment, "model").get("flops_per_token"))

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps done."""
        logged = int(self.metrics["step"][-1]) if len(self.metrics["step"]) else 0
        recorded = self.result.get("steps")  # more than were logged if the run diverged between two logged steps
        return max(logged, recorded) if type(recorded) is int else logged


def load_runs(paths: Sequence[str | Path], warn: Callable[[str], None] | None = None) -> list[ComparedRun]:
    """Load all runs at or below the given paths, each once, in the given order.

    A path may be a run directory, any folder above run directories, or a glob. Runs may still be running. A run with a
    damaged file, and damaged lines of metrics, are left out and reported through `warn` (default: printed to stderr).

    Raises:
        ValueError: a path does not exist or has no runs.
    """
    warn = warn or _print_to_stderr
    found: dict[str, Path] = {}
    for path in paths:
        below = [run for start in _expand_glob(path) for run in _run_directories(start)]
        if not below:
            raise ValueError(f"{path}: " + ("no runs found" if os.path.exists(path) else "no such file or directory"))
        for run in below:
            found.setdefault(os.path.realpath(run), run)
    runs = []
    for run in found.values():
        try:
            runs.append(_load_run(run, warn))
        except (OSError, ValueError) as error:
            warn(f"left out: {error}")
    return _with_parents(with_labels(runs))


def differing_keys(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the config keys in which the runs differ, in the order of the config, with `seed` last.

    A missing key counts as null. Three kinds of keys are left out: settings that change no result, paths of data that
    are equal, and keys that repeat another one with the same last name (the scheduler's `lr` and `max_steps` repeat
    those of the optimizer and the trainer, which users set).
    """
    data = {_data_fingerprints(run) for run in runs}
    same_data = len(data) < 2 and "null" not in data
    keys = dict.fromkeys(key for run in runs for key in run.config)
    columns: dict[tuple[str, tuple[Any, ...]], str] = {}
    for key in keys:
        if NEUTRAL_SETTING.fullmatch(key) or key in ORIGIN_KEYS or (same_data and DATA_PATH_KEYS.fullmatch(key)):
            continue
        values = tuple(hashable(run.config.get(key)) for run in runs)
        if len(set(values)) > 1:
            alike = key.rpartition(".")[2], values
            if columns.setdefault(alike, key).startswith(FOLLOWING_GROUP):
                columns[alike] = key
    differing = list(columns.values())
    return [key for key in differing if key != "seed"] + [key for key in differing if key == "seed"]


def with_labels(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with unique labels: the settings that differ, as far as they fit, and the folder if needed."""
    keys = differing_keys(runs)
    labels = labels_of([run.config for run in runs], [key for key in keys if key != "seed"])
    if "seed" in keys:
        labels = [f"{label} seed={setting_text(run.seed)}".strip() for label, run in zip(labels, runs, strict=True)]
    times = Counter(labels)
    folders = folder_names([run.path for run in runs])
    named = []
    for run, label, folder in zip(runs, labels, folders, strict=True):
        unique = label if label and times[label] == 1 else f"{label} ({folder})" if label else folder
        named.append(replace(run, label=printable(unique)))
    return named


def _expand_glob(path: str | Path) -> list[Path]:
    if not os.path.exists(path) and glob.has_magic(str(path)):
        return [Path(name) for name in sorted(glob.glob(str(path), recursive=True), key=_natural_order)]
    return [Path(path)]


def _run_directories(folder: Path) -> list[Path]:
    """Return the run directories at or below a folder; links and the insides of runs are not searched."""
    found, folders = [], [os.fspath(folder)]
    while folders:  # not recursive, because folders may be nested more deeply than Python's stack allows
        path = folders.pop()
        try:
            entries = list(os.scandir(path))
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if "config.yaml" in names and names & {"metrics.jsonl", "result.json", "environment.json"}:
            found.append(Path(path))
        else:
            below = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)} - SKIPPED_FOLDERS
            folders += [os.path.join(path, name) for name in sorted(below, key=_natural_order, reverse=True)]
    return found


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which `2` comes before `10`."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _load_run(path: Path, warn: Callable[[str], None]) -> ComparedRun:
    """Load one run; its label and parent are set later, because they depend on the other runs."""
    refuse_links(path, RUN_FILES)  # a link could bring a private file of this machine into a report
    config = read_config(path / "config.yaml")
    result, environment = read_record(path / "result.json"), read_record(path / "environment.json")
    metrics = read_series(path / "metrics.jsonl", warn)
    status = result.get("status") or status_without_result(path)
    missing = np.full(len(metrics["step"]), np.nan)
    metrics = dict.fromkeys(AXES, missing) | metrics
    metrics["flops"] = metrics["tokens"] * as_float(_mapping_at(environment, "model").get("flops_per_token"))
    return ComparedRun(
        path=path,
        label=path.name,
        config=config,
        status=printable(status)[:MAX_STATUS_CHARS],
        result=result,
        environment=environment,
        metrics=metrics,
        sample=read_sample(path / "sample.txt"),
        parent=None,
    )


def _with_parents(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    by_id = {run.environment["run_id"]: run for run in runs if run.environment.get("run_id")}
    by_path = {os.path.realpath(run.path): run for run in runs}

    def name_of(origin: Mapping[str, Any]) -> str:
        parent = by_id.get(origin.get("run_id")) or by_path.get(_real_path(str(origin.get("run"))))
        return parent.label if parent else printable(str(origin.get("run") or origin.get("run_id")))

    return [replace(run, parent=_parent_in_words(run, name_of)) for run in runs]


def _real_path(text: str) -> str:
    try:
        return os.path.realpath(text)
    except ValueError:  # it contains a NUL or a character that the file system cannot encode
        return text


def _parent_in_words(run: ComparedRun, name_of: Callable[[Mapping[str, Any]], str]) -> str | None:
    if origin := forked_from(run):
        step = origin.get("step")
        return f"from {name_of(origin)}" + (f" at step {step}" if isinstance(step, int) else "")
    if again := _mapping_at(run.environment, "rerun_of"):
        return f"repeats {name_of(again)}"
    return None


def forked_from(run: ComparedRun) -> Mapping[str, Any]:
    """Return `run`, `run_id` and `step` of the checkpoint that a forked run started from; empty for other runs."""
    if recorded := _mapping_at(run.environment, "forked_from"):
        return recorded
    fork = run.config.get("fork")
    return {"run": fork, "step": run.config.get("step")} if isinstance(fork, str) else {}


def _mapping_at(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = content.get(key)
    return part if isinstance(part, dict) else {}


def _data_fingerprints(run: ComparedRun) -> str:
    """Return the fingerprints of the run's data as text."""
    return canonical_json(run.environment.get("data"))


def _print_to_stderr(line: str) -> None:
    print(visible(" ".join(line.splitlines())), file=sys.stderr)  # noqa: T201

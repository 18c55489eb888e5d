"""Finds runs and holds what is compared of each: config, result, environment, and every metric as an array."""

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

from lmtrain.compare.labels import as_json, comparable, folder_names, labels_of, printable, shown
from lmtrain.compare.run_files import read_columns, read_config, read_object, read_text
from lmtrain.files.lock import run_lock

AXES = ("step", "tokens", "flops", "seconds")
# What changes no number of a run: how it is called, logged and kept.
ASIDE = re.compile(
    r"(name|resume|retry_failed|sample_tokens|logger(\..*)?"
    r"|trainer\.(log_interval|checkpoint_interval|keep_checkpoints|keep_every))"
)
ORIGIN = ("fork", "step")  # of a run that started from another's checkpoint; told as its parent
DATA_PLACE = re.compile(r"data\.paths?(\..*)?|prepare(\..*)?")  # of no consequence where the fingerprints are equal
FOLLOWS = "scheduler."  # whose values are taken from other parts, unless they are set
MAX_STATUS_CHARS = 20
NOT_ENTERED = {"checkpoints", ".hydra", "wandb", "bad-batches", ".git", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    `config` is resolved and flat, with dotted keys. `metrics` has a column a name, all of one length, with NaN where a
    line lacks it; among them always `step`, `tokens`, `seconds` and `flops`. `status` is that of `result.json`, or
    `running` or `unfinished`. `parent` says which run it was forked from or repeats, in words.
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
        """The finite points of a metric over `step`, `tokens`, `flops` or `seconds`; empty if it was never logged."""
        if metric not in self.metrics or x not in self.metrics:
            return np.empty(0), np.empty(0)
        xs, ys = self.metrics[x], self.metrics[metric]
        finite = np.isfinite(xs) & np.isfinite(ys)
        return xs[finite], ys[finite]

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def parameters(self) -> float:
        """Of the model; NaN for a run that records none."""
        return number(_part(self.environment, "model").get("parameters"))

    @property
    def flops_per_token(self) -> float:
        return number(_part(self.environment, "model").get("flops_per_token"))

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        logged = int(self.metrics["step"][-1]) if len(self.metrics["step"]) else 0
        told = self.result.get("steps")  # more than were logged, where the last of them diverged
        return max(logged, told) if type(told) is int else logged


def number(value: Any) -> float:
    """NaN for what is none, as in a damaged or a stranger's file."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def load_runs(paths: Sequence[str | Path], warn: Callable[[str], None] | None = None) -> list[Run]:
    """The runs in run directories, in any folder above them, and of globs; in the order given, and none twice.

    Runs may still be going on. What is damaged is left out, and `warn` (default: stderr) is told in a line.

    Raises:
        ValueError: a path that has no runs.
    """
    warn = warn or _to_stderr
    found: dict[str, Path] = {}
    for path in paths:
        below = [run for start in _expanded(path) for run in _run_directories(start)]
        if not below:
            raise ValueError(f"{path}: " + ("no runs there" if os.path.exists(path) else "no such file or directory"))
        for run in below:
            found.setdefault(os.path.realpath(run), run)
    runs = []
    for run in found.values():
        try:
            runs.append(_load(run, warn))
        except (OSError, ValueError) as error:
            warn(f"left out: {printable(str(error))}")
    return _with_parents(labelled(runs))


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The config keys in which the runs differ, in the config's order, `seed` last; a missing one is null.

    Without what changes no number, and without a key that only repeats another of the same last name: of the
    scheduler's `lr` and `max_steps`, those of optimizer and trainer stay, which people set. The place of the
    data counts only where the data are not the same.
    """
    same_data = len({_data(run) for run in runs}) == 1 and _data(runs[0]) != "null" if runs else True
    keys = dict.fromkeys(key for run in runs for key in run.config)
    columns: dict[tuple[str, tuple[Any, ...]], str] = {}
    for key in keys:
        if ASIDE.fullmatch(key) or key in ORIGIN or (same_data and DATA_PLACE.fullmatch(key)):
            continue
        values = tuple(comparable(run.config.get(key)) for run in runs)
        if len(set(values)) > 1:
            alike = key.rpartition(".")[2], values
            if columns.setdefault(alike, key).startswith(FOLLOWS):
                columns[alike] = key
    differing = list(columns.values())
    return [key for key in differing if key != "seed"] + [key for key in differing if key == "seed"]


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels that tell them apart: what differs, as far as it fits, and the folder if need be."""
    keys = differing_keys(runs)
    labels = labels_of([run.config for run in runs], [key for key in keys if key != "seed"])
    if "seed" in keys:
        labels = [f"{label} seed={shown(run.seed)}".strip() for label, run in zip(labels, runs, strict=True)]
    times = Counter(labels)
    folders = folder_names([run.path for run in runs])
    named = []
    for run, label, folder in zip(runs, labels, folders, strict=True):
        unique = label if label and times[label] == 1 else f"{label} ({folder})" if label else folder
        named.append(replace(run, label=printable(unique)))
    return named


def _expanded(path: str | Path) -> list[Path]:
    if not os.path.exists(path) and glob.has_magic(str(path)):
        return [Path(name) for name in sorted(glob.glob(str(path), recursive=True), key=_natural)]
    return [Path(path)]


def _run_directories(folder: Path) -> list[Path]:
    """Those at or below a folder, without following links and without looking into runs."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    names = {entry.name for entry in entries}
    if "config.yaml" in names and names & {"metrics.jsonl", "result.json", "environment.json"}:
        return [folder]
    below = sorted((e.name for e in entries if e.is_dir(follow_symlinks=False)), key=_natural)
    return [run for name in below if name not in NOT_ENTERED for run in _run_directories(folder / name)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _load(path: Path, warn: Callable[[str], None]) -> Run:
    """One run; its label and parent need the others."""
    config = read_config(path / "config.yaml")
    result, environment = read_object(path / "result.json"), read_object(path / "environment.json")
    metrics = read_columns(path / "metrics.jsonl", warn)
    missing = np.full(len(metrics["step"]), np.nan)
    metrics = dict.fromkeys(AXES, missing) | metrics
    metrics["flops"] = metrics["tokens"] * number(_part(environment, "model").get("flops_per_token"))
    return Run(
        path=path,
        label=path.name,
        config=config,
        status=printable(str(result["status"]))[:MAX_STATUS_CHARS] if "status" in result else _without_result(path),
        result=result,
        environment=environment,
        metrics=metrics,
        sample=read_text(path / "sample.txt"),
        parent=None,
    )


def _without_result(path: Path) -> str:
    """Return `running` while a process holds the run's lock, else `unfinished`."""
    try:
        return "running" if run_lock(path).is_held() else "unfinished"
    except OSError:  # a file that may not be read
        return "unfinished"


def _with_parents(runs: Sequence[Run]) -> list[Run]:
    by_id = {str(run.environment["run_id"]): run for run in runs if "run_id" in run.environment}
    by_path = {os.path.realpath(run.path): run for run in runs}

    def called(origin: Mapping[str, Any]) -> str:
        parent = by_id.get(str(origin.get("run_id"))) or by_path.get(os.path.realpath(str(origin.get("run"))))
        return parent.label if parent else printable(str(origin.get("run") or origin.get("run_id")))

    return [replace(run, parent=_parent(run, called)) for run in runs]


def _parent(run: Run, called: Callable[[Mapping[str, Any]], str]) -> str | None:
    if origin := forked_from(run):
        step = origin.get("step")
        return f"from {called(origin)}" + (f" at step {step}" if isinstance(step, int) else "")
    if again := _part(run.environment, "rerun_of"):
        return f"repeats {called(again)}"
    return None


def forked_from(run: Run) -> Mapping[str, Any]:
    """`run`, `run_id` and `step` of the checkpoint that the run started from; empty for one that started afresh."""
    if recorded := _part(run.environment, "forked_from"):
        return recorded
    fork = run.config.get("fork")
    return {"run": fork, "step": run.config.get("step")} if isinstance(fork, str) else {}


def _part(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = content.get(key)
    return part if isinstance(part, dict) else {}


def _data(run: Run) -> str:
    """The fingerprints of its data."""
    return as_json(run.environment.get("data"))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201

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

from lmtrain.checkpoint.steps import CHECKPOINTS
from lmtrain.compare.labels import canonical_json, folder_names, hashable, labels_of, setting_text
from lmtrain.compare.run_files import read_config, read_record, read_sample, read_series
from lmtrain.files.links import refuse_links
from lmtrain.files.numbers import as_float
from lmtrain.run.directory import RUN_FILES, status_without_result
from lmtrain.run.identity import NEUTRAL_KEYS
from lmtrain.terminal.as_text import printable, visible

AXES = ("step", "tokens", "flops", "seconds")
# Settings that change no number of a run: beside those that its hash leaves out, how much is logged and kept.
NEUTRAL_SETTING = re.compile(
    "|".join(
        [
            *(rf"{key}(\..*)?" for key in NEUTRAL_KEYS),
            "sample_tokens",
            r"trainer\.(log_interval|checkpoint_interval|keep_checkpoints|keep_every)",
        ]
    )
)
ORIGIN_KEYS = ("fork", "step")  # of a run that started from another's checkpoint; told as its parent
DATA_PATH_KEYS = re.compile(r"data\.paths?(\..*)?|prepare(\..*)?")  # of no consequence where the fingerprints are equal
FOLLOWING_GROUP = "scheduler."  # whose values are taken from other parts, unless they are set
MAX_STATUS_CHARS = 20
SKIPPED_FOLDERS = {CHECKPOINTS, ".hydra", "wandb", "bad-batches", ".git", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Run:
    """One run, as its folder has it.

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
        """Return the finite points of a metric over one of `AXES`; empty if it was never logged."""
        if metric not in self.metrics or x not in self.metrics:
            return np.empty(0), np.empty(0)
        xs, ys = self.metrics[x], self.metrics[metric]
        finite = np.isfinite(xs) & np.isfinite(ys)
        return xs[finite], ys[finite]

    def last(self, metric: str) -> float:
        """Return the last line's value; NaN for a run without lines."""
        column = self.metrics[metric]
        return float(column[-1]) if len(column) else float("nan")

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def parameters(self) -> float:
        """Return the number of the model's parameters; NaN for a run that records none."""
        return as_float(_mapping_at(self.environment, "model").get("parameters"))

    @property
    def flops_per_token(self) -> float:
        return as_float(_mapping_at(self.environment, "model").get("flops_per_token"))

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps done."""
        logged = int(self.metrics["step"][-1]) if len(self.metrics["step"]) else 0
        told = self.result.get("steps")  # more than were logged, where the last of them diverged
        return max(logged, told) if type(told) is int else logged


def load_runs(paths: Sequence[str | Path], warn: Callable[[str], None] | None = None) -> list[Run]:
    """Return the runs in run directories, in any folder above them, and of globs: in the order given, each once.

    Runs may still be going on. A run with a damaged file is left out, with a line to `warn` (default: stderr); damaged
    lines of metrics are left out in the same way.

    Raises:
        ValueError: a path that has no runs.
    """
    warn = warn or _print_to_stderr
    found: dict[str, Path] = {}
    for path in paths:
        below = [run for start in _expand_glob(path) for run in _run_directories(start)]
        if not below:
            raise ValueError(f"{path}: " + ("no runs there" if os.path.exists(path) else "no such file or directory"))
        for run in below:
            found.setdefault(os.path.realpath(run), run)
    runs = []
    for run in found.values():
        try:
            runs.append(_load_run(run, warn))
        except (OSError, ValueError) as error:
            warn(f"left out: {error}")
    return _with_parents(with_labels(runs))


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the config keys in which the runs differ, in the config's order, `seed` last; a missing one is null.

    Keys that change no number are left out, and those that only repeat another key of the same last name: the
    scheduler's `lr` and `max_steps` repeat those of optimizer and trainer, which people set. The data's place counts
    only where the data differ.
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


def with_labels(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with labels that tell them apart: what differs, as far as it fits, and the folder if needed."""
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
    """Return the run directories at or below a folder, without following links or looking into runs."""
    found, folders = [], [os.fspath(folder)]
    while folders:  # not recursive: folders may be nested more deeply than Python's calls
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
    """Return a sort key that puts 2 before 10."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _load_run(path: Path, warn: Callable[[str], None]) -> Run:
    """Return one run; its label and parent need the others."""
    refuse_links(path, RUN_FILES)  # a text of this machine should not end up in a report
    config = read_config(path / "config.yaml")
    result, environment = read_record(path / "result.json"), read_record(path / "environment.json")
    metrics = read_series(path / "metrics.jsonl", warn)
    status = result.get("status") or status_without_result(path)
    missing = np.full(len(metrics["step"]), np.nan)
    metrics = dict.fromkeys(AXES, missing) | metrics
    metrics["flops"] = metrics["tokens"] * as_float(_mapping_at(environment, "model").get("flops_per_token"))
    return Run(
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


def _with_parents(runs: Sequence[Run]) -> list[Run]:
    by_id = {run.environment["run_id"]: run for run in runs if run.environment.get("run_id")}
    by_path = {os.path.realpath(run.path): run for run in runs}

    def name_of(origin: Mapping[str, Any]) -> str:
        parent = by_id.get(origin.get("run_id")) or by_path.get(_real_path(str(origin.get("run"))))
        return parent.label if parent else printable(str(origin.get("run") or origin.get("run_id")))

    return [replace(run, parent=_parent_in_words(run, name_of)) for run in runs]


def _real_path(text: str) -> str:
    try:
        return os.path.realpath(text)
    except ValueError:  # it has a NUL, or what no file system can encode
        return text


def _parent_in_words(run: Run, name_of: Callable[[Mapping[str, Any]], str]) -> str | None:
    if origin := forked_from(run):
        step = origin.get("step")
        return f"from {name_of(origin)}" + (f" at step {step}" if isinstance(step, int) else "")
    if again := _mapping_at(run.environment, "rerun_of"):
        return f"repeats {name_of(again)}"
    return None


def forked_from(run: Run) -> Mapping[str, Any]:
    """Return `run`, `run_id` and `step` of the checkpoint that the run started from; empty if it started afresh."""
    if recorded := _mapping_at(run.environment, "forked_from"):
        return recorded
    fork = run.config.get("fork")
    return {"run": fork, "step": run.config.get("step")} if isinstance(fork, str) else {}


def _mapping_at(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = content.get(key)
    return part if isinstance(part, dict) else {}


def _data_fingerprints(run: Run) -> str:
    """Return the fingerprints of the run's data as text."""
    return canonical_json(run.environment.get("data"))


def _print_to_stderr(line: str) -> None:
    print(visible(" ".join(line.splitlines())), file=sys.stderr)  # noqa: T201

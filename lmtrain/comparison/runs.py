"""Finds run directories and loads from each the config, result, environment and metrics."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.comparison.compared_run import AXES, Branch, ComparedRun, forked_from, mapping_at
from lmtrain.comparison.labels import folder_names, hashable, labels_of, setting_text
from lmtrain.comparison.lineage.families import differs_in_schedule_alone
from lmtrain.comparison.lineage.forks import END_OF_RUN, real_path, with_settings
from lmtrain.comparison.run_files import read_config, read_record, read_sample, read_series
from lmtrain.comparison.settings import changes_time, differing
from lmtrain.config.recorded.run_names import find_folder, natural_order, run_directories
from lmtrain.errors import COMPLETED
from lmtrain.files.links import refuse_links
from lmtrain.files.numbers import as_float
from lmtrain.run.directory import RUN_FILES, status_without_result
from lmtrain.terminal.as_text import printable, visible

__all__ = ["AXES", "ComparedRun", "differing_keys", "forked_from", "load_runs", "origin_texts", "with_labels"]

FOLLOWING_GROUP = "scheduler."  # its values are taken from other groups, unless they are set
RUNNING = "running"
MAX_STATUS_CHARS = 20


def load_runs(paths: Sequence[str | Path], warn: Callable[[str], None] | None = None) -> list[ComparedRun]:
    """Load all runs at or below the given paths, each once, in the given order.

    A path may be a run directory, any folder above run directories, a glob, or a name (see `find_run`). Runs may still
    be running. Those in a folder of `python -m lmtrain confirm` are loaded only if a path leads into that folder. A run
    with a damaged file, and damaged lines of metrics, are left out and reported through `warn` (default: printed to
    stderr).

    Raises:
        ValueError: a path does not exist or has no runs.
    """
    warn = warn or _print_to_stderr
    found: dict[str, Path] = {}
    for path in paths:
        below = [run for start in _expand_glob(path) for run in run_directories(start)]
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
    folders = [Path.cwd(), *(path for path in map(Path, paths) if path.is_dir())]
    return _with_parents(with_labels(with_settings(runs, folders)))


def differing_keys(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the keys in which the effective settings of runs differ, in the order of the config, with `seed` last.

    Keys are left out that repeat another one with the same last name (the scheduler's `lr` and `max_steps` repeat those
    of the optimizer and the trainer, which users set).
    """
    return distinct_keys([run.setting for run in runs])


def distinct_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of `differing_keys` for effective settings."""
    columns: dict[tuple[str, tuple[Any, ...]], str] = {}
    for key in differing(settings):
        alike = key.rpartition(".")[2], tuple(hashable(setting.get(key)) for setting in settings)
        if columns.setdefault(alike, key).startswith(FOLLOWING_GROUP):
            columns[alike] = key
    found = list(columns.values())
    return [key for key in found if key != "seed"] + [key for key in found if key == "seed"]


def with_labels(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with unique labels: the settings that differ, as far as they fit.

    Completed and running runs are named by what differs among them, because others often differ in more. Runs that
    would still have equal names also get their origin, then settings that change only their speed, then their folder.
    """
    labels = _labels([run.setting for run in runs])
    numbers = [number for number, run in enumerate(runs) if run.status in (COMPLETED.status, RUNNING)]
    for number, label in zip(numbers, _labels([runs[number].setting for number in numbers]), strict=True):
        labels[number] = label or labels[number]
    _add_to_equal(labels, origin_texts(runs, with_seed=True))
    _add_to_equal(labels, _speed_texts(runs, labels))
    _add_to_equal(labels, [f"({folder})" for folder in folder_names([run.path for run in runs])])
    folders = folder_names([run.path for run in runs])
    return [
        replace(run, label=printable(folder if label == f"({folder})" else label or folder))
        for run, label, folder in zip(runs, labels, folders, strict=True)
    ]


def origin_texts(runs: Sequence[ComparedRun], *, with_seed: bool = False) -> list[str]:
    """Return for each fork the short name of its origin, such as `from lr=0.003 at step 200`; empty for other runs.

    It names the parent's settings that a fork changed. The forks of replicates have the same origin, unless `with_seed`
    names the seed of the parent. A branch that changed only the schedule of its trunk is named by its step alone.
    """
    of_run = [None if run.branch is None else (run.branch.key, _parent_seed(run.branch, with_seed)) for run in runs]
    branches = {key: run.branch for key, run in zip(of_run, runs, strict=True) if key is not None and run.branch}
    known = [branch.parent_setting for branch in branches.values() if branch.parent_setting]
    changed = {
        key
        for run in runs
        if run.branch is not None and run.branch.parent_setting
        for key in differing([run.setting, run.branch.parent_setting])
    }
    keys = distinct_keys([*known, *(run.setting for run in runs if run.branch is not None)])
    names = iter(labels_of(known, [key for key in keys if key in changed and key not in END_OF_RUN]))
    texts = {
        (key, seed): _origin_text(branch, f"{next(names) if branch.parent_setting else branch.parent_name} {seed}")
        for (key, seed), branch in branches.items()
    }
    plain = {key for key, run in zip(of_run, runs, strict=True) if key is not None and differs_in_schedule_alone(run)}
    if not with_seed and plain == branches.keys():
        texts = {place: _origin_text(branch, "the trunk") for place, branch in branches.items()}
        return ["" if place is None else texts[place] for place in of_run]
    times = Counter(texts.values())
    for place, branch in branches.items():
        if times[texts[place]] > 1:  # their parents are forks themselves, of different runs
            texts[place] += f" ({os.path.basename(branch.parent_name)})"
    return ["" if place is None else texts[place] for place in of_run]


def _parent_seed(branch: Branch, with_seed: bool) -> str:
    seed = branch.parent_setting.get("seed")
    return f"seed={setting_text(seed)}" if with_seed and seed is not None else ""


def _origin_text(branch: Branch, name: str) -> str:
    at = "" if branch.step is None else f"at step {branch.step}"
    return f"from {name.strip()} {at}".strip() if name.strip() else f"forked {at}".strip()


def _labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = distinct_keys(settings)
    labels = labels_of(settings, [key for key in keys if key != "seed"])
    if "seed" not in keys:
        return labels
    seeds = [setting_text(setting.get("seed")) for setting in settings]
    return [f"{label} seed={seed}".strip() for label, seed in zip(labels, seeds, strict=True)]


def _speed_texts(runs: Sequence[ComparedRun], labels: Sequence[str]) -> list[str]:
    """Return, for runs with equal labels, the settings that change only how fast a run is."""
    texts = [""] * len(runs)
    alike: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        alike.setdefault(label, []).append(number)
    for numbers in alike.values():
        configs = [runs[number].config for number in numbers]
        if len(configs) > 1 and (keys := [key for key in differing(configs) if changes_time(key)]):
            for number, text in zip(numbers, labels_of(configs, keys), strict=True):
                texts[number] = text
    return texts


def _add_to_equal(labels: list[str], texts: Sequence[str]) -> None:
    """Add a text to each label that is not unique."""
    times = Counter(labels)
    for number, text in enumerate(texts):
        if times[labels[number]] > 1 or not labels[number]:
            labels[number] = f"{labels[number]} {text}".strip()


def _expand_glob(path: str | Path) -> list[Path]:
    if not os.path.exists(path) and glob.has_magic(str(path)):
        return [Path(name) for name in sorted(glob.glob(str(path), recursive=True), key=natural_order)]
    return [find_folder(path)]


def _load_run(path: Path, warn: Callable[[str], None]) -> ComparedRun:
    """Load one run; its label and parent are set later, because they depend on the other runs."""
    refuse_links(path, RUN_FILES)  # a link could bring a private file of this machine into a report
    config = read_config(path / "config.yaml")
    result, environment = read_record(path / "result.json"), read_record(path / "environment.json")
    metrics = read_series(path / "metrics.jsonl", warn)
    status = result.get("status") or status_without_result(path)
    missing = np.full(len(metrics["step"]), np.nan)
    metrics = dict.fromkeys(AXES, missing) | metrics
    metrics["flops"] = metrics["tokens"] * as_float(mapping_at(environment, "model").get("flops_per_token"))
    return ComparedRun(
        path=path,
        label=path.name,
        config=config,
        status=printable(status)[:MAX_STATUS_CHARS],
        result=result,
        environment=environment,
        metrics=metrics,
        sample=read_sample(path),
        parent=None,
    )


def _with_parents(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    by_id = {run.environment["run_id"]: run for run in runs if run.environment.get("run_id")}
    by_path = {os.path.realpath(run.path): run for run in runs}

    def name_of(origin: Mapping[str, Any]) -> str:
        parent = by_id.get(origin.get("run_id")) or by_path.get(real_path(str(origin.get("run"))))
        return parent.label if parent else printable(str(origin.get("run") or origin.get("run_id")))

    return [replace(run, parent=_parent_in_words(run, name_of)) for run in runs]


def _parent_in_words(run: ComparedRun, name_of: Callable[[Mapping[str, Any]], str]) -> str | None:
    if origin := forked_from(run):
        step = origin.get("step")
        return f"from {name_of(origin)}" + (f" at step {step}" if isinstance(step, int) else "")
    if again := mapping_at(run.environment, "rerun_of"):
        return f"repeats {name_of(again)}"
    return None


def _print_to_stderr(line: str) -> None:
    print(visible(" ".join(line.splitlines())), file=sys.stderr)  # noqa: T201

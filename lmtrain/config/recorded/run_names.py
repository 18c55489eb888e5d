"""Finds runs by the names that people give them: a directory, a folder of runs, a part of a name, or `latest`.

This module works without torch.
"""

import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from lmtrain.checkpoint.steps import CHECKPOINTS, checkpoint_steps
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.units import counted

LATEST = "latest"
OUTPUTS = Path("outputs")  # of `hydra.run.dir` in conf/config.yaml
SWEEP_CONFIG = "multirun.yaml"  # Hydra's name for the config in a sweep's directory
CONFIRM_FILE = "confirm.json"  # which settings a folder of `confirm` runs again, and with which seeds
ANY_RUN_HAS = frozenset({"metrics.jsonl", "result.json", "environment.json"})  # at least one of them
SKIPPED_FOLDERS = {CHECKPOINTS, ".hydra", "wandb", "bad-batches", ".git", "__pycache__", "node_modules"}
SHOWN_CANDIDATES = 6


def find_run(name: str | Path, option: str = "") -> Path:
    """Return the directory of the run that a name means.

    In this order, a name is: a run directory; a folder that has runs below it, which means the newest one; `latest`,
    the newest run below `outputs/`, or `FOLDER/latest`; or a name that begins, ends or is that of one run or one folder
    of runs below `outputs/`, such as `bard` or the id at the end of a run directory's name. The newest run is none that
    failed before its first checkpoint, if there are others.

    A name that means no run is returned as a path, so that the caller says what it needs there.

    Args:
        name: What the user gave.
        option: What it was given with, such as `resume=`, for the message.

    Raises:
        ConfigError: There is no latest run, or the name means several runs; the message lists them. The jobs of a sweep
            are several runs, because the newest of them is one by chance.
    """
    path = find_folder(name, option)
    if is_run(path) or not path.is_dir():
        return path
    runs = _useful(_newest_first(run_directories(path)))
    if len(runs) > 1 and (path / SWEEP_CONFIG).is_file():
        raise ConfigError(f"{option}{name}: is a sweep of {counted(len(runs), 'run')}; give one of {_listed(runs)}")
    return runs[0] if runs else path


def find_folder(name: str | Path, option: str = "") -> Path:
    """Return the run directory, or the folder with runs below it, that a name means; see `find_run`."""
    if name == "":
        raise ConfigError(f"{option or 'run'}: the name is empty; give a run directory or a name")
    path = Path(name)
    try:
        exists = path.exists()
    except OSError as error:  # the name is too long for a file, for example
        raise ConfigError(f"{option}{name}: {error.strerror}") from error
    is_name = len(path.parts) == 1
    if exists and not (is_name and _is_folder_without_runs(path)):  # such as an exported model
        return path
    if path.name == LATEST:
        base = OUTPUTS if path == Path(LATEST) else path.parent
        runs = _useful(_newest_first(run_directories(base)))
        if not runs:
            raise ConfigError(f"{option}{name}: there is no run below {base}/ here; give a run directory")
        return runs[0]
    if not is_name:
        return path
    found = _named(path.name)
    if len(found) > 1:
        raise ConfigError(f"{option}{name}: could be {_listed(found)}; give one of them")
    return found[0] if found else path


def why_no_run(path: Path) -> str:
    """Return why a path that `find_run` returned is not a run directory, and what would be one."""
    if (path / "config.json").is_file():
        return f"{path}: a model of transformers; make a run of it with python -m lmtrain import {path}"
    if path.exists():
        return f"{path}: not a run directory (no config.yaml), and no run is below it"
    runs = _newest_first(run_directories(OUTPUTS))
    there = f"below {OUTPUTS}/ are {_listed(runs)}" if runs else f"there is no run below {OUTPUTS}/ here"
    return f"{path}: no such run; {there}"


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory."""
    return (folder / "config.yaml").is_file() and any((folder / name).is_file() for name in ANY_RUN_HAS)


def run_directories(folder: Path) -> list[Path]:
    """Return the run directories at or below a folder; links and the insides of runs are not searched.

    Those in a folder of `python -m lmtrain confirm` are found only if `folder` is that folder or inside it: they were
    made to confirm the other runs, which were selected, and mixed with them they would confirm nothing.
    """
    return list(_runs_below(folder))


def _runs_below(folder: Path) -> Iterator[Path]:
    folders = [os.fspath(folder)]
    while folders:  # not recursive, because folders may be nested more deeply than Python's stack allows
        path = folders.pop()
        try:
            entries = list(os.scandir(path))
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if CONFIRM_FILE in names and path != os.fspath(folder):
            continue
        if "config.yaml" in names and names & ANY_RUN_HAS:
            yield Path(path)
        else:
            below = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)} - SKIPPED_FOLDERS
            folders += [os.path.join(path, name) for name in sorted(below, key=natural_order, reverse=True)]


def _is_folder_without_runs(path: Path) -> bool:
    return path.is_dir() and next(_runs_below(path), None) is None


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which `2` comes before `10`."""
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _named(name: str) -> list[Path]:
    """Return the runs and folders of runs below `outputs/` that have a name; else those whose name it begins or ends.

    A folder is named before the runs in it.
    """
    runs = run_directories(OUTPUTS)
    folders = {above for run in runs for above in run.parents if above.is_relative_to(OUTPUTS) and above != OUTPUTS}
    places = [*sorted(folders), *_newest_first(runs)]
    exact = [place for place in places if place.name == name]
    return exact or [place for place in places if place.name.startswith(name) or place.name.endswith(f"-{name}")]


def _newest_first(runs: list[Path]) -> list[Path]:
    """Return runs in the order in which they were started, the newest one first."""
    return sorted(runs, key=lambda run: (_started(run), natural_order(run.name)), reverse=True)


def _useful(runs: list[Path]) -> list[Path]:
    """Return the runs except those that failed before their first checkpoint; these, too, if there are no others."""
    return [run for run in runs if not _failed_at_once(run)] or runs


def _failed_at_once(run: Path) -> bool:
    return read_json(run / "result.json").get("status") == "failed" and not checkpoint_steps(run)


def _started(run: Path) -> float:
    """Return when a run was started, in seconds since 1970."""
    try:
        return datetime.fromisoformat(str(read_json(run / "environment.json").get("started"))).timestamp()
    except ValueError:
        return (run / "config.yaml").stat().st_mtime


def _listed(runs: list[Path]) -> str:
    return first_few(map(str, runs), SHOWN_CANDIDATES)

"""The names of checkpoint folders, such as `step-00000005`. This module works without torch."""

import re
from pathlib import Path

from lmtrain.files.limited import read_json

CHECKPOINTS = "checkpoints"  # the folder of checkpoints in a run directory
PARTIAL, DELETED = ".tmp-", ".tmp-del-"  # prefixes of folders that are being written or removed


def step_folder(step: int) -> str:
    """Return the name of the folder for the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint folder with this name, or None if it is not a checkpoint.

    Only names that a save would give count: `step-5` and `step-00000005.old` are not checkpoints.
    """
    found = re.fullmatch(r"step-([0-9]{8,})", name)
    return int(found[1]) if found and name == step_folder(int(found[1])) else None


def steps_in(checkpoints: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, in ascending order. Only names are checked."""
    if not checkpoints.is_dir():
        return []
    return sorted(step for entry in checkpoints.iterdir() if (step := step_of(entry.name)) is not None)


def is_leftover(path: Path) -> bool:
    """Return whether an interrupted save or removal left this path. Other names with the same prefix do not count."""
    if path.is_symlink():
        return path.name in (f"{PARTIAL}latest", f"{PARTIAL}best")
    return any(
        path.name.startswith(prefix) and step_of(path.name.removeprefix(prefix)) is not None
        for prefix in (PARTIAL, DELETED)
    )


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Return the steps of a run's checkpoints, in ascending order."""
    return steps_in(run_dir / CHECKPOINTS)


def chosen_step(run_dir: Path, which: str) -> int:
    """Return the step of a run's checkpoint that `which` means: `best`, `latest` or a step number.

    The links `best` and `latest` are not used; a kill may leave them stale. If the best checkpoint is not known, it is
    the newest one. The run must have a checkpoint.

    Raises:
        ValueError: `which` is none of them. Whether there is a checkpoint of a step number is not checked.
    """
    steps = checkpoint_steps(run_dir)
    if which == "latest":
        return steps[-1]
    if which == "best":
        # result.json is written last, so it includes an evaluation after the last checkpoint.
        result = read_json(run_dir / "result.json")
        state = read_json(run_dir / CHECKPOINTS / step_folder(steps[-1]) / "state.json").get("train", {})
        best = result.get("best_step") or state.get("best_step")
        return int(best) if best in steps else steps[-1]
    if not which.isdecimal():
        raise ValueError(f"no checkpoint {which!r}; give best, latest or a step number")
    return int(which)


def step_to_fork(run_dir: Path, step: int | None) -> int:
    """Return the step of the checkpoint that a fork of a run starts from; None means the newest.

    Raises:
        ValueError: the run has no such checkpoint. Only names are checked.
    """
    steps = checkpoint_steps(run_dir)
    if not steps:
        raise ValueError(f"fork={run_dir}: no run with a checkpoint there")
    if step is not None and step not in steps:
        raise ValueError(f"step={step}: {run_dir} has checkpoints of these steps: {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step

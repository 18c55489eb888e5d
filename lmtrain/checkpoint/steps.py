"""The names of checkpoint folders, `step-00000005`: the one rule for what is a checkpoint. Without torch."""

import re
from pathlib import Path

CHECKPOINTS = "checkpoints"  # the folder of a run directory that they lie in


PARTIAL, DELETED = ".tmp-", ".tmp-del-"  # what the names of folders begin with that are written, and removed


def step_folder(step: int) -> str:
    """Return the name of the folder that the checkpoint of a step lies in."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step that a folder's name stands for.

    A name counts only if a save would give it: `step-5` and `step-00000005.old` are no checkpoints, and give None.
    """
    found = re.fullmatch(r"step-([0-9]{8,})", name)
    return int(found[1]) if found and name == step_folder(int(found[1])) else None


def steps_in(checkpoints: Path) -> list[int]:
    """Return the steps that a folder has checkpoints of, in ascending order, by the names alone."""
    if not checkpoints.is_dir():
        return []
    return sorted(step for entry in checkpoints.iterdir() if (step := step_of(entry.name)) is not None)


def is_leftover(path: Path) -> bool:
    """Return whether a killed save or prune has left this; no other name that begins like one is removed."""
    if path.is_symlink():
        return path.name in (f"{PARTIAL}latest", f"{PARTIAL}best")
    return any(
        path.name.startswith(prefix) and step_of(path.name.removeprefix(prefix)) is not None
        for prefix in (PARTIAL, DELETED)
    )


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Return the steps that a run has checkpoints of, in ascending order."""
    return steps_in(run_dir / CHECKPOINTS)


def step_to_fork(run_dir: Path, step: int | None) -> int:
    """Return the step of the checkpoint that a fork of a run starts from; None asks for the newest.

    Raises:
        ValueError: the run has no such checkpoint, by the names alone.
    """
    steps = checkpoint_steps(run_dir)
    if not steps:
        raise ValueError(f"fork={run_dir}: no run with a checkpoint there")
    if step is not None and step not in steps:
        raise ValueError(f"step={step}: {run_dir} has checkpoints of the steps {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step

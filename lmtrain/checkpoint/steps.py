"""The names of checkpoint folders; without torch."""

from pathlib import Path


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps that a run has checkpoints of, in ascending order, by their folders' names alone."""
    names = (path.name.removeprefix("step-") for path in run_dir.glob("checkpoints/step-*"))
    return sorted(int(name) for name in names if name.isdecimal())

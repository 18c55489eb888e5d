"""Finds the configs that are shipped with lmtrain."""

from pathlib import Path


def shipped(folder: str) -> Path:
    """Return the shipped `conf` or `experiments`: inside the package if installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder

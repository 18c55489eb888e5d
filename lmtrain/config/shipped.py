"""Where the configs that lmtrain ships are."""

from pathlib import Path


def shipped(folder: str) -> Path:
    """The shipped `conf` or `experiments`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder

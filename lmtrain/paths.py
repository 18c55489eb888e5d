"""Where the shipped configs are, and the paths that a person reads."""

from pathlib import Path

STARTED_IN = Path.cwd()  # the shell's folder; a run that is resumed works in the one it was started in


def shipped(folder: str) -> Path:
    """The shipped `conf` or `experiments`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def short(path: Path) -> str:
    """As the person in front of the shell would write it: relative where it is below their folder."""
    return str(path.relative_to(STARTED_IN) if path.is_relative_to(STARTED_IN) else path)

"""Paths as a person reads them."""

from pathlib import Path

STARTED_IN = Path.cwd()  # the shell's folder; a run that is resumed works in the one it was started in


def short(path: Path) -> str:
    """As the person in front of the shell would write it: relative where it is below their folder."""
    return str(path.relative_to(STARTED_IN) if path.is_relative_to(STARTED_IN) else path)

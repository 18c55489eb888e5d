"""Paths as a person reads them."""

from pathlib import Path

# The shell's folder, read at import: a resume changes to the folder that its run was started in.
STARTED_IN = Path.cwd()


def short_path(path: Path) -> str:
    """Return a path as the person at the shell would write it: relative if it is below their folder."""
    return str(path.relative_to(STARTED_IN) if path.is_relative_to(STARTED_IN) else path)

"""Paths as a person reads them."""

import os
from functools import cache
from pathlib import Path


@cache
def shell_folder() -> Path:
    """Return the folder that the command was given in, also after `change_folder`."""
    return Path.cwd()


def change_folder(folder: Path) -> None:
    """Make another folder the current one. Only this function does so, for it notes `shell_folder` first."""
    shell_folder()
    os.chdir(folder)


def short_path(path: Path) -> str:
    """Return a path as the person at the shell would write it: relative if it is below their folder."""
    return str(path.relative_to(shell_folder()) if path.is_relative_to(shell_folder()) else path)

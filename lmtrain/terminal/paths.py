"""Paths as a person reads them."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def shell_folder() -> Path:
    """Return the folder that the command was given in, also after `change_folder`."""
    return Path.cwd()


def change_folder(folder: Path) -> None:
    """Make another folder the current one. Only this function does so, for it notes `shell_folder` first."""
    shell_folder()
    os.chdir(folder)


def with_home(text: str) -> str:
    """Return a text with the user's home in place of `~` if it begins with `~/`, as a shell gives unquoted words."""
    return os.path.expanduser(text) if text.startswith("~/") else text


def with_homes(node: Any) -> Any:
    """Return a container with the user's home in every text that begins with `~/`: it is a path, whatever its key."""
    if isinstance(node, Mapping):
        return {key: with_homes(value) for key, value in node.items()}
    if isinstance(node, list):
        return [with_homes(value) for value in node]
    return with_home(node) if isinstance(node, str) else node


def argument_with_home(argument: str) -> str:
    """Return a command's argument with the home in it: of `~/x`, `key=~/x`, `--option=~/x` and `key=[~/x,~/y]`.

    Shells leave all but the first as they are, and any word in quotes; Hydra's grammar has no unquoted `~`.
    """
    home = os.path.expanduser("~/")
    return re.sub(r"""(\A|[=\[,:] *)(["']?)~/""", lambda found: f"{found[1]}{found[2]}{home}", argument)


def short_path(path: Path) -> str:
    """Return a path as the person at the shell would write it: relative if it is below their folder."""
    return str(path.relative_to(shell_folder()) if path.is_relative_to(shell_folder()) else path)

"""Expands and shortens paths for the person at the shell."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def shell_folder() -> Path:
    """Return the folder in which the command was started, also after `change_folder`."""
    return Path.cwd()


def change_folder(folder: Path) -> None:
    """Change the current folder. Always use this function for it, because it records `shell_folder` first."""
    shell_folder()
    os.chdir(folder)


def with_home(text: str) -> str:
    """Return a text with the user's home in place of a leading `~/`, as a shell expands an unquoted word."""
    return os.path.expanduser(text) if text.startswith("~/") else text


def with_homes(node: Any) -> Any:
    """Return a container in which every text that begins with `~/` is expanded: it is a path under any key."""
    if isinstance(node, Mapping):
        return {key: with_homes(value) for key, value in node.items()}
    if isinstance(node, list):
        return [with_homes(value) for value in node]
    return with_home(node) if isinstance(node, str) else node


def argument_with_home(argument: str) -> str:
    """Return a command's argument with `~/` expanded in `~/x`, `key=~/x`, `--option=~/x` and `key=[~/x,~/y]`.

    A shell expands only the first form, and no word in quotes. Hydra's grammar has no unquoted `~`.
    """
    home = os.path.expanduser("~/")
    return re.sub(r"""(\A|[=\[,:] *)(["']?)~/""", lambda found: f"{found[1]}{found[2]}{home}", argument)


def short_path(path: Path) -> str:
    """Return a path as the user would type it: relative if it is below the folder of their shell."""
    return str(path.relative_to(shell_folder()) if path.is_relative_to(shell_folder()) else path)

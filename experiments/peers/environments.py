"""One virtual environment per tool, with pinned versions, outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

from settings import HERE, Entry

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lmtrain-peers"


class MissingError(RuntimeError):
    """A contender's tool is not there and cannot be installed."""


def python_for(entry: Entry, folder: Path | None) -> str:
    """Return the Python that runs an entry; install its environment first if it is not there yet.

    Args:
        entry: The contender.
        folder: Where the environments are; None means that all contenders run in the environment of the contest.

    Raises:
        MissingError: the tool is not installed, and cannot be.
    """
    shared = entry.environment is None or folder is None  # with the contest
    python = sys.executable if shared else _install(entry.environment, folder)
    found = subprocess.run(
        [python, "-c", f"import importlib.util as u, sys; sys.exit(u.find_spec({entry.tool!r}) is None)"], check=False
    )
    if found.returncode:
        raise MissingError(f"{entry.tool} is not installed")
    return python


def _install(name: str, folder: Path) -> str:
    requirements = HERE / "requirements" / f"{name}.txt"
    environment = folder / name
    python, installed = environment / "bin" / "python", environment / "installed.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing {' '.join(wanted.split())} into {environment} …", flush=True)
        for command in (
            [sys.executable, "-m", "venv", str(environment)],
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
        ):
            if subprocess.run(command, check=False).returncode:
                raise MissingError(f"{environment}: {' '.join(command[1:4])} failed")
        installed.write_text(wanted, encoding="utf-8")
    return str(python)

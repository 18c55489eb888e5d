"""Writes the reference of commands as Markdown, from what `--help` prints."""

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

COLUMNS = "88"


def command_help(command: str = "") -> str:
    """Return the help of a command as a block of text: for `plan`, what `python -m lmtrain plan --help` prints."""
    return f"```text\n{printed_help(command)}\n```"


@functools.cache
def printed_help(command: str) -> str:
    """Return what a command prints when it is asked for its help.

    Raises:
        RuntimeError: the command fails.
    """
    line = [sys.executable, "-m", "lmtrain", *command.split(), "--help"]
    environment = os.environ | {"COLUMNS": COLUMNS, "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    done = subprocess.run(line, capture_output=True, encoding="utf-8", env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.strip("\n")


def print_all(commands: Sequence[str]) -> None:
    """Ask several commands for their help at the same time; `printed_help` gives it afterwards."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(printed_help, commands))

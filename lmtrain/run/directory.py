"""Writes and checks the files of a run directory other than checkpoints, and guards the directory with a lock."""

import contextlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import OmegaConf

from lmtrain.checkpoint.steps import CHECKPOINTS
from lmtrain.config.recorded.run_names import SWEEP_CONFIG
from lmtrain.config.recorded.trust import read_saved
from lmtrain.errors import ConfigError
from lmtrain.files.durable import make_folder, write_atomically
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.files.lock import PAUSES_S, run_lock
from lmtrain.terminal.redact import redact, redacted

SEARCH_FILE = "search.json"  # the trials of a search, in its directory
# The files of a run that commands read, besides its checkpoints.
RUN_FILES = (
    ".hydra",
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "result.json",
    "sample.txt",
    "samples.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
)
# The folders that a resumed run writes to. W&B's folders of earlier runs contain links with absolute paths, so they are
# not listed here.
WRITTEN_FOLDERS = (".hydra", CHECKPOINTS, "bad-batches", "tensorboard", "wandb", "wandb/logs")


class RunDirectory:
    """A run's folder, as a context manager; while it is open, this process alone owns it.

    Raises:
        ValueError: On entering, if another process owns the folder (the message names it), or if something in it is
            neither a file nor a folder. A link in a run from someone else could make lmtrain overwrite other files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.lock = run_lock(self.path)

    def __enter__(self) -> Self:
        make_folder(self.path)
        refuse_strange_entries(self.path)
        if not self.lock.try_acquire(PAUSES_S):
            raise ValueError(f"{self.path}: in use by {self.lock.owner() or 'another process'}")
        self.lock.write_owner(f"process {os.getpid()} on {socket.gethostname()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lock.release()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file without secrets, atomically, so that no reader ever sees half of it."""
        write_atomically(self.path / name, json.dumps(redacted(content), indent=2, default=_redacted_str) + "\n")

    def write_config(self, resolved: str, hydra_files: Mapping[str, str]) -> None:
        """Write `config.yaml` and the files in `.hydra/`, given as texts by file name."""
        write_atomically(self.path / "config.yaml", resolved)
        make_folder(self.path / ".hydra")
        for name, text in hydra_files.items():
            write_atomically(self.path / ".hydra" / name, text)

    def run_id(self, given: str | None = None) -> str:
        """Return the run's id for W&B: the one in `environment.json`, or else the given one or a new one.

        Raises:
            PermissionError: `environment.json` can't be read, so that the run would get another id.
        """
        path = self.path / "environment.json"
        with contextlib.suppress(FileNotFoundError):  # read_json does not distinguish missing and unreadable files
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        recorded = read_json(path).get("run_id")
        return str(recorded) if recorded else given or secrets.token_hex(4)


def refuse_strange_entries(run_dir: Path) -> None:
    """Check that a run directory contains only files and folders, and no link that leads out of it.

    Raises:
        ValueError: There is such a link, or a pipe, a socket or a device, which could block or act when it is opened.
    """
    refuse_links(run_dir, below=WRITTEN_FOLDERS)
    for folder in (run_dir, *(run_dir / name for name in WRITTEN_FOLDERS)):
        for entry in folder.iterdir() if folder.is_dir() else ():
            mode = entry.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise ValueError(f"{entry}: is neither a file nor a folder; remove it, it is not from lmtrain")


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is the directory of a sweep or a search, with one folder per job."""
    return (folder / SWEEP_CONFIG).is_file()


def _redacted_str(value: object) -> str:
    return redact(str(value))


def holds_run(run_dir: Path) -> bool:
    """Return whether a run in this directory has written metrics; its config.yaml is complete by then."""
    return (run_dir / "metrics.jsonl").exists()


def status_without_result(run_dir: Path) -> str:
    """Return `running` if a process holds the run's lock, else `unfinished`; a killed process never keeps the lock."""
    try:
        return "running" if run_lock(run_dir).is_held() else "unfinished"
    except OSError:  # the lock file can't be read
        return "unfinished"


def refuse_existing_run(run_dir: Path) -> None:
    """Raise ConfigError if the directory already contains a run, which a new run would overwrite."""
    if holds_run(run_dir):
        raise ConfigError(
            f"hydra.run.dir={run_dir}: already contains a run; continue it with resume={run_dir}, or give another "
            "folder"
        )


def refuse_used_directory(run_dir: Path, option: str = "hydra.run.dir=") -> None:
    """Raise ConfigError unless the directory is empty or does not exist; `option` is what it was given with."""
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(f"{option}{run_dir}: exists already; give another folder")


def starting_folder(run_dir: Path) -> Path | None:
    """Return the folder in which a run was started, or None if it no longer exists or was not recorded."""
    saved: Any = OmegaConf.to_container(read_saved(run_dir / ".hydra" / "hydra.yaml"))
    try:
        folder = saved["hydra"]["runtime"]["cwd"]
    except (KeyError, TypeError):
        return None
    there = isinstance(folder, str) and Path(folder).is_absolute() and Path(folder).is_dir()
    return Path(folder) if there else None

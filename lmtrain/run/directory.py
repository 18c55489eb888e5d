"""The files of one run beside its checkpoints: who owns it, what it ran with, and how it ended."""

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
from lmtrain.config.recorded.trust import read_saved
from lmtrain.errors import ConfigError
from lmtrain.files.durable import make_folder, write_atomically
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.files.lock import PAUSES_S, run_lock
from lmtrain.terminal.redact import redact, redacted

SWEEP_CONFIG = "multirun.yaml"  # in a sweep's directory; Hydra's own name for it
# What commands read of a run, beside its checkpoints.
RUN_FILES = (
    ".hydra",
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "result.json",
    "sample.txt",
    "tokenizer.json",
    "tokenizer_config.json",
)
# The folders of a run that it goes on writing into. W&B links files into the folders of its earlier runs, by their
# absolute paths, which are not listed here.
WRITTEN_FOLDERS = (".hydra", CHECKPOINTS, "bad-batches", "tensorboard", "wandb", "wandb/logs")


class RunDirectory:
    """One run's folder, owned by one process while it is open (a context manager).

    Raises:
        ValueError: on entering, if another process owns it, which the message names; or if something in it is a link,
            by which a run that others made could have files elsewhere overwritten, or no file at all.
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
        """Write a whole file or none, without secrets: no reader ever sees half of it."""
        write_atomically(self.path / name, json.dumps(redacted(content), indent=2, default=_redacted_str) + "\n")

    def write_config(self, resolved: str, hydra_files: Mapping[str, str]) -> None:
        """Write `config.yaml`, and the files in `.hydra/` whose texts are given by name."""
        write_atomically(self.path / "config.yaml", resolved)
        make_folder(self.path / ".hydra")
        for name, text in hydra_files.items():
            write_atomically(self.path / ".hydra" / name, text)

    def run_id(self, given: str | None = None) -> str:
        """Return the identity of this run for W&B, given or drawn once, and kept in `environment.json`.

        Raises:
            PermissionError: that file may not be read, and the run would get another identity.
        """
        path = self.path / "environment.json"
        with contextlib.suppress(FileNotFoundError):  # read_json would say the same of a file that may not be read
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        recorded = read_json(path).get("run_id")
        return str(recorded) if recorded else given or secrets.token_hex(4)


def refuse_strange_entries(run_dir: Path) -> None:
    """Check that a run's directory and its folders hold files and folders alone, and no link leads out of the run.

    Raises:
        ValueError: a link, or a pipe, a socket or a device, which would wait, or act, when it is opened.
    """
    refuse_links(run_dir, below=WRITTEN_FOLDERS)
    for folder in (run_dir, *(run_dir / name for name in WRITTEN_FOLDERS)):
        for entry in folder.iterdir() if folder.is_dir() else ():
            mode = entry.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise ValueError(f"{entry}: neither a file nor a folder; remove it, lmtrain does not make it")


def is_sweep(folder: Path) -> bool:
    """Return whether the folders in a folder are the jobs of a sweep or a search."""
    return (folder / SWEEP_CONFIG).is_file()


def _redacted_str(value: object) -> str:
    return redact(str(value))


def holds_run(run_dir: Path) -> bool:
    """Return whether a run has written metrics there: its config.yaml is complete by then, and no new run may begin."""
    return (run_dir / "metrics.jsonl").exists()


def status_without_result(run_dir: Path) -> str:
    """Return `running` while a process holds the run's lock, which the kernel frees however the process ends."""
    try:
        return "running" if run_lock(run_dir).is_held() else "unfinished"
    except OSError:  # a file that may not be read
        return "unfinished"


def refuse_existing_run(run_dir: Path) -> None:
    """Raise ConfigError if a run is there already: a new one would mix with it."""
    if holds_run(run_dir):
        raise ConfigError(f"hydra.run.dir={run_dir}: holds a run already; go on with resume={run_dir}, or give another")


def refuse_used_directory(run_dir: Path) -> None:
    """Raise ConfigError unless the directory is empty or not there."""
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(f"hydra.run.dir={run_dir}: is there already; give another")


def starting_folder(run_dir: Path) -> Path | None:
    """Return the folder that a run was started in; None if it is gone or not recorded."""
    saved: Any = OmegaConf.to_container(read_saved(run_dir / ".hydra" / "hydra.yaml"))
    try:
        folder = saved["hydra"]["runtime"]["cwd"]
    except (KeyError, TypeError):
        return None
    there = isinstance(folder, str) and Path(folder).is_absolute() and Path(folder).is_dir()
    return Path(folder) if there else None

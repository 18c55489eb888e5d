"""The files of one run beside its checkpoints: who owns it, what it ran with, and how it ended."""

import fcntl
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmtrain.durable import read_json_limited, write_atomically
from lmtrain.redact import redact, redacted

PACKAGES = ("lmtrain", "torch", "numpy", "hydra-core", "omegaconf", "pydantic", "safetensors", "tokenizers", "wandb")
MAX_DIFF_CHARS = 1_000_000
MAX_JSON_BYTES = 16_000_000  # such a diff, where each character is escaped
GIT_TIMEOUT_S = 5
SWEEP_CONFIG = "multirun.yaml"  # in a sweep's directory; Hydra's own name for it
LOCK_PAUSES_S = (0.0, 0.05, 0.2)


class RunDirectory:
    """One run's folder, owned by one process while it is open (a context manager).

    Raises:
        ValueError: on entering, if another process owns it, which the message names; or if something in it is a link,
            by which a run that others made could have files elsewhere overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.lock = self.path / ".lock"

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in self.path.iterdir():
            if entry.is_symlink() and entry.name != "checkpoints":  # which may well lie on a larger disk
                raise ValueError(f"{entry}: a link, which lmtrain does not make and would write through")
        # The kernel frees the lock when its process dies, however it dies: a stale one can't be.
        self._file = self.lock.open("a+")
        if not self._locked():
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise ValueError(f"{self.path}: in use by {owner}") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        return self

    def _locked(self) -> bool:
        """Tries more than once: whoever looks whether a run goes on holds its lock for an instant."""
        for pause_s in LOCK_PAUSES_S:
            time.sleep(pause_s)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a whole file or none, without secrets: no reader ever sees half of it."""
        write_atomically(self.path / name, json.dumps(redacted(content), indent=2, default=_redacted_str) + "\n")

    def write_config(self, resolved: str, hydra_files: Mapping[str, str]) -> None:
        """The texts of `config.yaml`, and of the files in `.hydra/` by name."""
        write_atomically(self.path / "config.yaml", resolved)
        (self.path / ".hydra").mkdir(exist_ok=True)
        for name, text in hydra_files.items():
            write_atomically(self.path / ".hydra" / name, text)

    def run_id(self, given: str | None = None) -> str:
        """The identity of this run for W&B: given or drawn once, and kept in `environment.json`."""
        recorded = read_json(self.path / "environment.json").get("run_id")
        return str(recorded) if recorded else given or secrets.token_hex(4)


@dataclass
class Result:
    """`result.json`, written last; `objective` is the best validation loss."""

    status: str
    objective: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    final_train_loss: float | None = None
    final_val_loss: float | None = None
    steps: int = 0
    tokens: int = 0
    bad_steps: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    config_hash: str = ""
    error: str | None = None


def is_sweep(folder: Path) -> bool:
    """Whether the folders in it are the jobs of a sweep or a search."""
    return (folder / SWEEP_CONFIG).is_file()


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps that a run has checkpoints of, in ascending order, by their folders' names alone."""
    names = (path.name.removeprefix("step-") for path in run_dir.glob("checkpoints/step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty if it is not there, not JSON, or larger than such a file is."""
    try:
        content = read_json_limited(path, MAX_JSON_BYTES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def environment(run_id: str, device: str) -> dict[str, Any]:
    """What else than the config a result may depend on. No environment variables: they hold secrets."""
    return {
        "run_id": run_id,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redacted(["lmtrain", *sys.argv[1:]]),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "device": device,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
    }


def lasting(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `environment` that the bits of a run depend on."""
    return {key: environment[key] for key in ("platform", "cpu", "device", "python", "packages")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _redacted_str(value: object) -> str:
    return redact(str(value))


def _git() -> dict[str, Any] | None:
    """Commit and uncommitted changes of the repository the run was started in; None outside of one."""
    if shutil.which("git") is None:
        return None
    filters = (_run_git("config", "--show-scope", "--null", "--name-only", "--get-regexp", r"^filter\.") or "").split(
        "\0"
    )
    # Of the repository's own: the user's and the machine's, of git-lfs say, are theirs.
    own = [key for scope, key in zip(filters[::2], filters[1::2], strict=False) if scope in ("local", "worktree")]
    if (commit := _run_git("rev-parse", "HEAD")) is None:
        return None
    diff = _run_git("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "HEAD", without=own) or ""
    diff = redact(diff)  # before it is cut, perhaps in the middle of a secret
    return {"commit": commit.strip(), "diff": diff[:MAX_DIFF_CHARS], "diff_truncated": len(diff) > MAX_DIFF_CHARS}


def _run_git(*words: str, without: Sequence[str] = ()) -> str | None:
    """What git prints, without the settings named, and running no command that the repository's config names."""
    settings = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}
    settings |= dict.fromkeys(without, "")  # no command; and for `required`, no
    environment = {
        **os.environ,
        "GIT_ALLOW_PROTOCOL": "",  # nothing is fetched for a diff
        "GIT_OPTIONAL_LOCKS": "0",  # nor is the index written
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    try:
        done = subprocess.run(
            ["git", *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError):  # the last: a NUL in a hostile key
        return None
    return done.stdout if done.returncode == 0 else None

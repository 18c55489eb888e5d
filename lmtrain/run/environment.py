"""What a run's result depends on beside its config: machine, versions, code."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lmtrain.machine import cpu_name
from lmtrain.run.source_code import lmtrain_hash, source_hashes, targets
from lmtrain.terminal.redact import redact, redacted

PACKAGES = ("lmtrain", "torch", "numpy", "hydra-core", "omegaconf", "pydantic", "safetensors", "tokenizers", "wandb")
MAX_DIFF_CHARS = 1_000_000
GIT_TIMEOUT_S = 5


def describe_environment(run_id: str, device: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a result may depend on beside the config (in plain containers), which says what code it names.

    No environment variables: they hold secrets.
    """
    named = {target.partition(".")[0] for _, target in targets(config)}
    return {
        "run_id": run_id,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redacted(["lmtrain", *sys.argv[1:]]),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "device": device,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES}
        | {name: found for name in sorted(named.difference(PACKAGES)) if (found := _version(name))},
        "lmtrain_source": lmtrain_hash(),
        "code": source_hashes(config or {}),
        "git": _git(),
    }


def hardware_and_software(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an environment that the bits of a run depend on."""
    return {key: environment[key] for key in ("platform", "cpu", "device", "python", "packages", "lmtrain_source")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the repository the run was started in; None outside of one."""
    if shutil.which("git") is None:
        return None
    filters = (_run_git("config", "--show-scope", "--null", "--name-only", "--get-regexp", r"^filter\.") or "").split(
        "\0"
    )
    # Only the repository's own filters: those of the user and the machine, such as git-lfs, are trusted.
    own = [key for scope, key in zip(filters[::2], filters[1::2], strict=False) if scope in ("local", "worktree")]
    if (commit := _run_git("rev-parse", "HEAD")) is None:
        return None
    diff = _run_git("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "HEAD", without=own) or ""
    diff = redact(diff)  # before it is cut, perhaps in the middle of a secret
    return {"commit": commit.strip(), "diff": diff[:MAX_DIFF_CHARS], "diff_truncated": len(diff) > MAX_DIFF_CHARS}


def _run_git(*words: str, without: Sequence[str] = ()) -> str | None:
    """Return what git prints, without the settings named, and running no command that the repository's config names."""
    settings = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}
    settings |= dict.fromkeys(without, "")  # no command; and for `required`, no
    environment = {
        **os.environ,
        "GIT_ALLOW_PROTOCOL": "",  # nothing is fetched for a diff
        "GIT_OPTIONAL_LOCKS": "0",  # the index is not written either
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

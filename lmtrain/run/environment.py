"""Describes what a run's result depends on besides its config: machine, versions, code."""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.machine import cpu_name
from lmtrain.run.source_code import lmtrain_hash, source_hashes, targets
from lmtrain.terminal.redact import redact, redacted

PACKAGES = ("lmtrain", "torch", "numpy", "hydra-core", "omegaconf", "pydantic", "safetensors", "tokenizers", "wandb")
# Packages that compute for a part of lmtrain, by its module.
PACKAGES_OF_PARTS = {
    "lmtrain.model.transformers_model": "transformers",
    "lmtrain.optimizer.library": "pytorch-optimizer",
    "lmtrain.optimizer.soap": "pytorch-optimizer",
    "lmtrain.optimizer.schedule_free": "schedulefree",
}
MAX_DIFF_BYTES = 1_000_000
LONGEST_SECRET = 10_000  # bytes; the end of a truncated diff is dropped, because it may be part of a secret
MAX_NAMES = 1000  # of changed or untracked files
GIT_TIMEOUT_S = 5.0
BINARY = "Binary files "  # prefix of git's line about changes that it does not show


def describe_environment(
    run_id: str, device: str, config: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the facts besides the config that a result may depend on, in plain containers.

    `config` tells which code outside lmtrain is used; `facts` are those of `machine_and_git`, if they are known
    already. Environment variables are not included, because they may contain secrets.
    """
    return {
        "run_id": run_id,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": redacted(["lmtrain", *sys.argv[1:]]),
        "device": device,
        "lmtrain_source": lmtrain_hash(),
        "code": source_hashes(config or {}),
        **(facts or machine_and_git(config)),
    }


def machine_and_git(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the part of an environment that takes other processes and many small files to find out."""
    named = {target.partition(".")[0] for _, target in targets(config)}
    parts = [str(node.get("_target_")) for node in (config or {}).values() if isinstance(node, Mapping)]
    named |= {package for part in parts if (package := PACKAGES_OF_PARTS.get(part.rpartition(".")[0]))}
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES}
        | {name: found for name in sorted(named.difference(PACKAGES)) if (found := _version(name))},
        "git": _git(),
    }


def hardware_and_software(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an environment on which the bits of a run depend."""
    return {key: environment[key] for key in ("platform", "cpu", "device", "python", "packages", "lmtrain_source")}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the current git repository, or None outside a repository.

    Git commands get GIT_TIMEOUT_S in total, and the diff is limited to MAX_DIFF_BYTES; `diff_truncated` tells whether
    changes are missing from it.
    """
    if shutil.which("git") is None:
        return None
    deadline = time.monotonic() + GIT_TIMEOUT_S
    filters = _run_git(deadline, "config", "--show-scope", "--null", "--name-only", "--get-regexp", r"^filter\.")
    if filters.text and not filters.complete:  # git might run a filter that is missing from the list
        return None
    scopes_and_keys = filters.text.split("\0")
    # Only the repository's own filters are disabled: those of the user and the machine, such as git-lfs, are trusted.
    own = [
        key
        for scope, key in zip(scopes_and_keys[::2], scopes_and_keys[1::2], strict=False)
        if scope in ("local", "worktree")
    ]
    found = _run_git(deadline, "rev-parse", "HEAD", "--show-toplevel")
    if not found.complete:
        return None
    commit, _, root = found.text.rstrip("\n").partition("\n")
    changes = ("diff", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
    names = _run_git(deadline, *changes, "--name-only", "-z", "HEAD", without=own)
    changed = [name for name in names.text.split("\0") if name][:MAX_NAMES]
    large = [name for name in changed if _size(Path(root, name)) > MAX_DIFF_BYTES]  # git would read them whole
    left_out = [f":(top,exclude,literal){name}" for name in large]
    diff = _run_git(deadline, *changes, "HEAD", "--", ":(top)", *left_out, without=own)
    others = _run_git(deadline, "ls-files", "--others", "--exclude-standard", "--directory", "-z", without=own)
    text = redact(diff.text)
    if not diff.complete:
        text = text[:-LONGEST_SECRET]  # the end may be part of a secret, which `redact` does not recognize
    has_binary = any(line.startswith(BINARY) for line in text.splitlines())
    return {
        "commit": commit,
        "diff": text,
        "diff_truncated": bool(large) or has_binary or not (diff.complete and names.complete),
        "changed": redacted(changed),
        "untracked": redacted([name for name in others.text.split("\0") if name][:MAX_NAMES]),
    }


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class _GitOutput:
    """The output of git; `complete` unless git failed, printed too much or took too long."""

    text: str = ""
    complete: bool = False


def _run_git(deadline: float, *words: str, without: Sequence[str] = ()) -> _GitOutput:
    """Run git without the settings in `without`, and without any command from the repository's config.

    It is killed at the deadline (in time.monotonic seconds) or when it has printed too much.
    """
    if time.monotonic() >= deadline:
        return _GitOutput()
    settings = {
        "core.fsmonitor": "false",
        "core.hooksPath": os.devnull,
        "core.bigFileThreshold": str(MAX_DIFF_BYTES),  # git shows no lines of larger committed files
    }
    settings |= dict.fromkeys(without, "")  # an empty command runs nothing; an empty `required` means no
    environment = {
        **os.environ,
        "GIT_ALLOW_PROTOCOL": "",  # fetch nothing for a diff
        "GIT_OPTIONAL_LOCKS": "0",  # do not write the index
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    try:
        process = subprocess.Popen(
            ["git", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # so that its filters can be killed with it
        )
    except (OSError, ValueError):  # ValueError: a hostile key contains a NUL
        return _GitOutput()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), kill)
    timer.start()
    try:
        with process:
            assert process.stdout is not None
            printed = process.stdout.read(MAX_DIFF_BYTES + LONGEST_SECRET)
            if process.stdout.read(1):
                kill()
            complete = process.wait() == 0
    finally:
        timer.cancel()
    return _GitOutput(printed.decode(errors="replace"), complete)

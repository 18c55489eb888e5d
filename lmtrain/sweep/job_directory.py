"""A job's directory: what it is called, and what lies in it, which decides what is left to be done."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.overrides import quoted, search_path_override
from lmtrain.config.preflight import preflight
from lmtrain.config.recompose import FORK
from lmtrain.config.trust import names_to_trust, read_saved
from lmtrain.errors import FAILED, SUCCESSFUL, UNSUCCESSFUL, ConfigError
from lmtrain.files.limited import read_json
from lmtrain.run.identity import NEUTRAL_KEYS, config_hash
from lmtrain.terminal.as_text import differences

SHOWN_DIFFERENCES = 5
MAX_NAME_CHARS = 120
QUOTES = "'\""


def directory_name(overrides: Sequence[str]) -> str:
    """A job's own overrides, readably: whatever else is in a sweep, and in which order, the job finds its directory.

    `optimizer.lr=1e-3`, `seed=1` → `lr=1e-3,seed=1`; of a fork, the run that it starts from and what follows `++fork`,
    since what stands before it is that run's. Where the name says less than the overrides do, as they are too many or
    have characters that do not suit a file's name, a hash of them follows.
    """
    kept = [override for override in overrides if not _is_aside(override)]
    if not kept:
        return "defaults"
    forks = [at for at, override in enumerate(kept) if override.startswith(FORK)]
    pairs = sorted(tuple(override.partition("=")[::2]) for override in kept[forks[-1] + 1 if forks else 0 :])
    last_parts = Counter(key.rpartition(".")[2] for key, _ in pairs)
    short = [(last if last_parts[last := key.rpartition(".")[2]] == 1 else key, value) for key, value in pairs]
    origin = [f"fork={Path(kept[at].removeprefix(FORK).strip(QUOTES)).name}" for at in forks[-1:]]
    words = [*origin, *(f"{key}={value}" for key, value in short)]
    safe = [re.sub(r"[^\w.=+-]+", "_", word, flags=re.ASCII).lstrip(".-") for word in words]
    if not origin and words == safe and len(",".join(words)) <= MAX_NAME_CHARS:
        return ",".join(words)
    digest = hashlib.sha256("\0".join(sorted(kept)).encode()).hexdigest()[:8]
    lengths = itertools.accumulate(len(word) + 1 for word in safe)
    shown = [word for word, length in zip(safe, lengths, strict=True) if length <= MAX_NAME_CHARS - len(digest)]
    return ",".join([*shown, digest])


def register_directory_resolver() -> None:
    """Let configs name a job's directory, as `hydra.sweep.subdir` in `conf/config.yaml` does."""
    OmegaConf.register_new_resolver("job_directory", directory_name, replace=True)


def _is_aside(override: str) -> bool:
    key = override.partition("=")[0]
    return key in NEUTRAL_KEYS or key.startswith("hydra")


@dataclass(frozen=True)
class ToDo:
    """What is left of a job: a process with these arguments; or none, since it has ended with `status`."""

    arguments: Sequence[str] = ()
    resumes: bool = False
    status: str | None = None
    reason: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Composed:
    """A job's config: resolved, in plain containers; and what of it a resume needs leave for."""

    config: Mapping[str, Any]
    to_trust: Sequence[str]


@cache
def _composed(overrides: tuple[str, ...], search_path: tuple[str, ...]) -> DictConfig:
    return compose([*search_path, *overrides])


def check_config(overrides: tuple[str, ...], search_path: tuple[str, ...]) -> None:
    """Raises ConfigError if a job's config is wrong; does not look at the data."""
    check(_composed(overrides, search_path))


def has_begun(directory: Path) -> bool:
    """Whether a run has written metrics: its config.yaml is complete by then, and no new run may begin there."""
    return (directory / "metrics.jsonl").exists()


@cache  # a job's is wanted several times: to check it, to run it, to show it, and to tell how it ended
def composed(overrides: tuple[str, ...], search_path: tuple[str, ...], directory: Path | None) -> Composed:
    """What the job's own process will compose, or has composed if its directory (null: none yet) holds a run: then the
    checkpoint that it is a fork of may be gone, and its data is not prepared again. What could begin once stays so.

    Raises:
        ConfigError: naming what is wrong with config or data.
    """
    cfg = _composed(overrides, search_path)
    to_trust = names_to_trust(cfg)
    begun = directory is not None and has_begun(directory)
    plain: Any = OmegaConf.to_container(preflight(cfg, begun=begun))
    return Composed(plain, to_trust)


def to_do(directory: Path, overrides: tuple[str, ...], search_path: tuple[str, ...], *, retry_failed: bool) -> ToDo:
    """What the directory's files say is left to be done."""
    result = read_json(directory / "result.json")
    status = result.get("status")
    begun = has_begun(directory)
    try:
        job = composed(overrides, search_path, directory)
        if begun or status is not None:
            saved: Any = OmegaConf.to_container(read_saved(directory / "config.yaml"))
            if config_hash(saved) != config_hash(job.config):
                return ToDo(status=FAILED.status, reason=_other(directory, saved, job.config))
    except ConfigError as error:
        return ToDo(status=FAILED.status, reason=" ".join(str(error).splitlines()))
    if status in SUCCESSFUL or (status in UNSUCCESSFUL and not retry_failed):
        return ToDo(status=status, reason=result.get("error"), result=result)
    if begun:
        trust = [f"trust=[{','.join(map(quoted, job.to_trust))}]"] if job.to_trust else []
        return ToDo([f"resume={directory}", *trust], resumes=True)
    return ToDo([*overrides, f"hydra.run.dir={quoted(str(directory))}", *search_path])


def search_path(hydra_settings: Any) -> list[str]:
    """Where a sweep finds configs beside the usual places, in the form that its jobs take: an override, or none."""
    given = [source.path for source in hydra_settings.runtime.config_sources if source.provider == "command-line"]
    return search_path_override(given, hydra_settings.searchpath or ())


def _other(directory: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    before, after = ({key: value for key, value in one.items() if key not in NEUTRAL_KEYS} for one in (saved, wanted))
    lines = differences(before, after)
    more = f" and {len(lines) - SHOWN_DIFFERENCES} more" if len(lines) > SHOWN_DIFFERENCES else ""
    return (
        f"{directory}: holds a run of another config ({'; '.join(lines[:SHOWN_DIFFERENCES])}{more}); move it away, or "
        "give another hydra.sweep.dir"
    )

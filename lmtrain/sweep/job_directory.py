"""Names a job's directory, and finds out from its files what work remains."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.config.build import raising_config_errors
from lmtrain.config.overrides import quoted
from lmtrain.config.written_for.mismatches import FORK
from lmtrain.errors import FAILED, SUCCESSFUL, UNSUCCESSFUL, ConfigError
from lmtrain.files.durable import make_folder
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.run.directory import holds_run, refuse_strange_entries
from lmtrain.run.identity import NEUTRAL_KEYS, difference_from_run
from lmtrain.sweep.job_config import job_config

MAX_NAME_CHARS = 120
QUOTES = "'\""


def directory_name(overrides: Sequence[str], swept: Collection[str] = ()) -> str:
    """Return a readable directory name made of a job's overrides, with the `swept` keys first.

    For example, `optimizer.lr=1e-3` and `seed=1` become `lr=1e-3,seed=1`. A fork's name has its parent run and the
    overrides after `++fork`, because those before it repeat the parent's. If the overrides are too many, or have
    characters that do not suit a file name, the name ends with a hash of all of them.
    """
    kept = [override for override in overrides if not _is_neutral(override)]
    if not kept:
        return "defaults"
    forks = [at for at, override in enumerate(kept) if override.startswith(FORK)]
    pairs = sorted(tuple(override.partition("=")[::2]) for override in kept[forks[-1] + 1 if forks else 0 :])
    last_parts = Counter(key.rpartition(".")[2] for key, _ in pairs)
    named: dict[bool, list[str]] = {True: [], False: []}
    for key, value in pairs:
        last = key.rpartition(".")[2]
        named[key in swept].append(f"{last if last_parts[last] == 1 else key}={value}")
    origin = [f"fork={Path(kept[at].removeprefix(FORK).strip(QUOTES)).name}" for at in forks[-1:]]
    words = [*named[True], *origin, *named[False]]
    safe = [re.sub(r"[^\w.=+-]+", "_", word, flags=re.ASCII).lstrip(".-") for word in words]
    if not origin and words == safe and len(",".join(words)) <= MAX_NAME_CHARS:
        return ",".join(words)
    digest = hashlib.sha256("\0".join(sorted(kept)).encode()).hexdigest()[:8]
    lengths = itertools.accumulate(len(word) + 1 for word in safe)
    shown = [word for word, length in zip(safe, lengths, strict=True) if length <= MAX_NAME_CHARS - len(digest)]
    return ",".join([*shown, digest])


def name_without_order(name: str) -> str:
    """Return a form of a directory name that is equal for equal overrides, whichever keys were swept."""
    words = name.split(",")
    is_hash = "=" not in words[-1]
    return words[-1] if is_hash else ",".join(sorted(words))


def register_directory_resolver() -> None:
    """Register the resolver `job_directory`, which `hydra.sweep.subdir` in `conf/config.yaml` uses."""
    OmegaConf.register_new_resolver("job_directory", directory_name, replace=True)


def _is_neutral(override: str) -> bool:
    """Return whether an override does not change the job's result."""
    key = override.partition("=")[0]
    return key in NEUTRAL_KEYS or key.startswith("hydra")


def make_sweep_directory(sweep_dir: Path) -> None:
    """Make the directory of a sweep if it does not exist.

    Raises:
        ConfigError: the directory contains a link, through which the sweep could write to files elsewhere.
    """
    make_folder(sweep_dir)
    with raising_config_errors():
        refuse_links(sweep_dir)


@dataclass(frozen=True)
class RemainingWork:
    """The remaining work of a job: a process with `arguments` or, if `status` is set, nothing, as the job has ended."""

    arguments: Sequence[str] = ()
    resumes: bool = False
    status: str | None = None
    reason: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


def remaining_work(
    directory: Path, overrides: tuple[str, ...], search_path: tuple[str, ...], *, retry_failed: bool
) -> RemainingWork:
    """Find out from the files in a job's directory what work remains; a job with links among its files has failed."""
    try:
        refuse_strange_entries(directory)
    except ValueError as error:
        return RemainingWork(status=FAILED.status, reason=str(error))
    result = read_json(directory / "result.json")
    status = result.get("status")
    begun = holds_run(directory)
    try:
        job = job_config(overrides, search_path, directory)
        if (begun or status is not None) and (found := difference_from_run(directory, job.config)):
            way_out = "move it away, or give another hydra.sweep.dir"
            reason = f"{directory}: has a run with another config ({found}); {way_out}"
            return RemainingWork(status=FAILED.status, reason=reason)
    except ConfigError as error:
        return RemainingWork(status=FAILED.status, reason=" ".join(str(error).splitlines()))
    if status in SUCCESSFUL or (status in UNSUCCESSFUL and not retry_failed):
        return RemainingWork(status=status, reason=result.get("error"), result=result)
    if begun:
        trust = [f"trust=[{','.join(map(quoted, job.to_trust))}]"] if job.to_trust else []
        return RemainingWork([f"resume={directory}", *trust], resumes=True)
    return RemainingWork([*overrides, f"hydra.run.dir={quoted(str(directory))}", *search_path])

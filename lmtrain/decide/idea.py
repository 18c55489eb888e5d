"""Composes an idea: the baseline and the challenger as configs without a seed, and where their runs are."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.comparison.comparable.measured_alike import BITS_PER_BYTE
from lmtrain.config.build import raising_config_errors
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.token_files import token_folders
from lmtrain.data.meta import read_meta
from lmtrain.data.token_files import TokenFiles
from lmtrain.errors import ConfigError
from lmtrain.files.durable import make_folder
from lmtrain.files.lock import locked_folder
from lmtrain.run.identity import config_hash
from lmtrain.sweep.job import Job
from lmtrain.sweep.job_config import check_job_config, job_config
from lmtrain.sweep.job_directory import directory_name

RUNS = "runs"  # the folder in a campaign that has the runs of each config
MAX_NAME_CHARS = 60  # of the readable part of a folder
OWN_KEYS = {  # keys that `decide` sets itself or that do not suit it, each with the way out
    "seed": "decide runs every seed of both; leave it out",
    "resume": "decide starts its own runs; leave it out",
    "fork": "forks of one run share its past, so that their seeds are not independent; leave it out",
    "step": "works only with fork, which decide does not accept; leave it out",
    "retry_failed": "give --retry-failed instead",
}
# The config keys that decide what an evaluation measures, besides the data.
MEASURED_BY = ("data.block_size", "trainer.eval_batches", "trainer.eval_tokens")


@dataclass(frozen=True)
class Side:
    """The baseline or the challenger of an idea.

    Attributes:
        overrides: The overrides that make its config, without a seed.
        config: The resolved config, in plain containers.
        hash: The hash of the config without its seed.
        name: `baseline` or `challenger`.
        folder: The folder of its runs, one below it for each seed.
        notes: Remarks about the composition of the config.
    """

    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    hash: str
    name: str
    folder: Path
    notes: Sequence[str]

    def job(self, seed: int) -> Job:
        """Return the job of a seed. Equal configs of one campaign have equal directories, so they share their runs."""
        return Job((*self.overrides, f"seed={seed}"), self.folder / f"seed={seed}", f"{self.name} seed={seed}")

    def recorded(self) -> dict[str, Any]:
        """Return what a ledger says about it; the directory is below the campaign's folder, which may be moved."""
        directory = f"{RUNS}/{self.folder.name}"
        return {"overrides": list(self.overrides), "config_hash": self.hash, "directory": directory}


@dataclass(frozen=True)
class Idea:
    """A challenger against its baseline; `changes` are the overrides in which it differs."""

    baseline: Side
    challenger: Side
    changes: tuple[str, ...]

    def key(self, about: Mapping[str, Any]) -> str:
        """Return what identifies the idea in a ledger: its two configs, and `about`, what is compared."""
        parts = [self.baseline.hash, self.challenger.hash, dict(about)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        return " ".join(self.changes)


def compose_idea(baseline: Sequence[str], changes: Sequence[str], campaign: Path, metric: str) -> Idea:
    """Return the idea of a challenger that has the baseline's overrides, and then `changes`.

    Raises:
        ConfigError: a config has a mistake, the challenger's is equal to the baseline's, or their values of the metric
            could not be compared. No run has started, but missing token files may have been prepared.
    """
    parsed = {text: parse_overrides([text])[0] for text in (*baseline, *changes)}
    for text, override in parsed.items():
        key = override.key_or_group
        if way_out := OWN_KEYS.get(key) or ("belongs to training and sweeps" if key.startswith("hydra") else None):
            raise ConfigError(f"{text}: {way_out}")
        if override.is_sweep_override():
            raise ConfigError(f"{text}: has several values; decide compares one challenger with one baseline")
    both = _last_of_each_key(baseline), _last_of_each_key([*baseline, *changes])
    for overrides in both:  # both before their data is read
        check_job_config((*overrides, "seed=1"), ())
    runs = campaign.absolute() / RUNS
    ours = _side("baseline", both[0], runs / directory_name(both[0])[:MAX_NAME_CHARS])
    theirs = _side("challenger", both[1], runs / directory_name(changes)[:MAX_NAME_CHARS])
    if ours.hash == theirs.hash:
        raise ConfigError(
            f"--challenger {' '.join(changes)}: gives the config of the baseline; give a change that can matter"
        )
    _refuse_other_measurement(ours.config, theirs.config, metric)
    return Idea(ours, theirs, tuple(changes))


def _last_of_each_key(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides without those that a later one replaces: Hydra lets a group be chosen only once."""
    last: dict[str, str] = {}
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        last.pop(key, None)  # so that the later one keeps its place
        last[key] = text
    return tuple(last.values())


def _side(name: str, overrides: tuple[str, ...], folder: Path) -> Side:
    composed = job_config((*overrides, "seed=1"), (), None)
    digest = config_hash({key: value for key, value in composed.config.items() if key != "seed"})
    return Side(overrides, composed.config, digest, name, Path(f"{folder}-{digest}"), composed.notes)


def with_folders(idea: Idea) -> Idea:
    """Return the idea with existing folders: those that end with the hash of a config, or else new ones."""
    runs = idea.baseline.folder.parent
    with locked_folder(runs):
        return replace(idea, baseline=_with_folder(idea.baseline), challenger=_with_folder(idea.challenger))


def _with_folder(side: Side) -> Side:
    found = sorted(side.folder.parent.glob(f"*-{side.hash}"))
    make_folder(found[0] if found else side.folder)
    return replace(side, folder=found[0] if found else side.folder)


def _refuse_other_measurement(baseline: Mapping[str, Any], challenger: Mapping[str, Any], metric: str) -> None:
    """Raise ConfigError if an evaluation of the challenger measures something else than one of the baseline."""
    ours, theirs = (_measurement(config, metric) for config in (baseline, challenger))
    for key in ours | theirs:
        if ours.get(key) == theirs.get(key):
            continue
        way_out = "leave that out"
        if key == "data" and metric != BITS_PER_BYTE:
            same_text = _val_bytes(baseline) is not None and _val_bytes(baseline) == _val_bytes(challenger)
            if same_text:
                way_out = f"for two tokenizers of one text, evaluate the whole split, and give --metric {BITS_PER_BYTE}"
        before, after = (_shown(config, key) for config in (baseline, challenger))
        raise ConfigError(
            f"--challenger: {key} is {after} instead of {before}, so that its {metric} would measure something else "
            f"than the baseline's; {way_out}"
        )


def _measurement(config: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return what an evaluation with this config measures, by config key."""
    values = {key: _value(config, key) for key in MEASURED_BY}
    if _value(config, "trainer.eval_batches") is not None:  # then the batch size decides how much is evaluated
        values["data.batch_size"] = _value(config, "data.batch_size")
    whole = values["trainer.eval_batches"] is None and values["trainer.eval_tokens"] is None
    if metric == BITS_PER_BYTE and whole and (size := _val_bytes(config)) is not None:
        return values | {"data": size}  # a part of the split would be other text with another tokenizer
    with raising_config_errors():
        dtype = _value(config, "data.dtype")
        return values | {"data": [TokenFiles(path, "val", dtype).fingerprint for path in _folders(config).values()]}


def _val_bytes(config: Mapping[str, Any]) -> list[int] | None:
    """Return the bytes of text in the validation split of each folder; None if one does not say it."""
    metas = [read_meta(path) for path in _folders(config).values()]
    sizes = [meta.splits["val"].bytes for meta in metas if meta is not None and "val" in meta.splits]
    return sizes if len(sizes) == len(metas) and all(sizes) else None


def _folders(config: Mapping[str, Any]) -> dict[str, Path]:
    return token_folders(OmegaConf.create(config["data"]))


def _shown(config: Mapping[str, Any], key: str) -> str:
    return ", ".join(map(str, _folders(config).values())) if key == "data" else str(_value(config, key))


def _value(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node

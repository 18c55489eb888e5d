"""What a run is made of, as its directory and its loggers keep it."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmtrain.data.loader import TokenLoader
from lmtrain.differences import differences
from lmtrain.durable import read_limited
from lmtrain.flops import flops_per_token
from lmtrain.logger.base import RunInfo
from lmtrain.logger.wandb import agent_run_id
from lmtrain.run_directory import RunDirectory, is_sweep, lasting, read_json

log = logging.getLogger(__name__)

MAX_OVERRIDES_BYTES = 1_000_000


@dataclass
class Resumed:
    """A run that goes on from its newest checkpoint: what its config changes, a line each; `began` once it does."""

    changes: Sequence[str]
    began: bool = False


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config in plain containers."""
    container: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return container


def size(model: nn.Module, loader: TokenLoader) -> dict[str, Any]:
    """What runs of different models are compared by."""
    return {
        "class": type(model).__name__,
        "parameters": sum(param.numel() for param in model.parameters()),
        "flops_per_token": flops_per_token(model, loader.block_size),
    }


def run_info(cfg: DictConfig, directory: RunDirectory, run_id: str) -> RunInfo:
    """What its loggers file the run under."""
    folder = directory.path.name
    return RunInfo(
        directory.path,
        run_id,
        name=folder if "=" in folder else f"{cfg.name}-{folder}",  # lr=0.001,seed=1 says what a job of a sweep is
        group=directory.path.parent.name,  # the runs of one name, or the jobs of one sweep
        config=plain(cfg),
        tags=_tags(directory.path),
    )


def _tags(run_dir: Path) -> list[str]:
    """The experiments that the run was composed from, and whether it is a job of a sweep."""
    try:
        overrides = read_limited(run_dir / ".hydra" / "overrides.yaml", MAX_OVERRIDES_BYTES).decode()
    except (OSError, ValueError):
        overrides = ""
    chosen = re.search(r"^- '?experiments=\[?([\w,./-]+)", overrides, re.MULTILINE)
    in_sweep = is_sweep(run_dir.parent) or agent_run_id() is not None
    return [*(chosen[1].split(",") if chosen else []), *(["sweep"] if in_sweep else [])]


def record(
    cfg: DictConfig,
    directory: RunDirectory,
    hydra_files: Mapping[str, str],
    now: Mapping[str, Any],
    resumed: Resumed | None,
    then: Mapping[str, Any] | None,
) -> None:
    """Writes what the run is made of; a resume is added to that, with what has changed since the checkpoint."""
    if resumed is None:
        directory.write_json("environment.json", now)
        return
    resumed.began = True
    (directory.path / "result.json").unlink(missing_ok=True)  # it is no longer how the run ended
    first = read_json(directory.path / "environment.json") or dict(now)
    again = {key: value for key, value in now.items() if key != "run_id"} | {"changes": list(resumed.changes)}
    directory.write_json("environment.json", first | {"resumes": [*first.get("resumes", []), again]})
    directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
    for line in resumed.changes:
        log.info("changed: %s", line)
    since = differences(then, lasting(now)) if then else []
    if since:
        log.warning("not the machine or software of the checkpoint (%s): other bits may follow", "; ".join(since))

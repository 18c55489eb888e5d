"""Chooses the name, group and tags under which loggers show a run."""

import re
from pathlib import Path

from omegaconf import DictConfig

from lmtrain.files.limited import read_limited
from lmtrain.logger.base import RunInfo
from lmtrain.logger.wandb import agent_run_id
from lmtrain.run.directory import RunDirectory, is_sweep
from lmtrain.run.identity import plain_config

MAX_OVERRIDES_BYTES = 1_000_000


def run_info(cfg: DictConfig, directory: RunDirectory, run_id: str) -> RunInfo:
    """Return the facts about the run that loggers need."""
    folder = directory.path.name
    return RunInfo(
        directory.path,
        run_id,
        name=folder if "=" in folder else f"{cfg.name}-{folder}",  # a job of a sweep is named after its overrides
        group=directory.path.parent.name,  # groups runs with the same name, or the jobs of a sweep
        config=plain_config(cfg),
        tags=_tags(directory.path),
    )


def _tags(run_dir: Path) -> list[str]:
    """Return the run's experiments, and `sweep` if it is a job of a sweep."""
    try:
        overrides = read_limited(run_dir / ".hydra" / "overrides.yaml", MAX_OVERRIDES_BYTES).decode()
    except (OSError, ValueError):
        overrides = ""
    chosen = re.search(r"^- '?experiments=\[?([\w,./-]+)", overrides, re.MULTILINE)
    in_sweep = is_sweep(run_dir.parent) or agent_run_id() is not None
    return [*(chosen[1].split(",") if chosen else []), *(["sweep"] if in_sweep else [])]

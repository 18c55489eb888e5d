"""Lets all processes of a run start with the same config, in the run directory of the first one."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from omegaconf import DictConfig

import lmtrain
from lmtrain.config.batch_size import check_shards, for_processes
from lmtrain.config.devices import check_shared_device
from lmtrain.config.overrides import quoted
from lmtrain.errors import ConfigError, LostRankError
from lmtrain.parallel.peers import SILENCE_S, Peers
from lmtrain.parallel.world import refuse_other_number
from lmtrain.run.identity import plain_config
from lmtrain.run.source_code import source_hashes
from lmtrain.terminal.as_text import differences


class Composed(Protocol):
    """A run that is ready to start or to continue."""

    @property
    def cfg(self) -> DictConfig: ...

    @property
    def directory(self) -> Path: ...


R = TypeVar("R", bound=Composed)


def composed_together(peers: Peers, compose: Callable[[Sequence[str]], R]) -> R:
    """Return what `compose` returns for the given additional overrides, after comparing it in all processes.

    The first process composes alone, because it decides the run directory and prepares missing data. Then the others
    compose the same.

    Raises:
        ConfigError: `compose` raised it, or the config, the code or the versions differ between processes.
        LostRankError: Another process found a mistake or does not answer.
    """
    try:
        return _composed_together(peers, compose)
    except ConfigError as error:
        if peers.fail(str(error)) and not peers.world.is_first:
            raise LostRankError(str(error)) from error  # the first process says so
        raise


def _composed_together(peers: Peers, compose: Callable[[Sequence[str]], R]) -> R:
    def compose_for(more: Sequence[str]) -> tuple[R, dict[str, Any]]:
        made = compose(more)
        refuse_other_number((made.cfg.get("parallel") or {}).get("world_size"), peers.world.size)
        check_shared_device(made.cfg, peers.world.size)
        for_processes(made.cfg, peers.world.size)
        check_shards(made.cfg, peers.world.size)
        peers.set_timeout((made.cfg.get("parallel") or {}).get("timeout_s", SILENCE_S))
        return made, _description(made.cfg, made.directory)

    if peers.world.is_first:
        made, own = compose_for([])
        peers.tell("start", own)
    else:
        first: Mapping[str, Any] = peers.ask("start", 0, math.inf)  # it may prepare data
        made, own = compose_for([f"hydra.run.dir={quoted(first['directory'])}"])
        if found := differences(first, own):
            raise ConfigError(f"starts with other values than rank 0: {'; '.join(found)}")
    peers.meet("composed")
    return made


def _description(cfg: DictConfig, directory: Path) -> dict[str, Any]:
    """Return what must be the same in every process of a run."""
    config = plain_config(cfg)
    return {
        "directory": str(directory),
        "config": config,
        "code": source_hashes(config),
        "lmtrain": lmtrain.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

"""Finds the run that a command continues when Slurm or torchrun has started it again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import env_override

from lmtrain.config.compose import compose_with_notes, without_hydra
from lmtrain.config.conf_source import naming_origins
from lmtrain.config.overrides import quoted
from lmtrain.config.preflight import preflight
from lmtrain.config.recorded.trust import names_that_need_trust
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.run.directory import holds_run
from lmtrain.run.identity import difference_from_run, plain_config

# What starts a command again by itself, and the environment variable with the number of its restarts.
RESTARTED_BY = {"Slurm": "SLURM_RESTART_COUNT", "torchrun": "TORCHELASTIC_RESTART_COUNT"}


@dataclass(frozen=True)
class RestartedRun:
    """A run that a restarted command continues.

    Attributes:
        directory: The run directory.
        arguments: The arguments for `resumed_run`.
        status: The status in `result.json`; None if the run was killed.
        restarted_by: What has started the command again, for a message.
    """

    directory: Path
    arguments: Sequence[str]
    status: str | None
    restarted_by: str


def restarted_run(overrides: Sequence[str]) -> RestartedRun | None:
    """Return the run that a command continues if Slurm or torchrun starts it again; None if there is none.

    In such a restart, a run in the command's directory is the one that the command has begun itself, so it goes on. In
    any other start, it is an earlier run, which `refuse_existing_run` protects.

    Raises:
        ConfigError: The config has a mistake, or the run in the directory has another config.
    """
    counts = {name: os.environ.get(variable) or "0" for name, variable in RESTARTED_BY.items()}
    restarted_by = " and ".join(name for name, count in counts.items() if count.isdecimal() and int(count))
    if not restarted_by:
        return None
    composition = compose_with_notes(overrides)
    composed = composition.config
    directory = Path(composed.hydra.run.dir)
    if not holds_run(directory):
        return None  # also if the run was killed before it had begun
    with env_override(composed.hydra.job.env_set), naming_origins(overrides, composition.choices):
        own = without_hydra(composed)
        trust = names_that_need_trust(own)
        found = difference_from_run(directory, plain_config(preflight(own, begun=True)))
    if found:
        raise ConfigError(
            f"hydra.run.dir={directory}: the run there has another config ({found}), so the restart by {restarted_by} "
            f"can't continue it; continue it as it is with resume={directory}, or give another folder"
        )
    trusted = [f"trust=[{','.join(map(quoted, trust))}]"] if trust else []
    return RestartedRun(directory, trusted, read_json(directory / "result.json").get("status"), restarted_by)

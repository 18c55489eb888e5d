"""Records what a run is made of, when it starts and each time it is resumed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmtrain.data.loader import TokenLoader
from lmtrain.files.limited import read_json
from lmtrain.model.flops import flops_per_token
from lmtrain.run.directory import RunDirectory
from lmtrain.run.environment import hardware_and_software
from lmtrain.terminal.as_text import differences

log = logging.getLogger(__name__)


@dataclass
class Resume:
    """The resume of a run: what its config changes, a line each; `began` once the run goes on."""

    changes: Sequence[str]
    began: bool = False


@dataclass(frozen=True)
class RunRequest:
    """What a command asks of a run.

    `hydra_files` are the texts for `.hydra/`, by file name. `resumed` is for a run that goes on, `lineage` is what
    `environment.json` says of the run that this one repeats, and `notes` are on how the config was composed.
    """

    cfg: DictConfig
    hydra_files: Mapping[str, str]
    resumed: Resume | None
    lineage: Mapping[str, Any]
    notes: Sequence[str]


def model_summary(model: nn.Module, loader: TokenLoader) -> dict[str, Any]:
    """Return what runs of different models are compared by."""
    return {
        "class": type(model).__name__,
        "parameters": sum(param.numel() for param in model.parameters()),
        "flops_per_token": flops_per_token(model, loader.block_size),
    }


def record_start(
    request: RunRequest,
    directory: RunDirectory,
    environment: Mapping[str, Any],
    saved_environment: Mapping[str, Any] | None,
) -> None:
    """Write what the run is made of; a resume is added to that, with what has changed since its checkpoint.

    `saved_environment` is the environment that the checkpoint was saved in.
    """
    resumed = request.resumed
    if resumed is None:
        directory.write_json("environment.json", environment)
        return
    resumed.began = True
    (directory.path / "result.json").unlink(missing_ok=True)  # it is no longer how the run ended
    first = read_json(directory.path / "environment.json") or dict(environment)
    again = {key: value for key, value in environment.items() if key != "run_id"} | {"changes": list(resumed.changes)}
    directory.write_json("environment.json", first | {"resumes": [*first.get("resumes", []), again]})
    directory.write_config(OmegaConf.to_yaml(request.cfg), request.hydra_files)
    for line in resumed.changes:
        log.info("changed: %s", line)
    since = differences(saved_environment, hardware_and_software(environment)) if saved_environment else []
    if since:
        log.warning("not the machine or software of the checkpoint (%s): other bits may follow", "; ".join(since))

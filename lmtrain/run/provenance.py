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


def model_summary(model: nn.Module, loader: TokenLoader) -> dict[str, Any]:
    """Return what runs of different models are compared by."""
    return {
        "class": type(model).__name__,
        "parameters": sum(param.numel() for param in model.parameters()),
        "flops_per_token": flops_per_token(model, loader.block_size),
    }


def record_start(
    cfg: DictConfig,
    directory: RunDirectory,
    hydra_files: Mapping[str, str],
    environment: Mapping[str, Any],
    resumed: Resume | None,
    saved_environment: Mapping[str, Any] | None,
) -> None:
    """Write what the run is made of; a resume is added to that, with what has changed since the
    checkpoint, which was saved in `saved_environment`."""
    if resumed is None:
        directory.write_json("environment.json", environment)
        return
    resumed.began = True
    (directory.path / "result.json").unlink(missing_ok=True)  # it is no longer how the run ended
    first = read_json(directory.path / "environment.json") or dict(environment)
    again = {key: value for key, value in environment.items() if key != "run_id"} | {"changes": list(resumed.changes)}
    directory.write_json("environment.json", first | {"resumes": [*first.get("resumes", []), again]})
    directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
    for line in resumed.changes:
        log.info("changed: %s", line)
    since = differences(saved_environment, hardware_and_software(environment)) if saved_environment else []
    if since:
        log.warning("not the machine or software of the checkpoint (%s): other bits may follow", "; ".join(since))

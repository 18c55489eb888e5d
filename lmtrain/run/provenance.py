"""Records the config, environment and code of a run when it starts and each time it is resumed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.data.loader import TokenLoader
from lmtrain.data.meta import text_facts
from lmtrain.files.limited import read_json
from lmtrain.loop.evaluation import Evaluator
from lmtrain.loop.training_parts import Parts
from lmtrain.model.flops import flops_per_token
from lmtrain.parallel.peers import Peers
from lmtrain.run.background import BackgroundFacts
from lmtrain.run.directory import RunDirectory
from lmtrain.run.environment import hardware_and_software
from lmtrain.terminal.as_text import differences

log = logging.getLogger(__name__)


@dataclass
class Resume:
    """A resume of a run: the lines that describe its config changes; `began` is set once the run continues."""

    changes: Sequence[str]
    began: bool = False


@dataclass(frozen=True)
class RunRequest:
    """A command's request to start or resume a run.

    Attributes:
        cfg: The checked config.
        hydra_files: The texts for the files in `.hydra/`, by file name.
        resumed: Set if the run is resumed.
        lineage: The entry in `environment.json` about the run that this one repeats.
        notes: Messages about how the config was composed, for the user.
        facts: What the environment says about machine and git.
        kept: What `auto` became in the run that is continued, by config key.
        resolved: What `auto` became before the parts are built, by config key.
        peers: The connection to the other processes of the run, if there are any.
    """

    cfg: DictConfig
    hydra_files: Mapping[str, str]
    resumed: Resume | None
    lineage: Mapping[str, Any]
    notes: Sequence[str]
    facts: BackgroundFacts
    kept: Mapping[str, Any]
    resolved: dict[str, Any] = field(default_factory=dict)
    peers: Peers | None = None


def model_summary(parts: Parts) -> dict[str, Any]:
    """Return the facts about a model by which runs are compared: class, parameters and FLOPs per token."""
    model = parts.model
    return {
        "class": parts.parallel.class_name(model),
        "parameters": sum(param.numel() for param in model.parameters()),
        "flops_per_token": flops_per_token(model, parts.train_loader.block_size),
    }


def evaluation_summary(
    parts: Parts, evaluator: Evaluator, fingerprints: Mapping[str, str], after_step: int
) -> dict[str, Any]:
    """Return what the evaluations after a step measure; losses can be compared only where this is the same.

    It describes the validation tokens in `val`, and in `train_eval` those of the training split (null: none): split,
    fingerprint of the tokens, text, tokenizer, block size, and number and selection of the target tokens.
    """
    val, train = parts.val_loader, parts.train_loader
    training = evaluator.train_sequences
    return {
        "after_step": after_step,
        "val": _measured(val, fingerprints["val"], evaluator.sequences),
        "train_eval": _measured(train, fingerprints["train"], training) if training else None,
        "mask_documents": getattr(parts.model, "end_of_text", None) is not None,
        "dtype": parts.system.dtype_name,
    }


def _measured(loader: TokenLoader, fingerprint: str, sequences: int | None) -> dict[str, Any]:
    return {
        "split": loader.split,
        "data": fingerprint,
        **text_facts(loader.metas, loader.split),
        "block_size": loader.block_size,
        **loader.measured(sequences),
    }


def record_start(
    request: RunRequest,
    directory: RunDirectory,
    environment: Mapping[str, Any],
    saved_environment: Mapping[str, Any] | None,
) -> None:
    """Write the environment of a new run; for a resume, add an entry with the changes since its checkpoint.

    `saved_environment` is the environment in which the checkpoint was saved.
    """
    resumed = request.resumed
    if resumed is None:
        directory.write_json("environment.json", environment)
        return
    resumed.began = True
    (directory.path / "result.json").unlink(missing_ok=True)  # the run has not ended any more
    first = read_json(directory.path / "environment.json") or dict(environment)
    again = {key: value for key, value in environment.items() if key != "run_id"} | {"changes": list(resumed.changes)}
    directory.write_json("environment.json", first | {"resumes": [*first.get("resumes", []), again]})
    directory.write_config(OmegaConf.to_yaml(request.cfg), request.hydra_files)
    for line in resumed.changes:
        log.info("changed: %s", line)
    since = differences(saved_environment, hardware_and_software(environment)) if saved_environment else []
    if since:
        log.warning(
            "machine or software have changed since the checkpoint (%s); results may differ in the last digits",
            "; ".join(since),
        )

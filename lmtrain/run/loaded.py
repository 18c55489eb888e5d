"""Loads a finished or running run: its config, model and tokenizer."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from lmtrain.checkpoint.folder import CheckpointFolder, load_checkpoint
from lmtrain.checkpoint.snapshot import train_state
from lmtrain.checkpoint.steps import CHECKPOINTS
from lmtrain.config.build import raising_config_errors
from lmtrain.config.recorded.trust import check_trust, read_saved
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer
from lmtrain.errors import BrokenCheckpointError, ConfigError
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.parts import build_model, build_system, check_model_size
from lmtrain.run.directory import RUN_FILES
from lmtrain.system import System


@dataclass(frozen=True)
class LoadedRun:
    """A run's model at one checkpoint, on the device of `system`."""

    cfg: DictConfig
    model: nn.Module
    tokenizer: StoredTokenizer | None
    system: System
    step: int


def load_run(run_dir: Path, which: str, device: str, trusted: Collection[str] = ()) -> LoadedRun:
    """Load a checkpoint of a run, which may still be training.

    Args:
        run_dir: The run directory.
        which: `best`, `latest` or a step number.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trusted: Names of classes and functions that may be imported in addition to those that `check_trust` allows.

    Raises:
        ConfigError: The run or checkpoint does not exist or is broken, or its config names code that is not trusted.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: not a run directory (no config.yaml)")
    with raising_config_errors():
        refuse_links(run_dir, (*RUN_FILES, CHECKPOINTS), below=[CHECKPOINTS])
    checkpoints = CheckpointFolder.of_run(run_dir)
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"{run_dir}: has no checkpoint yet; wait until the run has saved one")
    path = checkpoints.at(_step(which, checkpoints))
    if not path.is_dir():
        raise ConfigError(f"{run_dir}: no checkpoint {which!r}; there are steps {', '.join(map(str, steps))}")
    cfg = read_saved(run_dir / "config.yaml")
    check_trust(cfg, trusted, run_dir, option="--trust ")
    with raising_config_errors():
        check_model_size(cfg, [path])
        system = build_system(cfg, device=device, compile=False)
        model = build_model(cfg)
        has_tokenizer = (run_dir / TOKENIZER_FILE).is_file()
        tokenizer = load_tokenizer(run_dir) if has_tokenizer else None
    try:
        loaded = load_checkpoint(path)
        step = train_state(loaded).step
        model.load_state_dict(dict(loaded.tensors.get("model", {})))
    except (BrokenCheckpointError, RuntimeError, ValueError) as error:
        others = ", ".join(str(other) for other in steps if checkpoints.at(other) != path)
        way_out = f"; use --checkpoint with one of the other steps: {others}" if others else ""
        raise ConfigError(f"{path}: {error}{way_out}") from error
    return LoadedRun(cfg, model.to(system.device).eval(), tokenizer, system, step)


def _step(which: str, checkpoints: CheckpointFolder) -> int:
    """Return the step that `which` means. The links `best` and `latest` are not used; a kill may leave them stale."""
    latest = checkpoints.steps()[-1]
    if which == "latest":
        return latest
    if which == "best":
        # result.json is written last, so it includes an evaluation after the last checkpoint.
        result = read_json(checkpoints.path.parent / "result.json")
        state = read_json(checkpoints.at(latest) / "state.json").get("train", {})
        best = result.get("best_step") or state.get("best_step")
        return int(best) if best in checkpoints.steps() else latest
    if not which.isdecimal():
        raise ConfigError(f"--checkpoint {which}: give best, latest or a step number")
    return int(which)

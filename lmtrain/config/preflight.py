"""What is settled before a run starts, without torch: the config is right, the token files are there and fit it."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.steps import step_to_fork
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.token_files import ensure_tokens, fill_in_from_data, token_folders
from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed

# The packages, and extras of their names, that optional parts need.
EXTRAS = {
    "lmtrain.logger.tensorboard.TensorBoardLogger": "tensorboard",
    "lmtrain.logger.trackio.TrackioLogger": "trackio",
}


def preflight(composed: DictConfig, *, begun: bool = False) -> DictConfig:
    """Return the checked config of a run that can start, or that has `begun` and goes on.

    Raises:
        ConfigError: naming everything that is wrong with config or data.
    """
    return check_data(check_new_run(composed, begun=begun), begun=begun)


def check_new_run(composed: DictConfig, *, begun: bool = False) -> DictConfig:
    """Return the checked config of a run; do not look at its data yet.

    A run that has `begun` has checkpoints, and may have outlived the one that it is a fork of.

    Raises:
        ConfigError: naming everything that is wrong with the config.
    """
    if composed.get("resume") is not None:
        raise ConfigError(f"resume={composed.resume}: give it on the command line, as resume=RUN_DIR")
    if not begun:
        _check_origin(composed)
    cfg = check(composed)
    _check_extras(cfg)
    return cfg


def check_data(cfg: DictConfig, *, begun: bool = False) -> DictConfig:
    """Return a checked config with what its data knows filled in.

    Token files that are missing and have a recipe are made, except for a run that has `begun`, which has its data.

    Raises:
        ConfigError: naming what is wrong with the data.
    """
    with raising_config_errors():
        ensure_tokens(cfg, prepares=not begun)
        return fill_in_from_data(cfg)


def _check_origin(composed: DictConfig) -> None:
    """Check that a fork has a checkpoint to start from; whether it is whole is seen when it is read."""
    run, step = composed.get("fork"), composed.get("step")
    if run is None:
        if step is not None:
            raise ConfigError(f"step={step}: goes with fork=RUN_DIR, and is the step of its checkpoint")
        return
    if isinstance(step, int):  # anything else is refused by `check`
        with raising_config_errors():
            step_to_fork(Path(run), step)


def _check_extras(cfg: DictConfig) -> None:
    for name, node in cfg.logger.items():
        package = EXTRAS.get(node["_target_"])
        if package and not is_installed(package):
            raise ConfigError(f"logger={name}: needs the {package} package; pip install 'lmtrain[{package}]'")


def check_for_plan(composed: DictConfig) -> tuple[DictConfig, list[str]]:
    """Return the checked config of a run that is only planned, and the data it lacks, if any: none is prepared.

    Without its token files a model's vocabulary is the one that `prepare` is asked for.

    Raises:
        ConfigError: naming everything that is wrong with config or data.
    """
    if composed.get("resume") is not None:
        raise ConfigError(f"resume={composed.resume}: a plan is of a new run; give its overrides instead")
    _check_origin(composed)
    cfg = check(composed)
    missing = [f"{key}={path}" for key, path in token_folders(cfg.data).items() if not any(path.glob("*.bin"))]
    if not missing:
        with raising_config_errors():
            return fill_in_from_data(cfg), []
    if cfg.model.get("vocab_size", 0) is None:
        asked = OmegaConf.select(cfg, "prepare.tokenizer.vocab_size")
        if asked is None:
            raise ConfigError(
                f"model.vocab_size=null: {missing[0]} has no token files to take it from; give a number, or prepare "
                "them first"
            )
        OmegaConf.update(cfg, "model.vocab_size", asked)
    if cfg.model.get("mask_documents") and cfg.model.get("end_of_text", 0) is None:
        OmegaConf.update(cfg, "model.end_of_text", 0)  # which one makes no difference to a plan
    return cfg, missing

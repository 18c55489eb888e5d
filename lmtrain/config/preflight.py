"""Checks before a run starts, without torch, that the config is valid and its token files exist and fit it."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.steps import checkpoint_steps, step_to_fork
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.recorded.run_names import find_run
from lmtrain.config.recorded.trust import CONFIG, read_saved
from lmtrain.config.token_files import ensure_tokens, fill_in_from_data, token_folders
from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed

# The package that an optional part needs; the extra that installs it has the same name.
EXTRAS = {
    "lmtrain.logger.tensorboard.TensorBoardLogger": "tensorboard",
    "lmtrain.logger.trackio.TrackioLogger": "trackio",
}


def preflight(composed: DictConfig, *, begun: bool = False) -> DictConfig:
    """Return the checked config of a new run, or of a run that has `begun` and is resumed.

    Raises:
        ConfigError: The config or the data is wrong; the message lists all mistakes.
    """
    return check_data(check_new_run(composed, begun=begun), begun=begun)


def check_new_run(composed: DictConfig, *, begun: bool = False) -> DictConfig:
    """Return the checked config of a run without looking at its data.

    For a run that has `begun`, the origin of a fork is not checked: the run has its own checkpoints.

    Raises:
        ConfigError: The config is wrong; the message lists all mistakes.
    """
    if composed.get("resume") is not None:
        raise ConfigError(
            f"resume={composed.resume}: can't be set in a config; give resume=RUN_DIR on the command line"
        )
    if not begun:
        _check_origin(composed)
    cfg = check(composed)
    _check_extras(cfg)
    if not begun and cfg.get("fork") is None and cfg.get("init_from") is not None:
        cfg.init_from = str(_weights_to_begin_with(cfg.init_from))
    return cfg


def check_data(cfg: DictConfig, *, begun: bool = False) -> DictConfig:
    """Return a checked config with the values that depend on the data filled in.

    Missing token files are prepared if there is a recipe, except for a run that has `begun`.

    Raises:
        ConfigError: The data is missing, or does not fit the config.
    """
    with raising_config_errors():
        ensure_tokens(cfg, prepares=not begun)
        return fill_in_from_data(cfg)


def _check_origin(composed: DictConfig) -> None:
    """Check that a fork has a checkpoint to start from; its files are verified later, when they are read."""
    run, step = composed.get("fork"), composed.get("step")
    if run is None:
        if step is not None:
            raise ConfigError(f"step={step}: works only with fork=RUN_DIR, whose checkpoint it selects; add that")
        return
    if (folder := composed.get("init_from")) is not None and folder not in _begun_with(Path(run)):
        raise ConfigError(f"init_from={folder}: a fork starts with the weights of fork={run}; give only one of them")
    if isinstance(step, int):  # anything else is refused by `check`
        with raising_config_errors():
            step_to_fork(Path(run), step)


def _weights_to_begin_with(name: str) -> Path:
    """Return the folder that `init_from` means: a Hugging Face folder, or a run with a checkpoint, also by its name."""
    option = "init_from="
    path = Path(name)
    if not (path / "config.json").is_file():
        path = find_run(name, option)
    if not path.is_dir():
        raise ConfigError(f"{option}{name}: no such folder; give a Hugging Face folder or a run")
    if not (path / "config.json").is_file() and not (path / CONFIG).is_file():
        raise ConfigError(f"{option}{name}: neither a Hugging Face folder (no config.json) nor a run (no {CONFIG})")
    if (path / CONFIG).is_file() and not checkpoint_steps(path):
        raise ConfigError(f"{option}{path}: has no checkpoint")
    return path


def _begun_with(run: Path) -> list[object]:
    """Return the folder that a run itself began with, as it was given and as a path; its forks have it, too."""
    files = (run / ".hydra" / CONFIG, run / CONFIG)
    return [read_saved(path).get("init_from") for path in files if path.is_file()]


def _check_extras(cfg: DictConfig) -> None:
    for name, node in cfg.logger.items():
        package = EXTRAS.get(node["_target_"])
        if package and not is_installed(package):
            raise ConfigError(
                f"logger={name}: needs the package {package}; install it with pip install 'lmtrain[{package}]'"
            )


def check_for_plan(composed: DictConfig, command: str = "plan") -> tuple[DictConfig, list[str]]:
    """Return the checked config of a run to plan, and its missing data as `key=path` texts; prepare nothing.

    If token files are missing, the model's vocabulary has the size that `prepare` would aim for. Messages name
    `command`.

    Raises:
        ConfigError: The config or the data is wrong; the message lists all mistakes.
    """
    if composed.get("resume") is not None:
        raise ConfigError(
            f"resume={composed.resume}: {command} takes the config of a new run; give the overrides that your run was "
            "started with"
        )
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
        OmegaConf.update(cfg, "model.end_of_text", 0)  # any id gives the same plan
    return cfg, missing

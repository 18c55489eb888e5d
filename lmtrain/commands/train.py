"""Training, without a verb: `python -m lmtrain [overrides]`, `-m` for a sweep, `resume=RUN_DIR` to go on."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lmtrain.config import (
    HYDRA_VERSION_BASE,
    ConfigError,
    apply_overrides,
    check,
    compose,
    set_up_hydra,
    without_hydra,
)
from lmtrain.differences import differences
from lmtrain.launcher import SweepFailedError, SweepStoppedError, search_path
from lmtrain.paths import shipped
from lmtrain.preflight import preflight, refuse_existing_run

# What may change on a resume: nothing of it changes a bit of the training.
RESUMABLE = (
    "data.path",  # and data.paths; the fingerprint tells whether it is the same data
    "prepare",
    "trainer.max_steps",
    "trainer.eval_",
    "trainer.log_interval",
    "trainer.checkpoint_interval",
    "trainer.keep_checkpoints",
    "scheduler.max_steps",
    "logger",
    "sample_tokens",
    "resume",
)


def main(arguments: Sequence[str]) -> int:
    """Hands the command line to Hydra; the exit code of the run, or of the worst job of a sweep."""
    set_up_hydra()
    # Hydra prints errors its own way and leaves with 1; like this they come to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags = get_args_parser().parse_args(list(arguments))
    asks = flags.help or flags.hydra_help or flags.cfg or flags.info
    if not asks and not flags.multirun:
        # Before Hydra makes a run directory: a mistake leaves nothing behind.
        composed = compose([*search_path(flags.config_dir), *flags.overrides], with_hydra=True)
        run_dir = Path(composed.hydra.run.dir)
        preflight(without_hydra(composed))
        refuse_existing_run(run_dir)
    exit_codes: list[int] = []

    def task(composed: DictConfig) -> float | None:
        cfg = preflight(composed)
        from lmtrain.train import run

        single = HydraConfig.get().mode is RunMode.RUN
        try:
            outcome = run(cfg, Path(HydraConfig.get().runtime.output_dir))
        except ConfigError as error:
            if not single:
                raise
            mistakes.append(error)
            return None
        exit_codes.append(outcome.exit_code)
        if outcome.exit_code and not single:
            raise RuntimeError(f"exit code {outcome.exit_code}")  # tells launchers that run jobs in this process
        return outcome.objective

    mistakes: list[ConfigError] = []
    decorate: Any = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(shipped("conf")), config_name="config")
    try:
        decorate(task)()
    except OSError as error:  # the run directory can't be made
        raise ConfigError(str(error)) from error
    except SweepFailedError:
        return 1
    except SweepStoppedError as stopped:
        return 128 + stopped.number
    if mistakes:
        raise mistakes[0]
    return max(exit_codes, default=0)


def resume(run_dir: Path, overrides: Sequence[str]) -> int:
    """Continues a run in its own directory, with the config it was started with.

    Raises:
        ConfigError: no run there, or a change that would make it another run.
    """
    composed_path, resolved_path = run_dir / ".hydra" / "config.yaml", run_dir / "config.yaml"
    if not composed_path.is_file() or not resolved_path.is_file():
        raise ConfigError(f"resume={run_dir}: no run there (no config.yaml and .hydra/config.yaml)")
    if flags := [text for text in overrides if text.startswith("-")]:
        raise ConfigError(f"{flags[0]}: resume takes no flags, only key=value changes")
    set_up_hydra()
    composed, before = OmegaConf.load(composed_path), OmegaConf.load(resolved_path)
    assert isinstance(composed, DictConfig)
    changed = apply_overrides(composed, overrides)
    # Relative paths, and modules of the user's own, are those of the folder that the run was started in.
    run_dir = run_dir.resolve()
    started_in = OmegaConf.select(OmegaConf.load(run_dir / ".hydra" / "hydra.yaml"), "hydra.runtime.cwd")
    if started_in and Path(started_in).is_dir():
        os.chdir(started_in)
        sys.path.insert(0, started_in)
    checked = check(changed)
    for key in ("vocab_size", "end_of_text"):  # the data's
        if checked.model.get(key, 0) is None:
            checked.model[key] = before.model[key]
    after = OmegaConf.to_container(checked)
    refused = [line for line in differences(OmegaConf.to_container(before), after) if not line.startswith(RESUMABLE)]
    if refused:
        raise ConfigError(
            f"resume={run_dir}: would change the run ({'; '.join(refused)}); start a new one for that. "
            "A resume may change trainer.max_steps, the intervals, evaluation and loggers"
        )
    cfg = preflight(changed)
    from lmtrain.train import run

    return run(cfg, run_dir, resume=changed).exit_code

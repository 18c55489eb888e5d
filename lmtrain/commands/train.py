"""Training, without a verb: `python -m lmtrain [overrides]`, `-m` for a sweep."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from lmtrain.config import HYDRA_VERSION_BASE, ConfigError, compose, explain, texts_for_hydra_folder, without_hydra
from lmtrain.job_directory import searched
from lmtrain.lineage import forked
from lmtrain.paths import shipped
from lmtrain.preflight import preflight, refuse_existing_run
from lmtrain.sweep_report import SweepEndedError
from lmtrain.sweep_task import RunJob

# Launchers of others: the module that has to be there, and the extra that brings it.
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def main(arguments: Sequence[str]) -> int:
    """Hands the command line to Hydra; the exit code of the run, or of the worst job of a sweep."""
    # Hydra prints errors its own way and leaves with 1; like this they come to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = forked(arguments)
    flags = get_args_parser().parse_args(list(arguments))
    _check_launcher(flags.overrides)
    asks = flags.help or flags.hydra_help or flags.cfg or flags.info
    if not asks and not flags.multirun:
        # Before Hydra makes a run directory: a mistake leaves nothing behind.
        composed = compose(
            [*searched([flags.config_dir] if flags.config_dir else []), *flags.overrides], with_hydra=True
        )
        run_dir = Path(composed.hydra.run.dir)
        try:
            preflight(without_hydra(composed))
        except ConfigError as error:
            raise ConfigError(_with_origin(str(error), flags.overrides)) from error
        refuse_existing_run(run_dir)
    exit_codes: list[int] = []
    mistakes: list[ConfigError] = []

    def run_here(composed: DictConfig) -> float | None:
        cfg = preflight(composed)
        from lmtrain.train import run

        settings = HydraConfig.get()
        try:
            outcome = run(cfg, Path(settings.runtime.output_dir), texts_for_hydra_folder(composed, settings))
        except ConfigError as error:
            mistakes.append(error)
            return None
        exit_codes.append(outcome.exit_code)
        return outcome.objective

    sys.argv[1:] = arguments  # where Hydra reads them
    decorate: Any = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(shipped("conf")), config_name="config")
    try:
        decorate(RunJob(Path.cwd()) if flags.multirun else run_here)()
    except HydraException as error:
        raise ConfigError(explain(error, flags.overrides)) from error
    except OSError as error:  # the run directory can't be made
        raise ConfigError(str(error)) from error
    except SweepEndedError as ended:
        return ended.exit_code
    if mistakes:
        raise mistakes[0]
    return max(exit_codes, default=0)


def _with_origin(problems: str, overrides: Sequence[str]) -> str:
    """An unknown key that is not on the command line was set by the experiment, for another choice of its group."""
    experiment = next((text for text in overrides if text.startswith("experiments=")), None)
    lines = problems.splitlines()
    for number, line in enumerate(lines):
        key = line.partition("=")[0]
        given = any(text.lstrip("+").startswith(f"{key}=") for text in overrides)
        if experiment and ": unknown key" in line and not given:
            lines[number] = f"{line}; set by {experiment}; '~{key}' leaves it out"
    return "\n".join(lines)


def _check_launcher(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, _, choice = override.partition("=")
        if key != "hydra/launcher" or choice not in LAUNCHERS:
            continue
        module, extra = LAUNCHERS[choice]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"{override}: not installed here; pip install -e '.[{extra}]'") from error

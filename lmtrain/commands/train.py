"""Training, without a verb: `python -m lmtrain [overrides]`, `-m` for a sweep."""

import argparse
import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from lmtrain.commands.sweep import _check_launcher, _hand_to_hydra
from lmtrain.config.compose import MENU, compose, explain, texts_for_hydra_folder, without_hydra
from lmtrain.config.preflight import preflight
from lmtrain.config.recompose import forked
from lmtrain.errors import ConfigError, SweepEndedError
from lmtrain.run.directory import refuse_existing_run
from lmtrain.sweep.job_directory import searched
from lmtrain.sweep.task import RunJob

# Flags of Hydra's that jobs of sweeps, resumes and forks could not follow.
REFUSED = {
    "config_name": "the menu is conf/config.yaml; a choice of yours goes to ./conf, a composition to ./experiments",
    "config_path": "configs of yours go to ./conf and ./experiments, or to a folder that --config-dir adds",
    "experimental_rerun": "lmtrain repeats a run with --rerun RUN_DIR",
}


def main(arguments: Sequence[str]) -> int:
    """The exit code of the run, or of the worst job of a sweep."""
    # Hydra prints errors its own way and leaves with 1; like this they come to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = forked(arguments)
    flags = get_args_parser().parse_args(list(arguments))
    _check_flags(flags)
    sys.argv[1:] = arguments  # where Hydra reads them, and what a run records
    asks = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    try:
        if asks or flags.multirun:
            _hand_to_hydra(RunJob(Path.cwd()))
            return 0
        folders = searched([flags.config_dir] if flags.config_dir else [])
        return _run([*folders, *flags.overrides])
    except HydraException as error:
        raise ConfigError(explain(error, flags.overrides)) from error
    except OSError as error:  # a folder that can't be made, say
        raise ConfigError(str(error)) from error
    except SweepEndedError as ended:
        return ended.exit_code


def _check_flags(flags: argparse.Namespace) -> None:
    for name, way_out in REFUSED.items():
        if (given := getattr(flags, name)) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}={given}: {way_out}")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise ConfigError(f"--config-dir={flags.config_dir}: no such folder")
    if flags.resolve and not (flags.cfg or flags.help):
        raise ConfigError("--resolve: goes with --cfg or --help; a run's own config.yaml is resolved")
    _check_launcher(flags.overrides)


def _run(overrides: Sequence[str]) -> int:
    """As Hydra runs a job, but of a config that is composed once, and checked before anything is made: a mistake leaves
    nothing behind."""
    composed = compose(overrides, with_hydra=True)
    settings = composed.hydra
    if settings.mode not in (None, RunMode.RUN):
        raise ConfigError(f"hydra.mode={settings.mode.name}: add -m for a sweep")
    if settings.job.chdir:
        raise ConfigError("hydra.job.chdir=true: relative paths are those of the folder that the command is given in")
    settings.mode = RunMode.RUN
    run_dir = Path(settings.run.dir)  # before the copy, which then has the same time and id in it
    try:
        with env_override(settings.job.env_set):
            cfg = preflight(without_hydra(copy.deepcopy(composed)))
    except ConfigError as error:
        raise ConfigError(_with_origin(str(error), overrides)) from error
    refuse_existing_run(run_dir)
    mistakes: list[ConfigError] = []

    def train(task_config: DictConfig) -> int | None:
        from lmtrain.train import run

        hydra_files = texts_for_hydra_folder(task_config, HydraConfig.get())
        try:
            return run(cfg, Path(HydraConfig.get().runtime.output_dir), hydra_files).exit_code
        except ConfigError as error:  # which Hydra would announce in words of its own
            mistakes.append(error)
            return None

    callbacks = Callbacks(composed)
    callbacks.on_run_start(config=composed, config_name=MENU)
    context = HydraContext(ConfigLoaderImpl(ConfigSearchPathImpl()), callbacks)  # of which run_job uses these alone
    job = run_job(train, composed, "hydra.run.dir", None, context)
    callbacks.on_run_end(config=composed, config_name=MENU, job_return=job)
    if mistakes:
        raise mistakes[0]
    exit_code: int = job.return_value  # or the exception that ended it
    return exit_code


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

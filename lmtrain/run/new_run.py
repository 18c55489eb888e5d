"""Starts every new run: composes and checks its config, checks its directory, prepares its data, and runs it as a job.

Training, jobs of a sweep, forks, `--rerun` and `import` all start here.
"""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hydra.core.utils import env_override, run_job
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose_with_notes, explain_hydra_error, hydra_folder_texts, without_hydra
from lmtrain.config.conf_source import MENU, naming_origins
from lmtrain.config.hydra_internals import context_of_one_run
from lmtrain.config.preflight import check_data, check_new_run
from lmtrain.config.token_files import fill_in_from_data, token_folders
from lmtrain.errors import ConfigError, os_error_line
from lmtrain.files.durable import make_folder
from lmtrain.run.directory import refuse_existing_run, refuse_used_directory

T = TypeVar("T")


@dataclass(frozen=True)
class NewRun:
    """A new run that is ready to start. Only missing token files have been written so far.

    Attributes:
        cfg: The resolved and checked config.
        directory: The run directory; it contains no run.
        hydra_files: The texts for the files in `.hydra/`, by file name.
        composed: The config as composed by Hydra, with Hydra's own settings.
        notes: Messages about surprises in the composition, for the user.
    """

    cfg: DictConfig
    directory: Path
    hydra_files: Mapping[str, str]
    composed: DictConfig
    notes: Sequence[str] = ()


def new_run(overrides: Sequence[str], *, needs_empty_directory: bool = False) -> NewRun:
    """Compose and check a new run, and prepare its data if that is missing and there is a recipe.

    Raises:
        ConfigError: There is a mistake in config or data, or the directory already contains a run (with
            `needs_empty_directory`: contains anything). Nothing is left behind in this case.
    """
    composition = compose_with_notes(overrides)
    composed = composition.config
    settings = composed.hydra
    if settings.mode not in (None, RunMode.RUN):
        raise ConfigError(f"hydra.mode={settings.mode.name}: is not supported; give -m for a sweep")
    if settings.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: is not supported; relative paths start at the folder in which the command is started"
        )
    settings.mode = RunMode.RUN
    directory = Path(settings.run.dir)  # resolved before the copy, so that the copy has the same time and id
    settings.runtime.output_dir = os.path.abspath(directory)
    own = without_hydra(copy.deepcopy(composed))
    with env_override(settings.job.env_set):
        with naming_origins(overrides, composition.choices):
            cfg = check_new_run(own)
        (refuse_used_directory if needs_empty_directory else refuse_existing_run)(directory)
        hydra_files = hydra_folder_texts(own, settings)
        cfg = check_data(cfg)
    return NewRun(cfg, directory, hydra_files, composed, composition.notes)


def config_of_new_run(overrides: Sequence[str]) -> tuple[DictConfig, Sequence[str]]:
    """Compose and check the config of a run without preparing its data; also return the notes to show.

    A value that depends on the data, such as `model.vocab_size: null`, is filled in if the token files exist.

    Raises:
        ConfigError: There is a mistake in config or data.
    """
    composition = compose_with_notes(overrides)
    composed = composition.config
    with env_override(composed.hydra.job.env_set):
        with naming_origins(overrides, composition.choices):
            cfg = check_new_run(without_hydra(composed))
        if all(any(path.glob("*.bin")) for path in token_folders(cfg.data).values()):
            with raising_config_errors():
                cfg = fill_in_from_data(cfg)
    return cfg, composition.notes


def start(run: NewRun, train: Callable[[NewRun], T]) -> T:
    """Call `train` as Hydra runs a job, with its callbacks and `hydra.job.env_set`, and return its result.

    An exception in `train` is raised again. `train` must import torch itself, after the environment variables are set.

    Raises:
        ConfigError: The directory or a callback can't be created.
    """
    mistakes: list[ConfigError] = []

    def job(task_config: DictConfig) -> T | None:
        try:
            return train(run)
        except ConfigError as error:  # kept from Hydra, which would report it in its own words
            mistakes.append(error)
            return None

    try:
        context = context_of_one_run(run.composed)
        context.callbacks.on_run_start(config=run.composed, config_name=MENU)
        make_folder(run.directory)  # Hydra creates it too, but does not wait until it is on the disk
        returned = run_job(job, run.composed, "hydra.run.dir", None, context)
        context.callbacks.on_run_end(config=run.composed, config_name=MENU, job_return=returned)
        if mistakes:
            raise mistakes[0]
        ended: T = returned.return_value  # raises the exception of a failed job
    except HydraException as error:  # a callback can't be created
        raise ConfigError(explain_hydra_error(error, run.composed.hydra.overrides.task)) from error
    except OSError as error:  # the folder can't be created
        raise ConfigError(os_error_line(error)) from error
    return ended

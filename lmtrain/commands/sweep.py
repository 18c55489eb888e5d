"""`python -m lmtrain -m …`: a sweep or a search, run by Hydra's launchers and sweepers."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra

from lmtrain.config.compose import HYDRA_VERSION_BASE, compose_with_notes
from lmtrain.config.conf_source import MENU
from lmtrain.config.overrides import search_path_override
from lmtrain.config.shipped import shipped
from lmtrain.config.written_for import reading_experiments, without_left_out
from lmtrain.errors import ConfigError

# Launchers in separate packages: the module that must be importable, and the extra that installs it.
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def run_hydra(flags: argparse.Namespace) -> None:
    """Let Hydra run `sys.argv`: a sweep, or printing a config (`--cfg`), help, information or shell completion.

    Raises:
        ConfigError, SweepEndedError: Raised by the sweepers.
        HydraException: The config cannot be composed.
        SystemExit: Hydra has shown its help.
    """
    # Imported here because a plain run does not need them.
    from lmtrain.sweep.plugins import register_plugins
    from lmtrain.sweep.task import RunJob

    register_plugins()
    decorate: Any = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(shipped("conf")), config_name=MENU)
    run = decorate(RunJob(Path.cwd()))
    if not flags.cfg or flags.multirun:
        run()
        return
    # Hydra composes the printed config itself, so it must leave out the same parts of experiments.
    search_path = search_path_override([flags.config_dir] if flags.config_dir else [])
    composition = compose_with_notes([*search_path, *flags.overrides])
    for note in composition.notes:
        print(note, file=sys.stderr)
    others = [text for text in sys.argv[1:] if text not in flags.overrides]
    sys.argv[1:] = [*others, *without_left_out(flags.overrides, composition.left_out)]
    with reading_experiments(composition.left_out):
        run()


def check_launcher(overrides: Sequence[str]) -> None:
    """Raise ConfigError if the overrides choose a launcher that is not installed."""
    for override in overrides:
        key, _, choice = override.partition("=")
        if key != "hydra/launcher" or choice not in LAUNCHERS:
            continue
        module, extra = LAUNCHERS[choice]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"{override}: is not installed; install it with pip install 'lmtrain[{extra}]'"
            ) from error

"""Training, without a verb: `python -m lmtrain [overrides]`, `-m` for a sweep."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException

from lmtrain.commands.sweep import check_launcher, run_hydra
from lmtrain.config.compose import explain_hydra_error
from lmtrain.config.hydra_internals import parse_flags
from lmtrain.config.overrides import search_path_override
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError, SweepEndedError, os_error_line
from lmtrain.run.new_run import NewRun, new_run, start
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.terminal.streams import outlive_reader

# Flags of Hydra's that jobs of sweeps, resumes and forks could not follow.
REFUSED = {
    "config_name": "the menu is conf/config.yaml; a choice of yours goes to ./conf, a composition to ./experiments",
    "config_path": "configs of yours go to ./conf and ./experiments, or to a folder that --config-dir adds",
    "experimental_rerun": "lmtrain repeats a run with --rerun RUN_DIR",
}


def main(arguments: Sequence[str]) -> int:
    """Train, sweep, or print what Hydra is asked for; return the exit code."""
    # Hydra prints errors its own way and leaves with 1; like this they come to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = expand_fork(arguments)
    flags = parse_flags(arguments)
    _check_flags(flags)
    sys.argv[1:] = arguments  # where Hydra reads them, and what a run records
    asks = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    if not asks:
        outlive_reader()
    try:
        if asks or flags.multirun:
            run_hydra(flags)
            return 0
        register_directory_resolver()  # for a callback that resolves all of Hydra's settings
        search_path = search_path_override([flags.config_dir] if flags.config_dir else [])
        return start(new_run([*search_path, *flags.overrides]), _train)
    except HydraException as error:
        raise ConfigError(explain_hydra_error(error, flags.overrides)) from error
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        raise
    except OSError as error:  # a folder that can't be made, say
        raise ConfigError(os_error_line(error)) from error
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
    check_launcher(flags.overrides)


def _train(run: NewRun) -> int:
    from lmtrain.train_run import run as train  # torch, which nothing before needs

    return train(run.cfg, run.directory, run.hydra_files, notes=run.notes).exit_code

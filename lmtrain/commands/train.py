"""`python -m lmtrain [overrides]`: trains a model, runs a sweep with `-m`, or continues a run with `resume=`."""

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

# Hydra's flags that jobs of sweeps, resumes and forks could not repeat.
REFUSED_FLAGS = {
    "config_name": "the main config is always conf/config.yaml; put your own choices into ./conf and your own "
    "experiments into ./experiments",
    "config_path": "put your own configs into ./conf and ./experiments, or into a folder given with --config-dir",
    "experimental_rerun": "repeat a run with --rerun RUN_DIR",
}


def main(arguments: Sequence[str]) -> int:
    """Train, run a sweep, or let Hydra print what a flag requests; return the exit code."""
    # Without this, Hydra would print errors itself and exit with code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = expand_fork(arguments)
    flags = parse_flags(arguments)
    _check_flags(flags)
    sys.argv[1:] = arguments  # Hydra reads them from here, and a run records them
    asks = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    if not asks:
        outlive_reader()
    try:
        if asks or flags.multirun:
            run_hydra(flags)
            return 0
        register_directory_resolver()  # a callback may resolve all of Hydra's settings
        search_path = search_path_override([flags.config_dir] if flags.config_dir else [])
        return start(new_run([*search_path, *flags.overrides]), _train)
    except HydraException as error:
        raise ConfigError(explain_hydra_error(error, flags.overrides)) from error
    except BrokenPipeError:  # handled in __main__
        raise
    except OSError as error:  # such as a folder that can't be created
        raise ConfigError(os_error_line(error)) from error
    except SweepEndedError as ended:
        return ended.exit_code


def resume(run_dir: Path, arguments: Sequence[str]) -> int:
    """Continue a run with its original config and the given changes; return the exit code.

    Raises:
        ConfigError: The run can't be resumed; see `resumed_run`.
    """
    from lmtrain.run.resumed_run import resumed_run

    again = resumed_run(run_dir, arguments)
    from lmtrain.run.provenance import Resume  # loads torch, which error messages need not wait for
    from lmtrain.train_run import run

    return run(again.cfg, again.directory, again.hydra_files, resumed=Resume(again.changes)).exit_code


def _check_flags(flags: argparse.Namespace) -> None:
    for name, way_out in REFUSED_FLAGS.items():
        if (given := getattr(flags, name)) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}={given}: {way_out}")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise ConfigError(f"--config-dir={flags.config_dir}: no such folder")
    if flags.resolve and not (flags.cfg or flags.help):
        raise ConfigError("--resolve: works only with --cfg or --help; a run's config.yaml is always resolved")
    check_launcher(flags.overrides)


def _train(run: NewRun) -> int:
    from lmtrain.train_run import run as train  # loads torch, which nothing before needs

    return train(run.cfg, run.directory, run.hydra_files, notes=run.notes).exit_code

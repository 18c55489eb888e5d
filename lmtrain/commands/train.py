"""`python -m lmtrain [overrides]`: trains a model, runs a sweep with `-m`, or continues a run with `resume=`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import HydraException

from lmtrain.config.compose import HYDRA_VERSION_BASE, compose_with_notes, explain_hydra_error
from lmtrain.config.conf_source import MENU
from lmtrain.config.hydra_internals import parse_flags
from lmtrain.config.overrides import search_path_override
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.config.shipped import shipped
from lmtrain.config.written_for.mismatches import reading_experiments, without_left_out
from lmtrain.errors import COMPLETED, SUCCESSFUL, ConfigError, SweepEndedError, os_error_line
from lmtrain.parallel.world import World, quiet_torch, refuse_several_processes, this_world
from lmtrain.run.background import BackgroundFacts
from lmtrain.run.new_run import NewRun, new_run, start
from lmtrain.run.restarted_run import RestartedRun, restarted_run
from lmtrain.run.resumed_run import resumed_run
from lmtrain.run.several.local_processes import processes_to_start, run_here
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.terminal.console import console
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.streams import outlive_reader

if TYPE_CHECKING:  # with torch
    from lmtrain.parallel.peers import Peers

# Launchers in separate packages: the module that must be importable, and the extra that installs it.
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    "submitit_slurm": ("submitit", "submitit"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}
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
        if flags.multirun:
            refuse_several_processes("a sweep (-m)")
        if asks or flags.multirun:
            run_hydra(flags)
            return 0
        register_directory_resolver()  # a callback may resolve all of Hydra's settings
        search_path = search_path_override([flags.config_dir] if flags.config_dir else [])
        overrides = [*search_path, *flags.overrides]
        if (again := restarted_run(overrides)) is not None:
            return _continue(again)
        if (world := this_world()).size > 1:
            quiet_torch()
            from lmtrain.convert.initial_weights import begin_with_weights
            from lmtrain.run.several.start_together import start_together  # loads torch

            return start_together(world, lambda more: new_run([*overrides, *more]), _train, begin_with_weights)
        run = new_run(overrides)
        if (size := processes_to_start(run.cfg)) > 1:
            return run_here(size, arguments, Path.cwd())
        return start(run, _train)
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
    if (world := this_world()).size > 1:
        return _resume_together(world, run_dir, arguments)
    folder = Path.cwd()  # the next line changes it
    again = resumed_run(run_dir, arguments)
    if (size := processes_to_start(again.cfg)) > 1:
        return run_here(size, [f"resume={run_dir}", *arguments], folder)
    facts = BackgroundFacts(again.cfg)
    from lmtrain.run.provenance import Resume  # loads torch, which error messages need not wait for
    from lmtrain.train_run import run

    resumed = Resume(again.changes)
    return run(again.cfg, again.directory, again.hydra_files, resumed=resumed, facts=facts).exit_code


def _continue(again: RestartedRun) -> int:
    """Continue the run of a restarted command, as `resume=RUN_DIR` would, unless it has ended."""
    by, directory = again.restarted_by, short_path(again.directory.absolute())
    if again.status in SUCCESSFUL:
        _print_once(f"restarted by {by}: the run in {directory} is {again.status}; nothing is left to do")
        return COMPLETED.exit_code
    _print_once(f"restarted by {by}: continues the run in {directory}")
    return resume(again.directory, again.arguments)


def _print_once(text: str) -> None:
    """Print a line in the first process of a run."""
    if this_world().is_first:
        console.print(text, soft_wrap=True)


def _resume_together(world: World, run_dir: Path, arguments: Sequence[str]) -> int:
    """Continue a run as one of several processes."""
    quiet_torch()
    from lmtrain.parallel.peers import connected  # loads torch
    from lmtrain.run.several.together import composed_together

    with connected(world) as peers:
        again = composed_together(peers, lambda _: resumed_run(run_dir, arguments))
        if not world.is_first:
            from lmtrain.convert.initial_weights import begin_with_weights
            from lmtrain.run.several.follow import follow

            return follow(again.cfg, again.directory, peers, begin_with_weights)
        from lmtrain.run.provenance import Resume
        from lmtrain.train_run import run

        return run(again.cfg, again.directory, again.hydra_files, resumed=Resume(again.changes), peers=peers).exit_code


def _check_flags(flags: argparse.Namespace) -> None:
    for name, way_out in REFUSED_FLAGS.items():
        if (given := getattr(flags, name)) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}={given}: {way_out}")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise ConfigError(f"--config-dir={flags.config_dir}: no such folder")
    if flags.resolve and not (flags.cfg or flags.help):
        raise ConfigError("--resolve: works only with --cfg or --help; a run's config.yaml is always resolved")
    check_launcher(flags.overrides)


def _train(run: NewRun, peers: "Peers | None" = None) -> int:
    facts = BackgroundFacts(run.cfg)  # begins before torch is loaded
    from lmtrain.train_run import run as train  # loads torch, which nothing before needs

    return train(run.cfg, run.directory, run.hydra_files, notes=run.notes, facts=facts, peers=peers).exit_code


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

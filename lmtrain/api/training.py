"""The Python API: `from lmtrain import compose, train`; `run/reading/stored_run.py` has the part that reads runs.

It does what the commands do, in the process that calls it, and raises the errors that they print.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.compose import explain_hydra_error
from lmtrain.config.overrides import overrides_of
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import DIVERGED, PRUNED, ConfigError, InterruptedBySignal, ending_by_signal, os_error_line
from lmtrain.machine import limit_spinning
from lmtrain.parallel.world import refuse_several_processes
from lmtrain.run.new_run import NewRun, config_of_new_run, new_run, start
from lmtrain.run.process_state import (
    forget_earlier_runs,
    importing_from_here,
    restored_process,
    restored_torch,
    training_alone,
)
from lmtrain.run.reading.stored_run import Run, read_only
from lmtrain.run.resumed_run import resume_requested, resumed_run
from lmtrain.run.several.local_processes import refuse_processes
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.terminal.paths import argument_with_home

if TYPE_CHECKING:
    from lmtrain.train_run import Outcome

log = logging.getLogger(__name__)

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]


def compose(overrides: Overrides = ()) -> DictConfig:
    """Return the config of the run that `python -m lmtrain [overrides]` would start: composed, resolved and checked.

    Nothing is trained, prepared or written. A value that depends on the data, such as the size of the vocabulary, is
    filled in if the token files exist.

    Args:
        overrides: As on the command line, `["model=llama_1m", "optimizer.lr=1e-3"]`, or a dict from keys and config
            groups to values, `{"model": "llama_1m", "optimizer.lr": 1e-3}`.

    Returns:
        The config, read-only, as in `cfg.optimizer.lr`.

    Raises:
        ConfigError: There is a mistake; the message is that of the command line, with the key, the value and the way
            out.

    Example:
        >>> cfg = compose({"experiments": "quickstart", "trainer.max_steps": 100})
        >>> cfg.trainer.max_steps
        100
    """
    lines = _lines(overrides)
    run_dir, _ = resume_requested(lines)
    if run_dir is not None:
        raise ConfigError(f"resume={run_dir}: compose gives the config of a new run; load_run(…).config that of a run")
    with importing_from_here():
        cfg, notes = config_of_new_run(expand_fork(lines, prepares=False))
    for note in notes:
        log.warning("%s", note)
    return read_only(cfg)


def train(
    overrides: Overrides = (),
    *,
    resume: str | os.PathLike[str] | None = None,
    fork: str | os.PathLike[str] | None = None,
) -> Run:
    """Train a run in this process, exactly as `python -m lmtrain [overrides]` does, and return the run when it ends.

    It writes the same files, with the same numbers to the last bit. Data that is missing and has a recipe is prepared
    first. Afterwards, the settings of Hydra, logging, torch and its random generators are what they were before.

    A run that diverges is returned like any other, so that a loop over settings continues; check `run.status`. An
    exception in training, for example in your own model, is raised unchanged.

    Ctrl-C, and the notebook's button *Interrupt*, save everything, stop the run and raise KeyboardInterrupt; a second
    one stops without saving. `train(resume=…)` continues the run. In a thread that is not the main one, signals do not
    stop a run. A process trains one run at a time. For a sweep, call `train` in a loop, or use the command with `-m`.

    Args:
        overrides: As for `compose`. With `resume`, the changes to the run, as the command takes them.
        resume: The run to continue in its own directory, as a `Run` or a path.
        fork: The run to start a new one from, as a `Run` or a path, with its config and its newest checkpoint, or that
            of `step=N` among the overrides.

    Returns:
        The run.

    Raises:
        ConfigError: There is a mistake in config or data; the message is that of the command line.
        KeyboardInterrupt: Ctrl-C stopped the run; everything is saved.
        SystemExit: Another signal, such as SIGTERM, stopped the run; everything is saved.
        RuntimeError: Another run is training in this process.

    Example:
        >>> run = train({"experiments": "quickstart", "optimizer.lr": 1e-3})
        >>> run.result["best_val_loss"]
        >>> longer = train({"trainer.max_steps": 1200}, resume=run)
        >>> other = train({"optimizer.lr": 1e-4, "step": 400}, fork=run)
    """
    lines = _lines(overrides, resume=resume, fork=fork)
    limit_spinning()  # before torch is imported
    refuse_several_processes("lmtrain.train")
    with training_alone(), restored_process(lines):
        run_dir, others = resume_requested(lines)
        try:
            run, outcome = _start(lines) if run_dir is None else _continue(run_dir, others)
        except HydraException as error:
            raise ConfigError(explain_hydra_error(error, lines)) from error
        except OSError as error:  # for example, a folder can't be created
            raise ConfigError(os_error_line(error)) from error
        except InterruptedBySignal as error:  # a second one
            raise _ending_of_process(error) from error
    if isinstance(outcome.error, InterruptedBySignal):
        raise _ending_of_process(outcome.error) from outcome.error
    if outcome.error is not None and outcome.exit_code not in (DIVERGED.exit_code, PRUNED.exit_code):
        raise outcome.error
    return run


def _lines(overrides: Overrides, **runs: str | os.PathLike[str] | None) -> list[str]:
    """Return the overrides as arguments of the command line."""
    if isinstance(overrides, str | bytes):
        raise TypeError(f"overrides={overrides!r}: give a list of texts, as ['model=gpt2'], or a dict")
    if OmegaConf.is_config(overrides):
        raise TypeError("overrides: a config; give what it is composed of, as ['model=gpt2', 'seed=1']")
    lines = overrides_of(overrides) if isinstance(overrides, Mapping) else list(overrides)
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"overrides: {line!r} is not a string; write 'key=value', or give a dict")
        if line.startswith("-"):
            loop = ", and train one run after the other in a loop" if line in ("-m", "--multirun") else ""
            raise ConfigError(f"{line}: a flag of `python -m lmtrain`; here, give overrides alone{loop}")
    given = {key: run for key, run in runs.items() if run is not None}
    return [argument_with_home(line) for line in [*overrides_of(given), *lines]]


def _start(lines: Sequence[str]) -> "tuple[Run, Outcome]":
    """Train a new run."""

    def train_here(run: NewRun) -> "Outcome":
        from lmtrain.train_run import run as train_run  # torch, which nothing before needs

        with restored_torch():
            forget_earlier_runs()
            return train_run(run.cfg, run.directory, run.hydra_files, notes=run.notes, owns_process=False)

    register_directory_resolver()  # for a callback that resolves all of Hydra's settings
    arguments = expand_fork(lines)
    sys.argv[1:] = arguments  # what the run records, as the command does
    run = new_run(arguments)
    refuse_processes(run.cfg, "lmtrain.train")
    directory = Path(os.path.abspath(run.directory))
    return Run(directory), start(run, train_here)


def _continue(run_dir: Path, changes: Sequence[str]) -> "tuple[Run, Outcome]":
    """Continue a run in its own directory."""
    again = resumed_run(run_dir, changes)
    refuse_processes(again.cfg, "lmtrain.train")
    from lmtrain.run.provenance import Resume
    from lmtrain.train_run import run as train_run

    with restored_torch():
        forget_earlier_runs()
        resumed = Resume(again.changes)
        outcome = train_run(again.cfg, again.directory, again.hydra_files, resumed=resumed, owns_process=False)
    return Run(again.directory), outcome


def _ending_of_process(error: InterruptedBySignal) -> BaseException:
    """Return what ends a process that a signal has asked to stop."""
    if error.number == signal.SIGINT:
        return KeyboardInterrupt(str(error))
    return SystemExit(ending_by_signal(error.number).exit_code)

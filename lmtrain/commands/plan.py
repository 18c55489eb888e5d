"""`python -m lmtrain plan [overrides]`: what this run would be, before it takes any time."""

import argparse
import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lmtrain.config.compose import compose_with_notes, without_hydra
from lmtrain.config.conf_source import naming_origins
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import Number, OptionParser, output_file

T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain plan",
        description="What a run would be: its size, FLOPs, memory, disk, time, cost and learning rate, and likely "
        "mistakes in it. Trains nothing, prepares nothing.",
        epilog="Examples: python -m lmtrain plan experiments=quickstart optimizer.lr=1e-3; "
        "python -m lmtrain plan -m optimizer.lr=1e-3,3e-4 seed=1,2,3",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training, fork=RUN_DIR too")
    parser.add_argument("-m", "--multirun", action="store_true", help="of a sweep: all its jobs, and what they take")
    parser.add_argument("--measure", action="store_true", help="time a few real steps here, and their memory")
    parser.add_argument(
        "--price",
        type=Number(at_least=0),
        help="dollars an hour, of this machine and any GPU (default: a table's for GPUs)",
    )
    parser.add_argument(
        "--mfu",
        type=Number(above=0, at_most=1),
        help="share of a GPU's peak that is reached (default: from its peak and its memory's bandwidth)",
    )
    parser.add_argument("--json", type=output_file, help="also write all numbers to this file")
    options = parser.read(arguments)
    if options.multirun and options.measure:
        raise ConfigError("--measure: times the steps of one run; leave it or -m out")
    numbers = _plan_sweep(options) if options.multirun else _plan_run(options)
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, **numbers)
    return 0


def _plan_run(options: argparse.Namespace) -> dict[str, Any]:
    """Show the plan of a run, and return its numbers."""
    for override in parse_overrides(options.overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: several values; give one, or add -m for the plan of a sweep")
    composition = compose_with_notes(expand_fork(options.overrides, prepares=False))
    run_dir = Path(composition.config.hydra.run.dir)
    with naming_origins(options.overrides, composition.choices):
        cfg, missing = check_for_plan(without_hydra(composition.config))
    if options.measure and missing:
        way_out = (
            "python -m lmtrain prepare makes them, with the same overrides"
            if cfg.prepare is not None
            else "give a folder that has some"
        )
        raise ConfigError(f"--measure: {missing[0]} has no token files; {way_out}")
    from lmtrain.plan.make import make  # torch, which help and mistakes need not wait for
    from lmtrain.plan.terminal_view import show_plan

    with _without_warnings_of_torch():
        plan = make(cfg, run_dir, missing, measures=options.measure, mfu=options.mfu, price=options.price)
    plan = replace(plan, remarks=[*composition.notes, *plan.remarks])
    show_plan(plan)
    return plan.to_dict()


def _plan_sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Show the plan of all jobs of a sweep, or of a search, and return its numbers."""
    from lmtrain.sweep.planned_jobs import planned_jobs

    asked = planned_jobs(expand_fork(options.overrides, prepares=False))
    checked = []
    notes: dict[str, None] = {}
    for job in _with_progress(asked.jobs, "composing jobs"):
        composition = compose_with_notes(job.overrides)
        notes |= dict.fromkeys(composition.notes)
        with naming_origins(job.overrides, composition.choices):
            checked.append((job, *check_for_plan(without_hydra(composition.config))))
    from lmtrain.plan.make import Once, make  # as above
    from lmtrain.plan.sweep_plan import PlannedJob, SweepPlan
    from lmtrain.plan.sweep_view import show_sweep_plan

    once = Once()
    with _without_warnings_of_torch():
        jobs = [
            PlannedJob(
                job.title,
                job.overrides,
                asked.trials or 1,
                make(cfg, job.directory, missing, mfu=options.mfu, price=options.price, once=once),
            )
            for job, cfg, missing in _with_progress(checked, "planning jobs")
        ]
    sweep = SweepPlan(jobs, asked.n_jobs)
    show_sweep_plan(sweep, mfu=options.mfu)
    for note in notes:
        console.print(note, style="yellow")
    return sweep.to_dict()


def _with_progress(items: Sequence[T], doing: str) -> Iterable[T]:
    """Yield the items, with a bar in a terminal: a thousand jobs take minutes."""
    from rich.progress import track

    return track(items, doing, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def _without_warnings_of_torch() -> Iterator[None]:
    """Hide what torch remarks on tensors without data: nothing is trained. A user's own warnings are shown."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            show = warnings.showwarning

            def show_others(message: Warning | str, *about: Any, **more: Any) -> None:
                if not _is_of_torch(message):
                    show(message, *about, **more)

            warnings.showwarning = show_others
            yield
    finally:
        logger.setLevel(level)


def _is_of_torch(message: Warning | str) -> bool:
    """Return whether torch gives the warning that is being shown, also where it gives it in its caller's name."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "warnings"):
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "") if frame else ""
    return module.partition(".")[0] == "torch" or "(Triggered internally at" in str(message)

"""`python -m lmtrain plan [overrides]`: predicts what a run would be, before it costs any time."""

import argparse
import contextlib
import inspect
import logging
import math
import shlex
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose_with_notes, without_hydra
from lmtrain.config.conf_source import naming_origins
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.plan.world.links import Links
from lmtrain.terminal.console import console
from lmtrain.terminal.options import Number, OptionParser, WholeNumber, output_file

T = TypeVar("T")

LINKS = {  # options for the links between processes: the attribute of `Links`, and its meaning
    "--node-size": ("node_size", "GPUs in a node"),
    "--link-gb-per-s": ("gb_per_s", "GB/s that a GPU sends to others in its node"),
    "--node-link-gb-per-s": ("node_gb_per_s", "GB/s that a GPU sends to other nodes"),
    "--link-us": ("latency_us", "microseconds from GPU to GPU in a node"),
    "--node-link-us": ("node_latency_us", "microseconds to a GPU in another node"),
}


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain plan",
        description="Predicts a run's size, FLOPs, memory, disk space, time, cost and learning rate, and points out "
        "likely mistakes. Trains nothing and prepares nothing.",
        epilog="Examples: python -m lmtrain plan experiments=quickstart optimizer.lr=1e-3; "
        "python -m lmtrain plan -m optimizer.lr=1e-3,3e-4 seed=1,2,3",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides as for training, including fork=RUN_DIR")
    parser.add_argument("-m", "--multirun", action="store_true", help="plan all jobs of a sweep, and their sum")
    parser.add_argument(
        "--measure", action="store_true", help="run a few real steps on this machine to measure time and memory"
    )
    parser.add_argument(
        "--price",
        type=Number(at_least=0),
        help="dollars per hour, for this machine and for every GPU (default: a built-in table of GPU prices)",
    )
    parser.add_argument(
        "--mfu",
        type=Number(above=0, at_most=1),
        help="share of a GPU's peak FLOP/s to assume (default: estimated from its peak and memory bandwidth)",
    )
    _add_links(parser)
    parser.add_argument(
        "--difference",
        type=Number(above=0),
        metavar="D",
        help="also say how many seeds would detect a true difference of D between the settings; with --noise-from",
    )
    parser.add_argument(
        "--noise-from",
        action="append",
        default=[],
        metavar="RUN",
        help="run or sweep directories whose noise between seeds is that of the planned settings; repeatable",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    if options.multirun and options.measure:
        raise ConfigError("--measure: times the steps of a single run; leave out either --measure or -m")
    if (options.difference is None) != (not options.noise_from):
        raise ConfigError("--difference and --noise-from: give both, to plan the number of seeds, or neither")
    numbers = _plan_sweep(options) if options.multirun else _plan_run(options)
    if options.difference is not None:
        numbers |= _plan_seeds(options, numbers)
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, **numbers)
    return 0


def _add_links(parser: OptionParser) -> None:
    group = parser.add_argument_group("links between processes, for a run with parallel.world_size")
    defaults = Links()
    for option, (name, meaning) in LINKS.items():
        kind = WholeNumber(1) if name == "node_size" else Number(above=0)
        group.add_argument(option, type=kind, dest=name, help=f"{meaning} (default: {getattr(defaults, name):g})")


def _links(options: argparse.Namespace) -> Links:
    given = {name: getattr(options, name) for name, _ in LINKS.values()}
    return Links(**{name: value for name, value in given.items() if value is not None})


def _plan_run(options: argparse.Namespace) -> dict[str, Any]:
    """Show the plan of a run, and return its numbers."""
    for override in parse_overrides(options.overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: has several values; give one, or add -m to plan a sweep")
    composition = compose_with_notes(expand_fork(options.overrides, prepares=False))
    run_dir = Path(composition.config.hydra.run.dir)
    with naming_origins(options.overrides, composition.choices):
        cfg, missing = check_for_plan(without_hydra(composition.config))
    if options.measure and missing:
        way_out = (
            "make them with python -m lmtrain prepare and the same overrides"
            if cfg.prepare is not None
            else "give a folder that has them"
        )
        raise ConfigError(f"--measure: {missing[0]} has no token files; {way_out}")
    processes = (cfg.get("parallel") or {}).get("world_size") or 1
    if options.measure and processes > 1:
        raise ConfigError(
            f"--measure: measures one process, but parallel.world_size={processes}; leave out either of them, or use "
            "python -m lmtrain benchmark scaling"
        )
    from lmtrain.micro_batch.find import expected_size, found_size
    from lmtrain.plan.make import make  # loads torch, which help and error messages need not wait for
    from lmtrain.plan.terminal_view import show_plan
    from lmtrain.verify.signals import signals_as_exceptions

    with _without_warnings_of_torch(), signals_as_exceptions():  # a trial has a process and files
        found = found_size(cfg, kept_choices(None, cfg.get("fork"))) if options.measure else expected_size(cfg)
        plan = make(
            found.cfg,
            run_dir,
            missing,
            measures=options.measure,
            mfu=options.mfu,
            price=options.price,
            links=_links(options),
        )
    plan = replace(plan, remarks=[*composition.notes, *found.notes, *plan.remarks])
    show_plan(plan)
    return plan.to_dict()


def _plan_sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Show the plan of all jobs of a sweep or search, and return its numbers."""
    from lmtrain.sweep.planned_jobs import planned_jobs

    asked = planned_jobs(expand_fork(options.overrides, prepares=False))
    checked = []
    notes: dict[str, None] = {}
    for job in _with_progress(asked.jobs, "composing jobs"):
        composition = compose_with_notes(job.overrides)
        notes |= dict.fromkeys(composition.notes)
        with naming_origins(job.overrides, composition.choices):
            checked.append((job, *check_for_plan(without_hydra(composition.config))))
    from lmtrain.micro_batch.find import expected_size
    from lmtrain.plan.make import Once, make  # loads torch
    from lmtrain.plan.sweep_plan import PlannedJob, SweepPlan
    from lmtrain.plan.sweep_view import show_sweep_plan

    once = Once()
    with _without_warnings_of_torch():
        jobs = [
            PlannedJob(
                job.title,
                job.overrides,
                asked.trials or 1,
                make(
                    expected_size(cfg).cfg,
                    job.directory,
                    missing,
                    mfu=options.mfu,
                    price=options.price,
                    links=_links(options),
                    once=once,
                ),
            )
            for job, cfg, missing in _with_progress(checked, "planning jobs")
        ]
    sweep = SweepPlan(jobs, asked.n_jobs)
    show_sweep_plan(sweep, mfu=options.mfu)
    for note in notes:
        console.print(note, style="yellow")
    return sweep.to_dict()


def _plan_seeds(options: argparse.Namespace, numbers: dict[str, Any]) -> dict[str, Any]:
    """Show how many seeds would detect a difference between the planned settings, and return the numbers."""
    from lmtrain.comparison.looking.plan_sentences import (
        SeedCost,
        fresh_seeds,
        recorded_cost,
        seeds_to_plan,
        sentences_of,
    )
    from lmtrain.comparison.run_comparison import compare
    from lmtrain.comparison.runs import load_runs

    with raising_config_errors():
        runs = load_runs(options.noise_from)
        groups = compare(runs).conclusions.groups
    if options.multirun:
        jobs = [plan["overrides"] for plan in numbers["jobs"]]
        count, tokens, seconds = numbers["total"]["jobs"], numbers["total"]["tokens"], numbers["total"]["seconds"]
    else:
        jobs = [options.overrides]
        count, tokens, seconds = 1, numbers["tokens"]["run"], numbers["seconds"]["run"]
    settings = max(2, len({tuple(text for text in job if not text.startswith("seed=")) for job in jobs}))
    recorded = recorded_cost(runs, settings)
    tokens *= settings / count
    # The time that real runs took includes evaluations and checkpoints, which an estimate leaves out.
    measured = recorded.seconds / recorded.tokens * tokens if recorded.tokens else math.nan
    estimated = math.nan if seconds is None else seconds * settings / count
    planned = seeds_to_plan(groups, options.difference, settings)
    cost = SeedCost(measured if math.isfinite(measured) else estimated, tokens)
    console.print("\nnumber of seeds", style="bold")
    for sentence in sentences_of(planned, cost):
        console.print(sentence)
    if planned is not None and planned.high is not None and options.multirun:
        seeds = fresh_seeds([run.seed for run in runs if type(run.seed) is int], planned.high)
        kept = [text for text in options.overrides if not text.startswith("seed=")]
        command = shlex.join(["-m", *kept, f"seed=range({seeds.start},{seeds.stop})"])
        console.print(f"to run it, with fresh seeds: python -m lmtrain {command}")
    return {"seeds": None if planned is None else asdict(planned) | {"any_time": planned.any_time}}


def _with_progress(items: Sequence[T], doing: str) -> Iterable[T]:
    """Yield the items, with a progress bar in a terminal: a thousand jobs take minutes."""
    from rich.progress import track

    return track(items, doing, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def _without_warnings_of_torch() -> Iterator[None]:
    """Hide torch's warnings about tensors without data, since nothing is trained; show a user's own warnings."""
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
    """Return whether torch issued the warning being shown, even if torch attributes it to its caller."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "warnings"):
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "") if frame else ""
    return module.partition(".")[0] == "torch" or "(Triggered internally at" in str(message)

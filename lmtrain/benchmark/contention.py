"""`python -m lmtrain benchmark contention [overrides]`: times several runs at once on the same cores, and one alone.

An idle OpenMP thread spins for a while before it sleeps. If a process is alone, that saves the time to wake the thread;
among other processes, it occupies a core that other threads need.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from rich.table import Table

from lmtrain.benchmark.loops import Contender
from lmtrain.benchmark.turns import median, ratio, take_turns
from lmtrain.config.compose import compose
from lmtrain.config.preflight import preflight
from lmtrain.machine import SPIN_COUNT, SPIN_VARIABLES, available_cores, write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import si

QUICK = ["experiments=quickstart", "logger=[]"]
WARMUP_ROUNDS = 1
LIBRARY = "library"  # the defaults of OpenMP


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark contention",
        description="Times the training steps of several processes at the same time and of one alone, for several "
        "ways in which OpenMP threads wait.",
        epilog="The default config is experiments=quickstart. To use fewer cores: taskset -c 0 python -m lmtrain "
        "benchmark contention; to use more threads than cores: system.threads=8",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--processes", type=WholeNumber(1), default=4, help="processes at the same time (default: 4)")
    parser.add_argument("--rounds", type=WholeNumber(1), default=5, help="measured rounds (default: 5)")
    parser.add_argument("--steps", type=WholeNumber(1), default=3, help="optimizer steps per round (default: 3)")
    parser.add_argument(
        "--spins",
        type=WholeNumber(),
        nargs="*",
        default=[SPIN_COUNT],
        help=f"values of GOMP_SPINCOUNT (default: {SPIN_COUNT}); each adds as many processes",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    overrides = options.overrides or QUICK
    cfg = preflight(compose(overrides))  # prepares the data before the processes start
    settings: dict[str, Mapping[str, str]] = {
        LIBRARY: {},
        **{f"GOMP_SPINCOUNT={spins}": {"GOMP_SPINCOUNT": str(spins)} for spins in options.spins},
        "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    }
    with contextlib.ExitStack() as stack:
        teams = {
            name: [
                stack.enter_context(Contender("trainer", overrides, options.steps, _environment(setting)))
                for _ in range(options.processes)
            ]
            for name, setting in settings.items()
        }
        contenders = {
            (name, count): team[:count] for name, team in teams.items() for count in sorted({1, options.processes})
        }
        rounds = take_turns(
            {_label(name, count): team for (name, count), team in contenders.items()},
            options.rounds,
            lambda team, _: seconds_at_once(team, options.steps),
            warmup=WARMUP_ROUNDS,
        )
    step_tokens = cfg.data.batch_size * cfg.data.block_size * cfg.trainer.gradient_accumulation_steps
    show(rounds, list(settings), options.processes, step_tokens)
    console.print(
        f"  on {available_cores()} cores; medians of {options.rounds} rounds of {options.steps} steps; ratios of speed "
        f"are taken within each round; {LIBRARY}: the defaults of OpenMP"
    )
    if options.json:
        write_json_with_machine(
            options.json, overrides=overrides, steps=options.steps, cores=available_cores(), seconds=rounds
        )
    return 0


def seconds_at_once(team: Sequence[Contender], steps: int) -> float:
    """Run a round in all processes of a team at the same time; return the seconds per step until the last one ends."""
    started = time.perf_counter()
    for process in team:
        process.begin()
    for process in team:
        process.end()
    return (time.perf_counter() - started) / steps


def show(rounds: Sequence[Mapping[str, float]], settings: Sequence[str], processes: int, step_tokens: int) -> None:
    """Print the tokens per second of each process, alone and at the same time, and the ratios to OpenMP's defaults."""
    counts = sorted({1, processes})
    columns = [f"{_at_once(count)}{what}" for count in counts for what in (", tokens/s", f", ratio to {LIBRARY}")]
    table = Table("waiting of threads", *columns)
    for name in settings:
        cells = []
        for count in counts:
            label = _label(name, count)
            cells += [
                si(step_tokens / median(rounds, label)),
                f"{ratio(rounds, _label(LIBRARY, count), label):.2f}",
            ]
        table.add_row(name, *cells)
    console.print(table)


def _label(name: str, count: int) -> str:
    return f"{name}, {_at_once(count)}"


def _at_once(count: int) -> str:
    return "alone" if count == 1 else f"each of {count}"


def _environment(setting: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process, with this setting of how threads wait and no other."""
    return {name: value for name, value in os.environ.items() if name not in SPIN_VARIABLES} | dict(setting)

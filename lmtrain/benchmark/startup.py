"""`python -m lmtrain benchmark startup [overrides]`: times the start of a run by phase, up to its first step's end.

Every start is a real run in a process of its own, which ends after its first step. `--help` and a config error are
timed as well. With `--against FOLDER`, the starts of another version of lmtrain take turns with those of this one.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from lmtrain.benchmark import startup_process
from lmtrain.benchmark.startup_process import PHASES, UNAVOIDABLE
from lmtrain.benchmark.turns import rotated
from lmtrain.config.compose import compose
from lmtrain.config.overrides import override_value
from lmtrain.config.preflight import preflight
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted

HELP, MISTAKE = "--help", "a config error"
COMMANDS = {HELP: (["--help"], 0), MISTAKE: (["trainer.max_stepz=1"], 2)}  # more arguments, and the exit code
ALL, BESIDE = "the whole start", "all but torch, weights and first step"
OTHERS = "other processes (git, W&B)"
SMOKE = ["experiments=smoke"]
CONFIG_ERROR = "config error: "  # what a command prints before a user's mistake

Seconds = tuple[float, float]  # wall time and CPU time


@dataclass(frozen=True)
class Version:
    """A version of lmtrain to measure: the installed one, or the checkout in a folder."""

    folder: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes, in which nothing is sent anywhere."""
        # Python writes its bytecode beside the source, as it does for users; without it, most of the time is compiling.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        mode = "disabled" if kept.get("WANDB_MODE") == "disabled" else "offline"
        return kept | {"WANDB_MODE": mode} | ({"PYTHONPATH": str(self.folder)} if self.folder is not None else {})

    @property
    def directory(self) -> Path | None:
        """The working directory of its processes: conf/ of a checkout belongs to the lmtrain beside it alone."""
        return self.folder if _is_checkout(Path.cwd()) else None


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark startup",
        description="Times the start of a run by phase, from the command to the end of its first training step, and "
        "the commands that need no torch.",
        epilog="The default config is experiments=smoke. To compare with an earlier commit: git worktree add "
        "../before COMMIT; python -m lmtrain benchmark startup --against ../before",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--rounds", type=WholeNumber(1), default=5, help="measured rounds (default: 5)")
    parser.add_argument("--against", type=_checkout, metavar="FOLDER", help="also time the lmtrain in this checkout")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    overrides = options.overrides or SMOKE
    cfg = preflight(compose(overrides))  # prepares the data
    versions = {"this version": Version()}
    if options.against is not None:
        versions[options.against.name] = Version(options.against)
    rounds: list[dict[str, dict[str, Seconds]]] = []
    for number in range(1 + options.rounds):  # the first round fills caches
        measured = {name: measure(version, overrides, cfg) for name, version in rotated(versions, number)}
        rounds.append({name: measured[name] for name in versions})
    del rounds[0]
    show(rounds)
    console.print(
        f"medians of {counted(options.rounds, 'round')}; CPU time may be above wall time where several threads work"
    )
    if options.json:
        write_json_with_machine(options.json, overrides=overrides, wall_and_cpu_seconds=rounds)
    return 0


def measure(version: Version, overrides: Sequence[str], cfg: DictConfig) -> dict[str, Seconds]:
    """Return wall and CPU seconds of each phase, of the whole start and of each of the COMMANDS."""
    found = start_of_run(version, overrides, cfg)
    for name, (more, code) in COMMANDS.items():
        found[name] = seconds_of_command(version, [*more] if name == HELP else [*overrides, *more], code)
    return found


def start_of_run(version: Version, overrides: Sequence[str], cfg: DictConfig) -> dict[str, Seconds]:
    """Start a run in a temporary folder, and end it after its first step."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder, "phases.json")
        command = [sys.executable, "-P", startup_process.__file__, str(file), str(time.perf_counter())]
        fixed = [f"hydra.run.dir={folder}/run", *_absolute_data(cfg), *_without_links(cfg)]
        run([*command, *overrides, *fixed], version, 0, {"TRACKIO_DIR": folder})
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    seconds: dict[str, Seconds] = {phase: (wall, cpu) for phase, (wall, cpu) in found["phases"].items()}
    seconds[ALL] = added(seconds[phase] for phase in PHASES)
    seconds[BESIDE] = added(seconds[phase] for phase in PHASES if phase not in UNAVOIDABLE)
    seconds[OTHERS] = (0.0, found["other_processes_cpu_s"])
    return seconds


def _absolute_data(cfg: DictConfig) -> list[str]:
    """Return the override that finds the token files from every working directory."""
    path = cfg.data.get("path")
    return [] if path is None else [f"data.path={override_value(str(Path(path).absolute()))}"]


def _without_links(cfg: DictConfig) -> list[str]:
    """Return overrides for the loggers that would write to a folder of all runs."""
    folders = {"wandb": "links", "trackio": "folder"}
    return [f"logger.{name}.{key}=null" for name, key in folders.items() if key in cfg.logger.get(name, {})]


def seconds_of_command(version: Version, arguments: Sequence[str], code: int) -> Seconds:
    """Return wall and CPU seconds of a command that must end with this exit code."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run([sys.executable, "-m", "lmtrain", *arguments], version, code)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(command: Sequence[str], version: Version, code: int, variables: Mapping[str, str] | None = None) -> None:
    """Run a command of a version, with more environment variables, and check its exit code.

    Raises:
        ConfigError: the command reported a mistake in the config.
        RuntimeError: it ended with another exit code.
    """
    environment = version.environment | dict(variables or {})
    done = subprocess.run(command, env=environment, cwd=version.directory, capture_output=True, text=True, check=False)
    if done.returncode != code:
        lines = done.stderr.strip().splitlines()
        if lines and lines[-1].startswith(CONFIG_ERROR):
            raise ConfigError(lines[-1].removeprefix(CONFIG_ERROR))
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {lines[-1] if lines else 'no message'}")


def added(parts: Iterable[Seconds]) -> Seconds:
    """Return the sum of wall times and the sum of CPU times."""
    walls, cpus = zip(*parts, strict=True)
    return sum(walls), sum(cpus)


def show(rounds: Sequence[Mapping[str, Mapping[str, Seconds]]]) -> None:
    """Print the medians in milliseconds, a row for each phase and two columns for each version."""
    versions = list(rounds[0])
    table = Table("phase", *(f"{what}, {name}" for name in versions for what in ("wall ms", "CPU ms")))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in (*PHASES, ALL, BESIDE, OTHERS, *COMMANDS):
        cells = []
        for name in versions:
            walls, cpus = zip(*(each[name][row] for each in rounds), strict=True)
            cells += ["" if row == OTHERS else f"{1000 * statistics.median(walls):.0f}"]
            cells += [f"{1000 * statistics.median(cpus):.0f}"]
        table.add_row(row, *cells, end_section=row in (PHASES[-1], OTHERS))
    console.print(table)


def _checkout(text: str) -> Path:
    folder = Path(text).resolve()
    if not _is_checkout(folder):
        raise argparse.ArgumentTypeError(f"{text}: is not a checkout of lmtrain; give a folder with lmtrain/ in it")
    return folder


def _is_checkout(folder: Path) -> bool:
    return (folder / "lmtrain" / "__main__.py").is_file()

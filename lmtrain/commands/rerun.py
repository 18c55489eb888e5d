"""`python -m lmtrain --rerun RUN_DIR`: repeats a run in a new directory and compares its numbers with the original."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.build import raising_config_errors
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.recorded.paths import check_preparation
from lmtrain.config.recorded.recompose import overrides_to_recompose
from lmtrain.config.recorded.run_names import find_run
from lmtrain.config.recorded.trust import read_saved
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.parallel.world import quiet_torch, this_world
from lmtrain.run.directory import RUN_FILES
from lmtrain.run.identity import NEUTRAL_KEYS, config_hash
from lmtrain.run.new_run import NewRun, new_run, start
from lmtrain.run.several.local_processes import processes_to_start, recorded_processes, run_here
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.terminal.as_text import differences
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, run_name
from lmtrain.terminal.units import counted

if TYPE_CHECKING:  # with torch
    from lmtrain.parallel.peers import Peers


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain --rerun",
        description="Repeats a run with the same config, seed and data in a new run directory. Start it in the folder "
        "in which the run was\nstarted. When the run ends, prints what else has changed since (code, versions, "
        "machine) and whether every number is\nthe same.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=run_name, metavar="RUN_DIR", help="run directory to repeat")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help=f"overrides that change no number: {', '.join(NEUTRAL_KEYS[:2])}, hydra.run.dir",
    )
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    run = find_run(options.run)
    for override in (given := parse_overrides(options.overrides)):
        if override.key_or_group.partition(".")[0] not in (*NEUTRAL_KEYS, "hydra"):
            raise ConfigError(
                f"{override.input_line}: --rerun repeats a run without changes; to change a run, fork it: fork={run}"
            )

    with raising_config_errors():
        refuse_links(run, RUN_FILES)
    register_directory_resolver()
    own = overrides_to_recompose(run, options.trust, given, keeps_origin=True)
    check_preparation(own, given, run)
    then = read_json(run / "environment.json")
    lineage = {"rerun_of": {"run": str(run.resolve()), "run_id": then.get("run_id")}}

    def compose(more: Sequence[str] = ()) -> NewRun:
        again = new_run([*own, *options.overrides, *more])
        _refuse_changed_config(read_saved(run / "config.yaml"), again.cfg, run)
        return again

    def train(new: NewRun, peers: "Peers | None" = None) -> int:
        from lmtrain.train_run import run as train_run  # loads torch, which nothing before needs

        done = train_run(new.cfg, new.directory, new.hydra_files, lineage=lineage, notes=new.notes, peers=peers)
        _print_changes_since(then, read_json(new.directory / "environment.json"))
        if done.exit_code == 0:
            _print_whether_equal(run, new.directory)
        return done.exit_code

    if (world := this_world()).size > 1:
        quiet_torch()
        from lmtrain.convert.initial_weights import begin_with_weights
        from lmtrain.run.several.start_together import start_together  # loads torch

        return start_together(world, compose, train, begin_with_weights)
    again = compose()
    if (size := processes_to_start(again.cfg, recorded_processes(then))) > 1:
        return run_here(size, ["--rerun", *arguments], Path.cwd())
    return start(again, train)


def _refuse_changed_config(before: DictConfig, now: DictConfig, run: Path) -> None:
    """Raise ConfigError if the two configs would compute different results."""
    containers: list[Any] = [OmegaConf.to_container(cfg) for cfg in (before, now)]
    if len(set(map(config_hash, containers))) == 1:
        return
    old, new = ({key: value for key, value in each.items() if key not in NEUTRAL_KEYS} for each in containers)
    raise ConfigError(
        f"{run}: can't be repeated here, because its config would change: {'; '.join(differences(old, new))}"
    )


def _print_changes_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Print the differences in code, versions and machine, which may change the result."""
    found = [
        line
        for key in ("cpu", "device", "processes", "python", "packages", "lmtrain_source", "code", "data")
        for line in differences(then.get(key), now.get(key), key)
    ]
    before, after = ((each.get("git") or {}) for each in (then, now))
    if before.get("commit") != after.get("commit"):
        found.append(f"git commit: {before.get('commit')} → {after.get('commit')}")
    elif before.get("diff") != after.get("diff"):
        found.append("the uncommitted changes differ")
    for line in found:
        console.print(f"changed since then: {line}")


def _print_whether_equal(old: Path, new: Path) -> None:
    """Compare the metrics of two runs and print whether they are the same."""
    from lmtrain.verify.bit_comparison import first_metric_difference

    steps, difference = first_metric_difference(old, new)
    if difference is not None:
        console.print(f"different result: {difference}", style="yellow")
    elif steps:
        console.print(f"identical to {old}: every digit of {counted(steps, 'line')} of metrics is the same")
    else:
        console.print(f"nothing to compare: {old} has no metrics for these steps")

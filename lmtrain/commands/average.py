"""`python -m lmtrain average RUN… --steps …`: makes a run from the mean of the weights of checkpoints."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lmtrain.commands.evaluate import TRUST_HELP, finished_runs
from lmtrain.config.build import raising_config_errors
from lmtrain.convert.chosen_checkpoints import ChosenCheckpoint, choose_checkpoints
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.console import console
from lmtrain.terminal.options import Number, OptionParser, run_name

EPILOG = """\
examples:
  python -m lmtrain average outputs/lmtrain/20261123-120000-1a2b --steps last:5 --evaluate
  python -m lmtrain average outputs/lmtrain/20261123-120000-1a2b --steps 600,800,1000
  python -m lmtrain average outputs/branch-1 outputs/branch-2 outputs/branch-3

The result is a run directory for evaluate, sample, resume= and fork=. Config, step, place in the data and tokenizer are
those of the newest checkpoint; the optimizer starts again. environment.json lists the checkpoints and their hashes. A
run keeps checkpoints for this only if trainer.keep_every or trainer.keep_checkpoints says so.
"""
SHOWN = 12  # runs, and steps of each, that are named


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain average",
        description="Averages the weights of checkpoints, of one run or of several runs of the same architecture.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=run_name, nargs="+", metavar="RUN_DIR", help="run or sweep directories")
    parser.add_argument(
        "--steps",
        help="checkpoints of each run: 600,800 or 600-1000 or last:5 or best or latest (default: the best of several "
        "runs)",
    )
    parser.add_argument(
        "--weights", metavar="W,…", help="a positive weight for each checkpoint, in their order (default: equal)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new run directory (default: below outputs/)")
    parser.add_argument(
        "--evaluate", action="store_true", help="also measure the loss of the mean and of each checkpoint"
    )
    parser.add_argument("--device", default="auto", help="with --evaluate: auto, cpu or cuda (default: auto)")
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)

    weights = None if options.weights is None else [_weight(text) for text in options.weights.split(",")]
    runs = [run for path in options.runs for run in finished_runs(path)]
    if not runs:
        raise ConfigError(f"{', '.join(map(str, options.runs))}: found no run with a checkpoint")
    with raising_config_errors():
        chosen = choose_checkpoints(runs, options.steps, weights)

    # Imported only after the arguments are checked: it loads torch.
    from lmtrain.convert.averaged_run import write_average

    with raising_config_errors():
        directory, remarks = write_average(chosen, options.out)
    print_summary(chosen, directory, remarks)
    if options.evaluate:
        print_losses(chosen, directory, options.device, options.trust)
    else:
        console.print(f"next: python -m lmtrain evaluate {shlex.quote(str(directory))}")
    return 0


def _weight(text: str) -> float:
    try:
        return Number(above=0)(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--weights {error}") from None


def print_summary(chosen: Sequence[ChosenCheckpoint], directory: Path, remarks: Sequence[str]) -> None:
    steps: dict[Path, list[int]] = {}
    for each in chosen:
        steps.setdefault(each.run, []).append(each.step)
    of_runs = (f"{run} after step {first_few(own, SHOWN)}" for run, own in steps.items())
    console.print(f"averaged {len(chosen)} checkpoints: {first_few(of_runs, SHOWN, separator='; ')}")
    for remark in remarks:
        console.print(f"note: {remark}", style="yellow")
    console.print(f"run {directory}")


def print_losses(chosen: Sequence[ChosenCheckpoint], directory: Path, device: str, trusted: Sequence[str]) -> None:
    """Print the validation loss of each checkpoint and of their mean, as `evaluate` measures it."""
    from lmtrain.run.reading.loaded import load_model

    table = Table("run", "step", "val loss", "mean − this")
    losses = [load_model(each.run, str(each.step), device, trusted).evaluate().loss for each in chosen]
    mean = load_model(directory, "latest", device, trusted)
    loss = mean.evaluate().loss
    for each, own in zip(chosen, losses, strict=True):
        table.add_row(str(each.run), str(each.step), f"{own:.4f}", f"{loss - own:+.4f}")
    table.add_row(f"{directory} (their mean)", str(mean.step), f"{loss:.4f}", "")
    console.print(table)

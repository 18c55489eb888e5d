"""`python -m lmtrain evaluate RUN_DIR…`: measures loss, perplexity and bits per byte of checkpoints on a split."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.config.recorded.run_names import find_folder, find_run
from lmtrain.errors import ConfigError
from lmtrain.run.directory import is_sweep
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser
from lmtrain.terminal.units import significant

TRUST_HELP = "allow a class or function named in the run's config to be imported, e.g. mymodels.Bigram; repeatable"


def finished_runs(name: Path) -> list[Path]:
    """Return the run that a name means, or the runs of a sweep; print the folders without a checkpoint, left out."""
    folder = find_folder(name)
    return _finished_below(folder if is_sweep(folder) else find_run(folder))


def _finished_below(path: Path) -> list[Path]:
    if (path / "config.yaml").is_file() and checkpoint_steps(path):
        return [path]
    if is_sweep(path):
        jobs = [job for job in sorted(path.iterdir()) if job.is_dir() and not job.is_symlink()]  # a link may lead back
        return [run for job in jobs for run in _finished_below(job)]
    console.print(f"{path}: left out because it is not a run with a checkpoint")
    return []


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain evaluate",
        description="Measures loss, perplexity and bits per byte of trained models over every token of a split.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run or sweep directories")
    parser.add_argument(
        "--split", default="val", help="train, val or the name of any other .bin file of the data (default: val)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of token files (default: the run's own)")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step number (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)

    runs = [run for path in options.runs for run in finished_runs(path)]
    if not runs:
        raise ConfigError(f"{', '.join(map(str, options.runs))}: found no run with a checkpoint")

    # Imported only after the arguments are checked: it loads torch.
    from lmtrain.run.reading.loaded import load_model

    table = Table("run", "step", "split", "tokens", "loss", "perplexity", "bits/byte")
    for run in runs:
        loaded = load_model(run, options.checkpoint, options.device, options.trust)
        found = loaded.evaluate(options.split, data=options.data)
        table.add_row(
            str(run),
            str(loaded.step),
            found.split,
            f"{found.tokens:,}",
            f"{found.loss:.4f}",
            significant(found.perplexity),
            "–" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}",
        )
    console.print(table)
    return 0

"""`python -m lmtrain compare RUN…`: compares runs, and tells whether their differences are more than noise."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.comparison.output.file_kinds import NEEDED, OUTPUTS, SUFFIXES, output_bytes
from lmtrain.comparison.run_values import VALUE_KINDS
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.options import Number, OptionParser, WholeNumber

if TYPE_CHECKING:  # with scipy
    pass

DESCRIPTION = """\
Compares runs: the config keys that differ, the losses at equal steps, tokens, FLOPs and seconds, and whether the
differences are larger than the noise between seeds. Reads only the runs' files, and works while the runs are
training."""
EPILOG = """\
Runs that differ only in the seed are replicates. Columns for --sort, --filter and --columns: run, path, label, parent,
branch_step, status, steps, tokens, flops, seconds, host, device, parameters, at_step, at_tokens, at_flops, at_seconds,
best, best_step, best_shared, final, tokens_per_second, and every config key (lr is short for optimizer.lr if no other
key ends in lr)."""


MEANINGS = {
    "csv": "write the table as CSV",
    "json": "write all results as JSON",
    "markdown": "write the table as Markdown",
    "html": "write one page with curves, tables and statistics; it works offline",
    "png": "draw the mean curves as a figure for a paper",
    "pdf": "draw the same figure as PDF",
    "svg": "draw the same figure as SVG",
}


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    files = {kind: file for kind in OUTPUTS if (file := getattr(options, kind))}
    check_options(options, files)
    from lmtrain.comparison.output.terminal_view import show_comparison
    from lmtrain.comparison.run_comparison import compare  # loads scipy: half a second that --help need not wait for
    from lmtrain.comparison.selection import Selection

    with raising_config_errors():
        selection = Selection(
            paths=options.runs,
            conditions=options.filter,
            sort=options.sort,
            metric=options.metric,
            higher=options.higher,
            at_step=options.at_step,
            value=options.value,
        )
        runs, about_choice = selection.load()
        comparison = compare(
            runs,
            metric=options.metric,
            higher=options.higher,
            at_step=options.at_step,
            value=options.value,
            difference=options.difference,
            goal=options.reach,
            asked=options.columns and options.columns.split(","),
            mode=options.mode,
            about_choice=about_choice,
            baseline=options.baseline,
            margin=options.margin,
        )
        contents = {file: output_bytes(kind, comparison) for kind, file in files.items()}
        piped = contents.pop("-", None)
        for file, content in contents.items():  # before printing, which a closed pipe (`| head`) may cut short
            Path(file).write_bytes(content)
    if piped is None:
        show_comparison(comparison, limit=options.limit)
    else:
        sys.stdout.buffer.write(piped)
    for kind, file in files.items():
        if file != "-":
            print(f"{kind}: {visible(file)}", file=sys.stdout if piped is None else sys.stderr)
    return 0


def make_parser() -> OptionParser:
    """Return the parser for all options."""
    parser = OptionParser(prog="python -m lmtrain compare", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run or sweep directories, folders that contain them, or globs"
    )
    parser.add_argument("--metric", default="val/loss", help="metric to compare (default: val/loss)")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        "--higher", action="store_true", default=None, help="higher values are better (default: as the name says)"
    )
    direction.add_argument("--lower", action="store_false", dest="higher", default=None, help="lower values are better")
    parser.add_argument(
        "--at-step", type=WholeNumber(1), metavar="N", help="step to compare at (default: the last that all runs have)"
    )
    parser.add_argument(
        "--value",
        choices=VALUE_KINDS,
        help="value of a run for the statistics (default: final for trunks with branches, otherwise at-step)",
    )
    parser.add_argument(
        "--baseline",
        metavar="SETTING",
        help="setting to compare all others with, such as lr=0.003, a label or a run directory (default: the best)",
    )
    parser.add_argument(
        "--margin",
        type=Number(above=0),
        metavar="D",
        help="also say which settings are the same within D, or no worse than the baseline by D",
    )
    parser.add_argument(
        "--difference",
        type=Number(above=0),
        metavar="D",
        help="also say how many seeds would detect a true difference of D, what they cost, and the command",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--planned",
        dest="mode",
        action="store_const",
        const="planned",
        help="the number of seeds was fixed before the first look (default: what the sweep's files say)",
    )
    mode.add_argument(
        "--again",
        dest="mode",
        action="store_const",
        const="again",
        help="seeds were added after a look: say keep, drop or one more seed, by a test for any number of looks",
    )
    parser.add_argument(
        "--reach",
        type=Number(),
        metavar="VALUE",
        help="report when each run reaches VALUE (default: a value that 3 of 4 runs reach)",
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COND",
        help="keep only runs that meet a condition, such as 'optimizer.lr>1e-3'; repeatable",
    )
    parser.add_argument(
        "--sort", metavar="KEY", help="sort by a column or config key; -KEY sorts descending (default: best run first)"
    )
    parser.add_argument("--columns", metavar="KEY,…", help="columns to show (default: those in which runs differ)")
    parser.add_argument(
        "--limit", type=WholeNumber(), default=40, metavar="N", help="rows to print; 0 = all (default: 40)"
    )
    for kind in OUTPUTS:
        parser.add_argument(
            f"--{kind}", metavar="FILE", help=f"{MEANINGS[kind]}; - writes to standard output instead of the tables"
        )
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raise ConfigError for a mistake in them."""
    return make_parser().read(join_sort_key(arguments))


def join_sort_key(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--sort -lr` joined to one word: argparse would read `-lr` as an option."""
    words = iter(arguments)
    return [f"--sort={next(words, '')}" if word == "--sort" else word for word in words]


def check_options(options: argparse.Namespace, files: Mapping[str, str]) -> None:
    """Raise ConfigError for mistakes that would otherwise show only after all runs have been read."""
    if list(files.values()).count("-") > 1:
        raise ConfigError(
            f"--{' - --'.join(files)} -: only one of them can go to standard output; give the others a file"
        )
    for kind, file in files.items():
        if kind in NEEDED and not is_installed(NEEDED[kind]):
            raise ConfigError(f"--{kind} {file}: needs {NEEDED[kind]}; install it with pip install 'lmtrain[plot]'")
        suffix = Path(file).suffix[1:].lower()
        if suffix and suffix not in {kind, *SUFFIXES.get(kind, ())}:
            way_out = f"--{suffix} {file}" if suffix in OUTPUTS else Path(file).with_suffix(f".{kind}")
            raise ConfigError(f"--{kind} {file}: would not be a {suffix} file; give {way_out}")
        if Path(file).is_dir():
            raise ConfigError(f"--{kind} {file}: is a folder; give a file")
        if not Path(file).parent.is_dir():
            raise ConfigError(f"--{kind} {file}: the folder {Path(file).parent} does not exist; create it first")

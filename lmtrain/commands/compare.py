"""`python -m lmtrain compare RUN…`: runs side by side, and whether their differences are more than noise."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.compare.run_values import VALUE_KINDS, equal_places, sign
from lmtrain.compare.runs import Run, load_runs, with_labels
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.options import Number, OptionParser, WholeNumber

if TYPE_CHECKING:  # with scipy
    from lmtrain.compare.comparison import RunComparison

DESCRIPTION = """\
Runs side by side: what differs in their configs, their losses at equal steps, tokens, FLOPs and seconds, and whether
the differences are more than the noise between seeds. Reads only the runs' own files, also while they are written."""
EPILOG = """\
Runs that differ in nothing but the seed are replicates. Columns, for --sort, --filter and --columns: run, path, label,
parent, status, steps, tokens, flops, seconds, parameters, at_step, at_tokens, at_flops, at_seconds, best, best_step,
final, tokens_per_second, and every config key (lr for optimizer.lr where that is clear)."""


# What can be written to a file: the function that makes its text or bytes, imported when asked for.
OUTPUTS: Mapping[str, tuple[str, str]] = {
    "csv": ("lmtrain.compare.output.text_files", "as_csv"),
    "json": ("lmtrain.compare.output.text_files", "as_json"),
    "markdown": ("lmtrain.compare.output.text_files", "as_markdown"),
    "html": ("lmtrain.compare.output.page", "as_html"),
    "png": ("lmtrain.compare.output.picture", "as_png"),
    "pdf": ("lmtrain.compare.output.picture", "as_pdf"),
    "svg": ("lmtrain.compare.output.picture", "as_svg"),
}
# Beside the output's own name; a picture or a page by another would be opened by the wrong program.
SUFFIXES = {"csv": {"txt"}, "json": {"txt"}, "markdown": {"md", "txt"}, "html": {"htm"}}
NEEDED = {"html": "plotly", **dict.fromkeys(("png", "pdf", "svg"), "matplotlib")}
MEANINGS = {
    "html": "one page with curves, tables and statistics, that needs no network; ",
    "png": "the mean curves as a picture for a paper; ",
}


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    files = {kind: file for kind in OUTPUTS if (file := getattr(options, kind))}
    check_options(options, files)
    from lmtrain.compare.comparison import compare  # scipy takes half a second, which --help need not wait for
    from lmtrain.compare.output.terminal_view import show_comparison

    with raising_config_errors():
        comparison = compare(
            select_runs(options),
            metric=options.metric,
            at_step=options.at_step,
            value=options.value,
            difference=options.difference,
            goal=options.reach,
            asked=options.columns and options.columns.split(","),
        )
        contents = {file: output_bytes(kind, comparison) for kind, file in files.items()}
        piped = contents.pop("-", None)
        for file, content in contents.items():  # before anything is printed, which may end early: `| head`
            Path(file).write_bytes(content)
    if piped is None:
        show_comparison(comparison, limit=options.limit)
    else:
        sys.stdout.buffer.write(piped)
    for kind, file in files.items():
        if file != "-":
            print(f"{kind}: {visible(file)}", file=sys.stdout if piped is None else sys.stderr)
    return 0


def output_bytes(kind: str, comparison: "RunComparison") -> bytes:
    """Return the content of a file of one of `OUTPUTS`."""
    module, name = OUTPUTS[kind]
    content: str | bytes = getattr(importlib.import_module(module), name)(comparison)
    return content.encode() if isinstance(content, str) else content


def make_parser() -> OptionParser:
    """Return the parser of all options."""
    parser = OptionParser(prog="python -m lmtrain compare", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run or sweep directories, any folder above, or globs")
    parser.add_argument("--metric", default="val/loss", help="what to compare (default: val/loss)")
    parser.add_argument(
        "--at-step", type=WholeNumber(1), metavar="N", help="the equal step (default: the last that all have)"
    )
    parser.add_argument("--value", choices=VALUE_KINDS, default="at-step", help="a run's value in the statistics")
    parser.add_argument(
        "--difference", type=Number(above=0), metavar="D", help="that more seeds should decide (default: as seen)"
    )
    parser.add_argument("--reach", type=Number(), metavar="VALUE", help="time to it (default: what 3 runs in 4 reach)")
    parser.add_argument("--filter", action="append", default=[], metavar="COND", help="'optimizer.lr>1e-3'; repeatable")
    parser.add_argument("--sort", metavar="KEY", help="a column or config key; -KEY: descending (default: best first)")
    parser.add_argument("--columns", metavar="KEY,…", help="these alone (default: those that tell runs apart)")
    parser.add_argument(
        "--limit", type=WholeNumber(), default=40, metavar="N", help="rows of a table; 0 = all (default: 40)"
    )
    for kind in OUTPUTS:
        parser.add_argument(
            f"--{kind}",
            metavar="FILE",
            help=MEANINGS.get(kind, "") + "write it there; - = to the terminal, and nothing else",
        )
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raise ConfigError for a mistake in them."""
    return make_parser().read(join_sort_key(arguments))


def join_sort_key(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--sort -lr` as one word: argparse would take the second for an option."""
    words = iter(arguments)
    return [f"--sort={next(words, '')}" if word == "--sort" else word for word in words]


def check_options(options: argparse.Namespace, files: Mapping[str, str]) -> None:
    """Find the mistakes that would otherwise show after everything is read."""
    if list(files.values()).count("-") > 1:
        raise ConfigError(f"--{' - --'.join(files)} -: one of them at a time")
    for kind, file in files.items():
        if kind in NEEDED and not is_installed(NEEDED[kind]):
            raise ConfigError(f"--{kind} {file}: needs {NEEDED[kind]}; install it with pip install 'lmtrain[plot]'")
        suffix = Path(file).suffix[1:].lower()
        if suffix and suffix not in {kind, *SUFFIXES.get(kind, ())}:
            way_out = f"--{suffix} {file}" if suffix in OUTPUTS else Path(file).with_suffix(f".{kind}")
            raise ConfigError(f"--{kind} {file}: would be no {suffix} file; give {way_out}")
        if Path(file).is_dir():
            raise ConfigError(f"--{kind} {file}: is a folder; give a file")
        if not Path(file).parent.is_dir():
            raise ConfigError(f"--{kind} {file}: there is no folder {Path(file).parent}")


def select_runs(options: argparse.Namespace) -> list[Run]:
    """Return the runs asked for, in the order asked for."""
    from lmtrain.compare.columns import available_columns, filter_runs, find_column, sort_runs

    runs = load_runs(options.runs)
    if not runs:
        raise ConfigError(f"{' '.join(options.runs)}: no run there that can be read")
    if options.filter:
        places = equal_places(runs, options.metric, options.at_step)
        runs = filter_runs(runs, options.filter, available_columns(runs, options.metric, places))
        if not runs:
            raise ConfigError(f"--filter {' '.join(map(repr, options.filter))}: no run is left")
        runs = with_labels(runs)  # less differs among those that are left
    columns = available_columns(runs, options.metric, equal_places(runs, options.metric, options.at_step))
    if options.sort is None:
        usual = columns.get("at_step", columns["best"])
        return sort_runs(runs, usual, descending=sign(options.metric) < 0)
    return sort_runs(
        runs,
        find_column(options.sort.removeprefix("-"), columns, runs, f"--sort {options.sort}"),
        descending=options.sort.startswith("-"),
    )

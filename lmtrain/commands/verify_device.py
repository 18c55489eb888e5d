"""`python -m lmtrain verify-device [overrides]`: checks that this device computes, repeats, resumes and performs."""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.overrides import refuse_several_runs
from lmtrain.errors import ConfigError
from lmtrain.files.durable import write_atomically
from lmtrain.terminal.console import console
from lmtrain.terminal.options import Number, OptionParser, output_file
from lmtrain.terminal.units import duration
from lmtrain.verify.device.checks import CHECKS, DEVICE, FIGURES, NAMES
from lmtrain.verify.device.finding import FAILED, Check
from lmtrain.verify.device.processes import Reported, run_checks
from lmtrain.verify.device.report import default_file, is_good, json_report, table, verdict
from lmtrain.verify.signals import signals_as_exceptions

BUDGET_S = 480.0

DESCRIPTION = """\
Checks the GPU or CPU of this machine: does it compute, repeat, resume and perform as it must?

Every number format and kernel is compared with float64 on the CPU, within bounds from an analysis of rounding errors.
Then come bad steps, overlapping work, memory, compilation, equal bits, kills and resumes, and the speed of real models
beside a plain compiled loop. It needs neither data nor a network, and leaves only the JSON file.
"""
EPILOG = f"""\
Overrides apply to every run that a check makes, except for values that the check itself needs, such as sizes:
system.device=cuda:1, system.tf32=false, model.dropout=0.1.

Checks: {", ".join(NAMES)}.

The JSON file is experiments/devices/DEVICE-DATE.json if there is a folder experiments here, else DEVICE-DATE.json in
the current folder; with --only or --skip-figures, its name ends in -partial.

Exit codes: 0 = nothing failed; 1 = a check failed, or there was no time for it; 2 = a mistake in the command.

Example: python -m lmtrain verify-device --only precision,attention
"""


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    check(compose(options.overrides), groups=["system"])
    chosen = chosen_checks(options.only, skip_figures=options.skip_figures)
    started = time.monotonic()
    console.print(f"{len({each.name for each in chosen})} checks in at most {duration(options.budget)}")
    patience = max(1.0, options.budget / BUDGET_S)  # a slow machine gets more time for each check, too
    reports: list[Reported] = []
    with (
        signals_as_exceptions(),
        tempfile.TemporaryDirectory(prefix="verify-device-") as folder,
        console.status("starting") as status,
    ):
        found = run_checks(chosen, options.overrides, Path(folder), started + options.budget, patience)
        with contextlib.closing(found):  # ends the process of a check
            for each in found:
                status.update(f"{each.check.name}: {each.finding.what}")
                reports.append(each)
                show(each)
    seconds = time.monotonic() - started
    console.print(table(reports))
    file = options.json or default_file(reports, partial=len(chosen) < len(CHECKS))
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(json_report(reports, options.overrides, seconds), indent=2) + "\n")
    good = is_good(reports)
    console.print(verdict(reports, seconds), style="bold green" if good else "bold red")
    console.print(f"written: {file}")
    return 0 if good else 1


def show(each: Reported) -> None:
    """Print a line about a finding as soon as it is known; a failure with the end of its traceback or output."""
    finding = each.finding
    what = f" ({finding.what})" if finding.what else ""
    is_bad = finding.status == FAILED
    console.print(
        f"{each.seconds:5.1f} s  {each.check.name}{what}: {finding.status}: {finding.result}",
        style="bold red" if is_bad else None,
    )
    if is_bad:
        for line in finding.values.get("traceback", finding.values.get("output", [])):
            console.print(f"    {line}")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raise ConfigError for a mistake in them."""
    parser = OptionParser(
        prog="python -m lmtrain verify-device",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument(
        "--only", action="append", metavar="CHECK", help="only this check, or several with commas; can be repeated"
    )
    parser.add_argument("--skip-figures", action="store_true", help="leave out the speed of real models")
    parser.add_argument(
        "--budget",
        type=Number(above=0),
        default=BUDGET_S,
        metavar="SECONDS",
        help=f"stop after this time (default: {BUDGET_S:.0f})",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the findings to this file")
    refuse_several_runs("verify-device", arguments)
    options = parser.read(arguments)
    for text in options.overrides:
        if text.lstrip("+~").startswith("fork=") and not text.endswith("=null"):
            raise ConfigError(f"{text}: verify-device starts its own runs; leave it out")
    names = [name for given in options.only or () for name in given.split(",")]
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--only {name}: no such check; choose from {', '.join(NAMES)}")
    options.only = names
    return options


def chosen_checks(only: Sequence[str], *, skip_figures: bool) -> list[Check]:
    """Return the checks to run; the description of the device is always among them."""
    return [
        each
        for each in CHECKS
        if (not only or each.name in (*only, DEVICE)) and not (skip_figures and each.name == FIGURES)
    ]

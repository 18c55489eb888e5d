"""`python -m lmtrain benchmark verdicts`: simulates everything that a verdict of compare promises."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from lmtrain.benchmark.verdicts.jobs import SCENARIOS, jobs, run_jobs
from lmtrain.benchmark.verdicts.report import markdown, read_results, single_rows, table_rows, worst_rows
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.files.numbers import nan_as_null
from lmtrain.machine import available_cores, write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted

TABLES, QUICK_TABLES = 1000, 200


def main(arguments: Sequence[str]) -> int:
    options = make_parser().read(arguments)
    for name in options.scenarios:
        if name not in SCENARIOS:
            raise ConfigError(f"benchmark verdicts {name}: no such scenario; choose from {', '.join(SCENARIOS)}")
    with raising_config_errors():
        before = read_results(options.before) if options.before else None
    todo = jobs(
        options.scenarios or SCENARIOS,
        options.tables or (QUICK_TABLES if options.quick else TABLES),
        options.seed,
        quick=options.quick,
    )
    results = list(run_jobs(todo, options.processes or (1 if options.quick else available_cores())))
    summary = single_rows if options.all else worst_rows
    rows = table_rows(summary(results), None if before is None else summary(before))
    if options.markdown:
        console.out(markdown(rows), highlight=False)
    else:
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
        found = Counter(verdict for result in results for verdict in result.verdicts)
        console.print(
            f"{counted(len(results), 'case')}: {counted(found['ok'], 'promise')} kept, "
            f"{counted(found['hole'], 'known hole')}, {counted(found['fault'], 'fault')}"
        )
    if options.json:
        cases = [{**asdict(result), "seconds": round(result.seconds, 3)} for result in results]
        write_json_with_machine(options.json, seed=options.seed, cases=nan_as_null(cases))
    return int(any("fault" in result.verdicts for result in results))


def make_parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m lmtrain benchmark verdicts",
        description="Simulates tables whose truth is known and counts how often the verdicts of compare are wrong.",
        epilog="A number is a fault if it is more than 3 Monte Carlo errors beyond what is promised, and a hole if "
        "that is known and documented. The exit code is 1 if there is a fault. Scenarios: "
        + "; ".join(f"{name}: {meaning}" for name, (meaning, _) in SCENARIOS.items()),
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)} (default: all)")
    parser.add_argument(
        "--tables", type=WholeNumber(1), help=f"tables per case (default: {TABLES:,}, with --quick {QUICK_TABLES})"
    )
    parser.add_argument("--quick", action="store_true", help="only the typical cases of each scenario")
    parser.add_argument("--seed", type=WholeNumber(), default=1, help="seed of the simulations (default: 1)")
    parser.add_argument("--processes", type=WholeNumber(1), help="processes at once (default: one a core; --quick: 1)")
    parser.add_argument("--all", action="store_true", help="print every case, not only the worst of each promise")
    parser.add_argument("--before", type=Path, metavar="FILE", help="compare with the JSON file of an earlier version")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    return parser

"""`python -m lmtrain benchmark verdicts`: simulates everything that a verdict of compare promises."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby

from rich.table import Table

from lmtrain.benchmark.verdicts.case import Row
from lmtrain.benchmark.verdicts.scenarios import SCENARIOS, Result, jobs, run_jobs
from lmtrain.errors import ConfigError
from lmtrain.files.numbers import nan_as_null
from lmtrain.machine import available_cores, write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file

TABLES, QUICK_TABLES = 2000, 200
HEADERS = ("scenario", "what", "promise", "cases", "worst", "± MC error", "judgement", "worst case")


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark verdicts",
        description="Simulates tables whose truth is known and counts how often the verdicts of compare are wrong.",
        epilog="A number is a fault if it is more than 3 Monte Carlo errors beyond what is promised, and a hole if "
        "that is known and documented. The exit code is 1 if there is a fault.",
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)} (default: all)")
    parser.add_argument(
        "--tables", type=WholeNumber(1), help=f"tables per case (default: {TABLES:,}, with --quick {QUICK_TABLES})"
    )
    parser.add_argument("--quick", action="store_true", help="only a few cases of each scenario, in some seconds")
    parser.add_argument("--seed", type=WholeNumber(), default=1, help="seed of the simulations (default: 1)")
    parser.add_argument("--processes", type=WholeNumber(1), help="processes at once (default: one a core; --quick: 1)")
    parser.add_argument("--all", action="store_true", help="print every case, not only the worst of each scenario")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=output_file, help="also write all numbers to this file")
    options = parser.read(arguments)
    for name in options.scenarios:
        if name not in SCENARIOS:
            raise ConfigError(f"benchmark verdicts {name}: no such scenario; choose from {', '.join(SCENARIOS)}")
    todo = jobs(
        options.scenarios or SCENARIOS,
        options.tables or (QUICK_TABLES if options.quick else TABLES),
        options.seed,
        quick=options.quick,
    )
    results = list(run_jobs(todo, options.processes or (1 if options.quick else available_cores())))
    rows = [_table_row(found) for found in (single_rows(results) if options.all else worst_rows(results))]
    if options.markdown:
        console.out("\n".join(_markdown(rows)), highlight=False)
    else:
        table = Table(*HEADERS)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if options.json:
        cases = [{**asdict(result), "seconds": round(result.seconds, 3)} for result in results]
        write_json_with_machine(options.json, seed=options.seed, cases=nan_as_null(cases))
    return int(any("fault" in result.verdicts for result in results))


Judged = tuple[Result, Row, str, int]  # the last is the number of cases that the row stands for


def single_rows(results: Iterable[Result]) -> list[Judged]:
    """Return every measured number."""
    return [
        (result, row, verdict, 1)
        for result in results
        for row, verdict in zip(result.rows, result.verdicts, strict=True)
    ]


def worst_rows(results: Iterable[Result]) -> list[Judged]:
    """Return, for each scenario and each promise, the number that is furthest beyond it.

    A fault is worse than a hole. Numbers without a promise are returned for the typical cases only.
    """
    found: list[Judged] = []
    for _, of_scenario in groupby(single_rows(results), key=lambda judged: judged[0].scenario):
        promises: dict[tuple[str, float | None], list[Judged]] = {}
        for judged in of_scenario:
            if judged[1].limit is not None:
                promises.setdefault((judged[1].what, judged[1].limit), []).append(judged)
            elif judged[0].typical:
                found.append(judged)
        for own in promises.values():
            result, row, verdict, _ = max(own, key=lambda judged: (judged[2] == "fault", judged[1].excess))
            found.append((result, row, verdict, len(own)))
    return found


def _table_row(judged: Judged) -> tuple[str, ...]:
    result, row, verdict, count = judged
    promise = "" if row.limit is None else f"{'≤' if row.at_most else '≥'} {row.limit:g}"
    return (
        result.scenario,
        row.what,
        promise,
        str(count),
        f"{row.value:.3f}",
        f"{row.error:.3f}",
        verdict,
        f"{result.case} ({result.tables:,} tables)",
    )


def _markdown(rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [HEADERS, ["---"] * len(HEADERS), *rows]]

"""Summarizes what the simulations measured, as a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lmtrain.benchmark.verdicts.case import Row
from lmtrain.benchmark.verdicts.jobs import CaseResult

HEADERS = ("scenario", "what", "promise", "cases", "worst", "± MC error", "judgement", "worst case")
BEFORE = "worst before"

Judged = tuple[CaseResult, Row, str, int]  # the last is the number of cases that the row stands for


def single_rows(results: Iterable[CaseResult]) -> list[Judged]:
    """Return every measured number."""
    return [
        (result, row, verdict, 1)
        for result in results
        for row, verdict in zip(result.rows, result.verdicts, strict=True)
    ]


def worst_rows(results: Iterable[CaseResult]) -> list[Judged]:
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


def table_rows(rows: Sequence[Judged], before: Sequence[Judged] | None = None) -> list[tuple[str, ...]]:
    """Return the headers and a row of texts per number; with `before`, also the same number of an earlier version."""
    earlier = {_key(judged): judged[1] for judged in before or ()}
    found: list[tuple[str, ...]] = [HEADERS if before is None else (*HEADERS[:4], BEFORE, *HEADERS[4:])]
    for judged in rows:
        result, row, verdict, count = judged
        promise = "" if row.limit is None else f"{'≤' if row.at_most else '≥'} {row.limit:g}"
        then = () if before is None else (_number(earlier[_key(judged)].value) if _key(judged) in earlier else "–",)
        case = f"{result.case} ({result.tables:,} tables)"
        start = (result.scenario, row.what, promise, str(count))
        found.append((*start, *then, _number(row.value), _number(row.error), verdict, case))
    return found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the headers."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def read_results(file: Path) -> list[CaseResult]:
    """Return the results that `--json` wrote to a file.

    Raises:
        ValueError: it is not such a file.
        OSError: it cannot be read.
    """
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
        return [CaseResult(**{**case, "rows": [_row(row) for row in case["rows"]]}) for case in cases]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not written by benchmark verdicts --json ({error!r})") from error


def _row(row: Mapping[str, Any]) -> Row:
    numbers = {key: math.nan if row[key] is None else row[key] for key in ("value", "error")}
    return Row(**{**row, **numbers})


def _key(judged: Judged) -> tuple[str, str, float | None, str]:
    result, row, _, _ = judged
    return result.scenario, row.what, row.limit, "" if row.limit is not None else result.case


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"

"""The report of `verify-device`: lines while it runs, a table for people, and a JSON file."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lmtrain.files.numbers import nan_as_null
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.terminal.units import counted, duration
from lmtrain.verify.device.checks import DEVICE, FIGURES
from lmtrain.verify.device.finding import FAILED, MEASURED, NOT_APPLICABLE, NOT_RUN, PASSED
from lmtrain.verify.device.processes import Reported

STYLES = {PASSED: "green", FAILED: "bold red", NOT_APPLICABLE: "dim", NOT_RUN: "yellow", MEASURED: ""}
FOLDER = Path("experiments", "devices")


def is_good(reports: Sequence[Reported]) -> bool:
    """Return whether every check was made and none failed; figures for which no time was left do not count."""
    return not any(
        each.finding.status == FAILED or (each.finding.status == NOT_RUN and each.check.name != FIGURES)
        for each in reports
    )


def table(reports: Sequence[Reported]) -> Table:
    made = Table("check", "", "", "result", "what a failure means")
    for before, each in zip([None, *reports], reports, strict=False):
        is_first = before is None or before.check.name != each.check.name
        finding = each.finding
        made.add_row(
            each.check.name if is_first else "",
            finding.what,
            Text(finding.status, style=STYLES[finding.status]),
            finding.result,
            each.check.meaning if is_first else "",
        )
    return made


def verdict(reports: Sequence[Reported], seconds: float) -> str:
    """Return a sentence that sums up the findings."""
    count = Counter(each.finding.status for each in reports)
    parts = [f"{count[status]} {status}" for status in STYLES if count[status]]
    return f"{counted(len(reports), 'finding')} in {duration(seconds)}: {', '.join(parts)}"


def json_report(reports: Sequence[Reported], overrides: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return the content of the JSON file."""
    device = device_of(reports)
    environment = describe_environment("", str(device.get("name")))
    git = environment["git"]
    return {
        "passed": is_good(reports),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "device": device,
        "overrides": [*overrides],
        "software": hardware_and_software(environment),
        "commit": git and git["commit"],
        "changed_files": git and git["changed"],
        "findings": [
            {"check": each.check.name, **nan_as_null(asdict(each.finding)), "seconds": round(each.seconds, 1)}
            for each in reports
        ],
    }


def device_of(reports: Sequence[Reported]) -> Mapping[str, Any]:
    """Return the description of the device; empty if the check that makes it was not run, or failed."""
    return next((each.finding.values for each in reports if each.check.name == DEVICE), {})


def default_file(reports: Sequence[Reported], *, partial: bool) -> Path:
    """Return the JSON file for these findings: in `experiments/devices/` if there is a folder `experiments`."""
    folder = FOLDER if FOLDER.parent.is_dir() else Path()
    name = re.sub(r"[^a-z0-9]+", "-", str(device_of(reports).get("name", "unknown")).lower()).strip("-")
    return folder / f"{name}-{time.strftime('%Y-%m-%d')}{'-partial' if partial else ''}.json"

"""Reads what `auto` became in a run, for a run that continues it."""

from pathlib import Path
from typing import Any

from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links

RECORD = "environment.json"


def kept_choices(run_dir: Path, fork: str | None = None) -> dict[str, Any]:
    """Return the choices that a run keeps, by config key: its own from before, or those of the run that it forks.

    They are recorded as `resolved` in `environment.json`; a resume that changed one has a record of its own there.
    """
    run = Path(fork) if fork and not checkpoint_steps(run_dir) else run_dir
    refuse_links(run, [RECORD])
    environment = read_json(run / RECORD)
    resumes = environment.get("resumes")
    choices: dict[str, Any] = {}
    for record in [environment, *(resumes if isinstance(resumes, list) else [])]:
        if isinstance(record, dict) and isinstance(record.get("resolved"), dict):
            choices |= record["resolved"]
    return choices

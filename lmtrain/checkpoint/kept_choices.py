"""Reads what `auto` became in a run, for a run that continues it."""

from pathlib import Path
from typing import Any

from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links

RECORD = "environment.json"


def kept_choices(run_dir: Path | None, fork: str | None = None) -> dict[str, Any]:
    """Return the choices that a run keeps, by config key: its own from before, or those of the run that it forks.

    Without `run_dir`, the run is yet to be made, and keeps only those of the run that it forks.

    The choices are recorded as `resolved` in `environment.json`; a resume that changed one has a record of its own
    there. A record without `resolved`, of an earlier version, says in its description of the device what the run
    computed with.
    """
    run = Path(fork) if fork and not (run_dir and checkpoint_steps(run_dir)) else run_dir
    if run is None:
        return {}
    refuse_links(run, [RECORD])
    environment = read_json(run / RECORD)
    resumes = environment.get("resumes")
    choices: dict[str, Any] = {}
    for record in [environment, *(resumes if isinstance(resumes, list) else [])]:
        if isinstance(record, dict):
            resolved = record["resolved"] if "resolved" in record else _described(record.get("device"))
            choices |= resolved if isinstance(resolved, dict) else {}
    return choices


def _described(device: Any) -> dict[str, Any]:
    """Return the choices in a text such as `cpu (2 threads), float32, eager`; none if it is another one."""
    parts = device.rsplit(", ", 2) if isinstance(device, str) else []
    return {"system.dtype": parts[1], "system.compile": parts[2] == "compiled"} if len(parts) == 3 else {}

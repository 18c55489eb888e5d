"""Reads `metrics.jsonl`."""

import json
import math
from pathlib import Path

# In metrics.jsonl: measured by a clock, or of the process and not of the training.
MEASURED = frozenset({"step_time_ms", "tokens_per_second", "seconds", "memory_gb", "mfu"})


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, with NaN for null; a last one cut short by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(values, dict):
            break
        lines.append({name: math.nan if value is None else value for name, value in values.items()})
    return lines

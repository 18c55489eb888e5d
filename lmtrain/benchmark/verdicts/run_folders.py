"""Writes the files of runs whose curves are simulated, and reads what `compare` claims of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.benchmark.verdicts.rules import Claims, read_claims
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs

STEP_TOKENS = 1024
STEP_SECONDS = 0.5
METRIC = "val/loss"


def write_run(
    folder: Path,
    *,
    seed: int,
    lr: float,
    steps: Sequence[int],
    losses: Sequence[float] | np.ndarray,
    fork: Path | None = None,
    fork_step: int | None = None,
) -> Path:
    """Write a completed run with these evaluations; `fork` is the folder of the run from which it was forked."""
    interval = steps[1] - steps[0] if len(steps) > 1 else steps[0]
    config: dict[str, Any] = {
        "name": "simulated",
        "seed": seed,
        "data": {"path": "data/text", "batch_size": 2, "block_size": 512},
        "model": {"n_layer": 4},
        "optimizer": {"lr": lr},
        "trainer": {"max_steps": steps[-1], "eval_interval": interval, "gradient_accumulation_steps": 1},
        "system": {"device": "cpu", "dtype": "float32", "compile": False},
        "fork": None if fork is None else str(fork),
        "step": fork_step,
    }
    environment: dict[str, Any] = {
        "run_id": f"{folder.parent.name}-{folder.name}",
        "host": "here",
        "data": {"train": "0f8e", "val": "9ff2"},
        "model": {"parameters": 1_000_000, "flops_per_token": 6_000_000},
    }
    if fork is not None:
        environment["forked_from"] = {"run": str(fork), "run_id": f"{fork.parent.name}-{fork.name}", "step": fork_step}
    lines = [
        {"step": step, METRIC: float(loss), "tokens": step * STEP_TOKENS, "seconds": step * STEP_SECONDS}
        for step, loss in zip(steps, losses, strict=True)
    ]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML, and quick to read
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = {"status": "completed", "steps": steps[-1], "tokens": steps[-1] * STEP_TOKENS}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def claims_of_runs(folders: Sequence[Path], **options: Any) -> Claims:
    """Return what `compare` claims of the runs in these folders."""
    return read_claims(compare(load_runs(folders, warn=lambda line: None), metric=METRIC, **options).conclusions)


def losses_at(steps: Sequence[int], final: float) -> np.ndarray:
    """Return a falling curve that ends at `final`."""
    return np.asarray(final + 2.0 * (np.array(steps, dtype=float) ** -0.5 - float(steps[-1]) ** -0.5))

"""Writes run folders like those of lmtrain, without training, even by the thousand.

`python tests/support/synthetic_runs.py FOLDER 1000` writes a thousand runs and prints how long `compare` takes to read
them.
"""

import copy
import json
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lmtrain.scheduler import cosine

STEP_TOKENS = 1024
STEP_SECONDS = 0.5
PARAMETERS = 1_000_000


@cache
def base_config() -> dict[str, Any]:
    """Return the config of the quickstart, resolved as a run writes it."""
    from omegaconf import OmegaConf

    from lmtrain.config.compose import compose

    overrides = ["experiments=quickstart", "model.vocab_size=512", "logger=[]", "data=tokens", "data.path=data/stdlib"]
    config: dict[str, Any] = OmegaConf.to_container(compose(overrides), resolve=True)  # type: ignore[assignment]
    return config


def write_run(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    final_loss: float = 3.0,
    steps: int = 200,
    eval_interval: int = 50,
    log_interval: int = 1,
    first_step: int = 0,
    status: str | None = "completed",
    speed: float = 1.0,
    bad_steps: int = 0,
    bytes_per_token: float = 2 / np.log(2),
    environment: Mapping[str, Any] | None = None,
    decays: bool = False,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write a run whose validation loss falls as a power of the step, to `final_loss` after `steps`.

    `changes` are config values by dotted key. With `status` None the run has no `result.json`. The learning rate is
    logged as constant, or with `decays` as the config's cosine. `metrics` are more values for each evaluation.
    """
    config = copy.deepcopy(base_config())
    for key, value in {"trainer.max_steps": steps, **(changes or {})}.items():
        node = config
        *parents, name = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    config["scheduler"] |= {"lr": config["optimizer"]["lr"], "max_steps": config["trainer"]["max_steps"]}
    folder.mkdir(parents=True)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    (folder / "config.yaml").write_text(yaml.dump(config, Dumper=dumper, sort_keys=False))
    lines = []
    schedule = {key: value for key, value in config["scheduler"].items() if not key.startswith("_")}
    for step in range(first_step + log_interval, steps + 1, log_interval):
        loss = final_loss * (step / steps) ** -0.1
        line = {
            "step": step,
            "train/loss": loss - 0.05,
            "lr": cosine(step - 1, **schedule) if decays else config["optimizer"]["lr"],
            "grad_norm": 0.9,
            "tokens_per_second": STEP_TOKENS / STEP_SECONDS * speed,
            "step_time_ms": 1000 * STEP_SECONDS / speed,
            "memory_gb": 0.35,
        }
        if step % eval_interval == 0:
            line |= {
                "val/loss": loss,
                "val/perplexity": float(np.exp(loss)),
                "val/bits_per_byte": loss / np.log(2) / bytes_per_token,
            }
            line |= metrics or {}
        lines.append(line | {"tokens": step * STEP_TOKENS, "seconds": step * STEP_SECONDS / speed})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorded = {
        "run_id": folder.name,
        "started": "2026-11-23T04:03:13+0000",
        "command": ["lmtrain", "experiments=quickstart"],
        "host": "here",
        "git": None,
        "model": {"class": "Llama", "parameters": PARAMETERS, "flops_per_token": 6 * PARAMETERS},
        "data": {"train": "0f8e", "val": "9ff2"},
        **(environment or {}),
    }
    (folder / "environment.json").write_text(json.dumps(recorded, indent=2))
    if status is not None:
        evaluated = [line["val/loss"] for line in lines if "val/loss" in line]
        result = {
            "status": status,
            "objective": min(evaluated, default=None),
            "best_val_loss": min(evaluated, default=None),
            "best_step": steps,
            "final_train_loss": lines[-1]["train/loss"] if lines else None,
            "final_val_loss": evaluated[-1] if evaluated else None,
            "steps": steps,
            "tokens": steps * STEP_TOKENS,
            "bad_steps": bad_steps,
            "seconds": steps * STEP_SECONDS / speed,
            "tokens_per_second": STEP_TOKENS / STEP_SECONDS * speed,
            "config_hash": "0" * 16,
            "error": None if status == "completed" else f"DivergedError: the loss is {status}",
        }
        (folder / "result.json").write_text(json.dumps(result, indent=2))
    return folder


def write_sweep(folder: Path, count: int, *, seeds: int = 5, **options: Any) -> Path:
    """Write `count` runs as jobs of a sweep over learning rate, batch size and seed, with the best loss near 1e-2."""
    generator = np.random.default_rng(0)
    for job in range(count):
        setting, seed = divmod(job, seeds)
        lr, batch = 1e-3 * 2.0 ** (setting % 10), 8 * 2 ** (setting // 10 % 4)
        loss = 3.0 + 0.05 * np.log2(lr / 8e-3) ** 2 + 0.02 * np.log2(batch) + 0.01 * generator.standard_normal()
        changes = {"optimizer.lr": lr, "data.batch_size": batch, "seed": seed + 1}
        if setting >= 40:
            changes["optimizer.weight_decay"] = 0.01 * (setting // 40)
        write_run(folder / str(job), changes, final_loss=float(loss), **options)
    return folder


if __name__ == "__main__":
    from lmtrain.comparison.runs import load_runs

    place, count = Path(sys.argv[1]), int(sys.argv[2])
    write_sweep(place, count)
    began = time.process_time()
    runs = load_runs([place])
    print(
        f"{len(runs)} runs of {len(runs[0].metrics['step'])} lines read in {time.process_time() - began:.2f} s of CPU"
    )

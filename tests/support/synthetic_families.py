"""Writes trunks and their decayed branches like those of lmtrain, without training."""

from pathlib import Path
from typing import Any

import yaml

from support.synthetic_runs import write_run

WSD = {"scheduler._target_": "lmtrain.scheduler.wsd", "scheduler.warmup_steps": 10, "scheduler.min_lr": 0.0}
TRUNK = {**WSD, "scheduler.decay_steps": 0}


def write_trunk(folder: Path, seed: int, lr: float = 3e-3, *, loss: float = 3.0, steps: int = 200) -> Path:
    return write_run(folder, {**TRUNK, "optimizer.lr": lr, "seed": seed}, final_loss=loss, steps=steps)


def write_branch(trunk: Path, step: int, loss: float, *, decay: int = 50, **options: Any) -> Path:
    """Write a branch as `fork=TRUNK step=N scheduler=wsd scheduler.decay_steps=M` records it."""
    config = yaml.safe_load((trunk / "config.yaml").read_text())
    origin = {"run": str(trunk), "run_id": trunk.name, "step": step, "config": config, "forked_from": None}
    changes = {**WSD, "optimizer.lr": config["optimizer"]["lr"], "seed": config["seed"], "fork": str(trunk)}
    changes |= {"step": step, "scheduler.decay_steps": decay, **options.pop("changes", {})}
    folder = trunk.with_name(f"{trunk.name}-{step}-{decay}")
    environment = {"forked_from": origin}
    return write_run(
        folder, changes, first_step=step, steps=step + decay, final_loss=loss, environment=environment, **options
    )


def write_two_families(folder: Path) -> Path:
    """Write two learning rates with two seeds: the trunks of 0.01 are ahead, and so are the branches of 0.003."""
    for seed in (1, 2):
        for name, lr, of_trunk in (("low", 3e-3, 3.2), ("more", 1e-2, 2.5)):
            trunk = write_trunk(folder / f"{name}-{seed}", seed, lr, loss=of_trunk + 0.01 * seed)
            for step, loss in ((100, 3.1), (200, 2.9)):
                write_branch(trunk, step, loss + 10 * lr + 0.01 * seed)
    return folder

"""Writes the completed runs of an idea into the folder of a campaign, so that `decide` finds them done."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lmtrain.decide.idea import Idea, compose_idea, with_folders
from lmtrain.sweep.job_config import job_config
from support.synthetic_runs import write_run
from support.tokens import TINY


def tiny_baseline(token_folder: Path) -> list[str]:
    return [*TINY, f"data.path={token_folder}"]


def write_idea(
    baseline: Sequence[str],
    changes: Sequence[str],
    campaign: Path,
    losses: Mapping[str, Mapping[int, float]],
    statuses: Mapping[tuple[str, int], str] | None = None,
) -> Idea:
    """Write a run for each seed of `losses`, by `baseline` and `challenger`; `statuses` by side and seed."""
    idea = with_folders(compose_idea(baseline, changes, campaign, "val/loss"))
    for side in (idea.baseline, idea.challenger):
        for seed, loss in losses.get(side.name, {}).items():
            job = side.job(seed)
            if job.directory.exists():
                continue
            status = (statuses or {}).get((side.name, seed), "completed")
            write_run(job.directory, final_loss=loss, steps=12, eval_interval=4, status=status)
            config = OmegaConf.create(dict(job_config(job.overrides, (), None).config))
            (job.directory / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return idea


def ledger_lines(campaign: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (campaign / "decisions.jsonl").read_text().splitlines()]

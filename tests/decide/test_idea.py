"""The configs of an idea."""

from pathlib import Path

from support.decided_runs import tiny_baseline

from lmtrain.decide.idea import compose_idea


def test_of_several_overrides_of_a_key_the_last_counts(token_folder: Path, tmp_path: Path) -> None:
    """A loop that makes each challenger that was kept a part of the baseline gives such lists."""
    baseline = [*tiny_baseline(token_folder), "scheduler=cosine", "optimizer.lr=1e-3"]
    kept = ["scheduler=constant", "optimizer.lr=2e-3"]
    idea = compose_idea([*baseline, *kept], ["scheduler=cosine"], tmp_path, "val/loss")
    assert idea.baseline.overrides[-2:] == ("scheduler=constant", "optimizer.lr=2e-3")
    assert idea.challenger.overrides[-2:] == ("optimizer.lr=2e-3", "scheduler=cosine")
    assert idea.baseline.config["optimizer"]["lr"] == idea.challenger.config["optimizer"]["lr"] == 2e-3
    assert idea.challenger.config["scheduler"]["_target_"].endswith("cosine")
    assert idea.baseline.config["scheduler"]["_target_"].endswith("constant")

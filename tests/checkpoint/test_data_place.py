"""A resume with another data order says so, and starts at the beginning of that order."""

import copy
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli
from support.tokens import TINY

from lmtrain.checkpoint.data_place import order_changes
from lmtrain.checkpoint.files import load_checkpoint

CONFIG = {
    "seed": 1,
    "data": {
        "_target_": "lmtrain.data.mixture.Mixture",
        "paths": {"a": "data/a"},
        "weights": {"a": 1.0},
        "max_epochs": None,
        "order": "shuffle",
        "batch_size": 4,
        "block_size": 16,
        "vocab_size": 61,
    },
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    group, _, name = key.rpartition(".")
    (config[group] if group else config)[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", 2, "seed: 1 → 2"),
        ("data.order", "random", "data.order: shuffle → random"),
        ("data.block_size", 8, "data.block_size: 16 → 8"),
        ("data.weights", {"a": 2.0}, "data.weights.a: 1.0 → 2.0"),
        ("data.max_epochs", {"a": 1}, "data.max_epochs: null → {'a': 1}"),
        ("data.of_my_own", True, "data.of_my_own: null → true"),
    ],
)
def test_changes_of_samples_or_their_order_are_listed(key: str, value: Any, line: str) -> None:
    assert order_changes(CONFIG, changed(key, value)) == [line]


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.batch_size", 8), ("data.paths", {"a": "b"}), ("data.dtype", "uint16"), ("name", "x")],
)
def test_changes_that_keep_samples_and_order_are_not_listed(key: str, value: Any) -> None:
    assert order_changes(CONFIG, changed(key, value)) == []


@pytest.mark.slow
def test_a_resume_with_another_block_size_starts_the_data_order_again(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    def samples() -> int:
        seen: int = load_checkpoint(tmp_path / "out" / "checkpoints" / "latest").state["train"]["samples"]
        return seen

    assert cli(*TINY, f"data.path={token_folder}", "trainer.max_steps=3", "hydra.run.dir=out").returncode == 0
    assert samples() == 3 * 8
    more = ["trainer.max_steps=4", "data.block_size=8", "allow_changes=[data.block_size]"]
    done = cli("resume=out", *more)
    assert done.returncode == 0, done.stderr
    warning = "the data order has changed (data.block_size: 16 → 8): the run starts at its beginning, after 24 samples"
    assert warning in " ".join(done.stdout.split())
    assert samples() == 8
    done = cli("resume=out", "trainer.max_steps=5")
    assert done.returncode == 0, done.stderr
    assert "the data order has changed" not in done.stdout
    assert samples() == 2 * 8

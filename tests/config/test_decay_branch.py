"""A fork with a decay ends where the decay ends, unless the command names its length."""

from pathlib import Path

import pytest
from support.saved_run import write_saved_run

from lmtrain.config.build import build
from lmtrain.config.check import check
from lmtrain.config.compose import compose_with_notes, without_hydra
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.config.written_for.mismatches import end_of_branch


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["++fork=run", "step=200", "scheduler.decay_steps=50"], ["trainer.max_steps=250"]),
        (["++fork=run", "scheduler.decay_steps=50", "step=200", "seed=3"], ["trainer.max_steps=250"]),
        (["++fork=run", "step=200", "++scheduler.decay_steps=50"], ["trainer.max_steps=250"]),
        (["++fork=run", "step=200", "scheduler.decay_steps=50", "trainer.max_steps=300"], []),
        (["++fork=run", "step=200", "scheduler.decay_steps=50", "scheduler.max_steps=300"], []),
        (["++fork=run", "step=200", "scheduler.decay_steps=0"], []),
        (["++fork=run", "step=200", "scheduler.decay_steps=a"], []),
        (["++fork=run", "step=200"], []),
        (["scheduler.decay_steps=50"], []),
        ([], []),
    ],
)
def test_the_end_of_a_branch(own: list[str], expected: list[str]) -> None:
    assert end_of_branch(own) == expected


def test_a_branch_moves_the_end_that_its_parent_gave_to_its_schedule() -> None:
    own = ["++fork=run", "step=200", "scheduler.decay_steps=50"]
    origins = ["scheduler=wsd", "scheduler.max_steps=100"]
    assert end_of_branch(own, origins) == ["trainer.max_steps=250", "scheduler.max_steps=250"]


def test_a_branch_of_a_trunk_decays_from_the_fork_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trunk = ("scheduler=wsd", "scheduler.decay_steps=0", "scheduler.warmup_steps=5", "trainer.max_steps=1000")
    run = write_saved_run(Path("outputs", "run"), "model=llama_1m", "data.path=data/tiny", *trunk)
    lines = expand_fork([f"fork={run}", "step=300", "scheduler=wsd", "scheduler.decay_steps=20"], prepares=False)
    composition = compose_with_notes(lines)
    assert composition.notes == ["the fork decays from its beginning on: trainer.max_steps=320"]
    recorded = composition.config.hydra.overrides.task  # what a fork of the branch begins with
    cfg = check(without_hydra(composition.config), groups=["scheduler", "trainer", "optimizer"])
    assert cfg.trainer.max_steps == cfg.scheduler.max_steps == 320
    schedule = build(cfg.scheduler)
    assert schedule(299) == schedule(300) == cfg.optimizer.lr > schedule(301) > schedule(319) > schedule(320) == 0
    assert without_hydra(compose_with_notes(recorded).config) == composition.config

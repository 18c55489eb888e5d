"""The plan of a run with a batch schedule has the tokens, epochs and time of the run itself."""

from pathlib import Path
from typing import Any

import pytest
from support.tokens import TINY

from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.parts import build_parts, build_scratch_trainer, work_of
from lmtrain.plan.make import make
from lmtrain.plan.terminal_view import model_and_data

SCHEDULE = ["trainer.batch_schedule=[[0, 4], [300, 16]]", "trainer.length_schedule=[[0, 8]]"]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from support.tokens import write_tokens

    folder = write_tokens(tmp_path_factory.mktemp("data") / "tokens")
    return check(compose([*TINY, f"data.path={folder}", "model.vocab_size=61", *SCHEDULE]))


def test_a_plan_counts_the_steps_of_the_run(cfg: Any, tmp_path: Path) -> None:
    plan = make(cfg, tmp_path / "run", [])
    trainer = build_scratch_trainer(cfg, build_parts(cfg), tmp_path)
    trainer.fit()
    facts = plan.facts
    assert facts.tokens == trainer.state.tokens == 5 * 64 + 7 * 256
    assert facts.epochs == trainer.train_loader.epochs(trainer.state.samples)
    assert facts.seconds == pytest.approx(facts.tokens * (facts.step_seconds or 0) / facts.mean_step_tokens)
    assert plan.run_flops == plan.flops_per_token * trainer.state.tokens
    assert plan.to_dict()["tokens"]["run"] == trainer.state.tokens
    rows = dict(model_and_data(plan))
    assert rows["step"] == "64 to 256 tokens"
    assert rows["run"] == "12 steps = 2.11k tokens"
    optimal = round(facts.steps_for(20 * facts.parameters))
    assert 5 * 64 + (optimal - 5) * 256 == pytest.approx(20 * facts.parameters, abs=256)


def test_auto_chooses_for_the_work_of_all_steps(cfg: Any) -> None:
    model = build_parts(cfg).model
    constant = cfg.copy()
    constant.trainer.batch_schedule = None
    assert work_of(cfg, model).flops / work_of(constant, model).flops == (5 * 64 + 7 * 256) / (12 * 128)

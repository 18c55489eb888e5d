"""The check of bad steps passes, and fails if a bad step updates the model or is not reported."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmtrain import trainer as trainer_module
from lmtrain.loop.bad_steps import SpikeDetector, Verdict
from lmtrain.verify.device.finding import FAILED, PASSED, Finding
from lmtrain.verify.device.numbers.bad_steps import Poisoned, after_bad_steps
from lmtrain.verify.device.setting import Setting, fed


def found(tmp_path: Path, dtype: str) -> Finding:
    setting = Setting(tmp_path, ["system.device=cpu"])
    cfg = setting.small("llama", f"system.dtype={dtype}", "system.compile=false", "trainer.spike_zscore=20")
    with fed(setting.trainer(cfg, change=Poisoned)) as trainer:
        return after_bad_steps(trainer, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bad_steps_change_nothing(tmp_path: Path, dtype: str) -> None:
    result = found(tmp_path, dtype)
    assert result.status == PASSED, result


def test_an_update_in_a_bad_step_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update_always(optimizer: torch.optim.Optimizer, scaler: Any, bad: torch.Tensor, modules: Any) -> torch.Tensor:
        optimizer.step()
        return bad

    monkeypatch.setattr(trainer_module, "update", update_always)
    result = found(tmp_path, "float32")
    assert result.status == FAILED
    assert "NaN" in result.result or "nan" in result.result


def test_a_spike_that_is_not_noticed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = SpikeDetector.judge

    def only_finite(self: SpikeDetector, loss: Any, grad_norm: Any) -> Verdict:
        verdict = judge(self, loss, grad_norm)
        return Verdict(~(loss.isfinite() & grad_norm.isfinite()), verdict.scores)

    monkeypatch.setattr(SpikeDetector, "judge", only_finite)
    result = found(tmp_path, "float32")
    assert result.status == FAILED
    assert "spike" in result.result

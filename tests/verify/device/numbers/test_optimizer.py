"""The optimizer's check passes for AdamW and fails for anything a little different; so does that of clipping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmtrain.optimizer.adamw import adamw
from lmtrain.verify.device.finding import FAILED, PASSED
from lmtrain.verify.device.numbers import optimizer
from lmtrain.verify.device.setting import Setting

CPU = torch.device("cpu")


def test_the_fused_optimizer_is_adamw() -> None:
    found = optimizer.compare_updates(CPU)
    assert found.status == PASSED, found
    assert found.values["fused"]


@pytest.mark.parametrize(
    "changes",
    [{"weight_decay": 0.0}, {"betas": (0.9, 0.951)}, {"betas": (0.901, 0.95)}, {"eps": 1e-7}],
    ids=["decay", "beta2", "beta1", "eps"],
)
def test_another_optimizer_is_found(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    monkeypatch.setattr(optimizer, "adamw", lambda params, **settings: adamw(params, **{**settings, **changes}))
    assert optimizer.compare_updates(CPU).status == FAILED


def test_an_optimizer_that_decays_everything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def decays_all(params: Any, **settings: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW([param for _, param in params], **settings)

    monkeypatch.setattr(optimizer, "adamw", decays_all)
    assert optimizer.compare_updates(CPU).status == FAILED


@pytest.mark.slow
def test_clipping_is_exact_and_a_wrong_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path, ["system.device=cpu"])
    found = optimizer.compare_clipping(setting)
    assert found.status == PASSED, found
    clip: Callable[..., torch.Tensor] = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda params, limit: clip(params, 1.01 * limit))
    assert optimizer.compare_clipping(setting).status == FAILED
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda params, limit: 1.01 * clip(params, limit))
    assert optimizer.compare_clipping(setting).status == FAILED

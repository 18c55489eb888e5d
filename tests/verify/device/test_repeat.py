"""Two runs of one seed have the same bits, and a run that draws other random numbers is found."""

import os
from pathlib import Path

import pytest
import torch

from lmtrain.model.llama import Llama
from lmtrain.verify.device import repeat
from lmtrain.verify.device.finding import FAILED, MEASURED, PASSED
from lmtrain.verify.device.setting import Setting


@pytest.mark.slow
def test_the_check_passes_and_measures_the_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "ROUNDS", 1)
    found = list(repeat.same_bits_twice(Setting(tmp_path, ["system.device=cpu"])))
    assert [each.status for each in found] == [PASSED, PASSED, MEASURED]
    assert "times as long" in found[-1].result


def test_noise_from_outside_the_seed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path, ["system.device=cpu"])
    cfg = setting.small("llama", "system.compile=false")
    forward = Llama.forward

    def noisy(self: Llama, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[None, torch.Tensor]:
        _, loss = forward(self, tokens, targets)
        assert loss is not None
        return None, loss * (1 + os.urandom(1)[0] * 2**-20)

    monkeypatch.setattr(Llama, "forward", noisy)
    found = repeat.compare(setting, cfg, "llama")
    assert found.status == FAILED
    assert "the losses" in found.result

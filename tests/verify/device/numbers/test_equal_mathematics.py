"""The loss in chunks is the loss, and one that is slightly off is found."""

from pathlib import Path
from typing import Any

import pytest

from lmtrain.model.recompute import Recompute
from lmtrain.verify.device.finding import FAILED, PASSED
from lmtrain.verify.device.numbers import equal_mathematics
from lmtrain.verify.device.setting import Setting


@pytest.mark.slow
def test_the_loss_in_chunks_agrees_and_a_wrong_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path, ["system.device=cpu"])
    found = list(equal_mathematics.loss_in_chunks(setting))
    assert [each.what for each in found] == ["float32", "bfloat16", "float16"]
    assert {each.status for each in found} == {PASSED}, found
    exact = equal_mathematics.linear_cross_entropy

    def counts_all(hidden: Any, weight: Any, targets: Any) -> Any:
        return exact(hidden, weight, targets) * (targets != -100).sum() / len(targets)  # a mean over ignored ones, too

    monkeypatch.setattr(equal_mathematics, "linear_cross_entropy", counts_all)
    assert {each.status for each in equal_mathematics.loss_in_chunks(setting)} == {FAILED}
    monkeypatch.setattr(equal_mathematics, "linear_cross_entropy", lambda *inputs: exact(*inputs) * 1.00005)
    assert next(equal_mathematics.loss_in_chunks(setting)).status == FAILED

    def waits(hidden: Any, weight: Any, targets: Any) -> Any:
        return exact(hidden, weight, targets) + 0 * targets.sum().item()

    monkeypatch.setattr(equal_mathematics, "linear_cross_entropy", waits)
    assert "waits" in next(equal_mathematics.loss_in_chunks(setting)).result


@pytest.mark.slow
def test_recomputation_has_the_same_bits_and_another_dropout_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, ["system.device=cpu"])
    found = list(equal_mathematics.recomputation(setting))
    assert [each.status for each in found] == [PASSED] * 4, found
    layer = Recompute._call

    def forgets_the_generator(self: Recompute, *inputs: Any, **settings: Any) -> Any:
        self.has_dropout = False  # so that its state is not restored
        return layer(self, *inputs, **settings)

    monkeypatch.setattr(Recompute, "_call", forgets_the_generator)
    assert FAILED in {each.status for each in equal_mathematics.recomputation(setting)}

"""Every kind of attention agrees with float64, and one that sees a token of the future or another document is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lmtrain.verify.device.finding import FAILED, NOT_APPLICABLE, PASSED
from lmtrain.verify.device.numbers import attention
from lmtrain.verify.device.numbers.precision import FORMATS, Reference
from lmtrain.verify.device.setting import Setting


@pytest.mark.slow
def test_every_kind_agrees_or_says_why_it_is_not_here(tmp_path: Path) -> None:
    found = list(attention.of_each_kind(Setting(tmp_path, ["system.device=cpu"])))
    assert len(found) == 2 * len(attention.kinds()) >= 4
    assert {each.status for each in found} == {PASSED, NOT_APPLICABLE}, found
    passed = {each.what for each in found if each.status == PASSED}
    assert {"math, float32", "auto, documents masked, float32"} <= passed
    assert all("model.attention=" in each.result for each in found if each.status == NOT_APPLICABLE)


@pytest.mark.slow
@pytest.mark.parametrize("own", [(), attention.DOCUMENTS], ids=["causal", "documents"])
def test_attention_to_a_wrong_token_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: tuple[str, ...]
) -> None:
    setting = Setting(tmp_path, ["system.device=cpu"])
    reference = Reference(setting.small("llama", *own))
    assert reference.exact
    assert reference.typical  # before the kernel is wrong
    exact = F.scaled_dot_product_attention

    def sees_more(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
        if (mask := settings.pop("attn_mask", None)) is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        mask = mask.clone()
        mask[..., -2, -1] = True if mask.dtype == torch.bool else 0.0  # one query sees one key too many
        settings.pop("is_causal", None)
        return exact(q, k, v, attn_mask=mask, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", sees_more)
    monkeypatch.setattr("lmtrain.model.attention.scaled_dot_product.__defaults__", (sees_more,))
    found = attention.compare_kind(setting, reference, "math", own, FORMATS[0], "wrong")
    assert found.status == FAILED, found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_kind_on_a_gpu(tmp_path: Path) -> None:
    wrong = [each for each in attention.of_each_kind(Setting(tmp_path)) if each.status == FAILED]
    assert not wrong

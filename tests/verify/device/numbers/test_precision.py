"""The models agree with float64 within the bound in every format, and a model that is slightly wrong does not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from torch.nn import functional as F

from lmtrain.system import System
from lmtrain.verify.device.finding import FAILED, NOT_APPLICABLE, PASSED
from lmtrain.verify.device.numbers import precision
from lmtrain.verify.device.numbers.precision import (
    FORMATS,
    Reference,
    compare_pass,
    compare_training,
    compiled,
    share_of,
)
from lmtrain.verify.device.setting import Setting

EAGER = "system.compile=false"


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, ["system.device=cpu"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(Setting(tmp_path_factory.mktemp("reference"), ["system.device=cpu"]).small("llama"))


def by_name(name: str) -> precision.NumberFormat:
    return next(each for each in FORMATS if each.name == name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor"), [("float32", 1.0001), ("bfloat16", 1.2), ("float16", 1.02)])
def test_a_pass_agrees_and_a_wrong_activation_is_found(
    setting: Setting, reference: Reference, monkeypatch: pytest.MonkeyPatch, name: str, factor: float
) -> None:
    number_format = by_name(name)
    cfg = setting.small("llama", *number_format.overrides, EAGER)
    found = compare_pass(reference, cfg, number_format, "llama")
    assert found.status == PASSED, found
    silu = F.silu
    monkeypatch.setattr(F, "silu", lambda x: silu(x) * factor)
    found = compare_pass(reference, cfg, number_format, "llama")
    assert found.status == FAILED, found


@pytest.mark.slow
def test_training_agrees_and_another_learning_rate_is_found(
    setting: Setting, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "STEPS", 4)
    number_format = by_name("float32")
    cfg = setting.small("llama", *number_format.overrides, EAGER)
    found = compare_training(reference, setting, cfg, number_format, "llama")
    assert found.status == PASSED, found
    assert len(found.values["losses"]) == 4
    cfg = setting.small("llama", *number_format.overrides, EAGER, "optimizer.lr=1.01e-3")
    assert compare_training(reference, setting, cfg, number_format, "llama").status == FAILED


@NEEDS_A_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_compiler_that_computes_something_else_is_found(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def miscompile(system: System, model: Any) -> Any:
        def forward(x: Any, y: Any) -> Any:
            logits, loss = model(x, y)
            return logits, loss * 1.0001 if wrong == "loss" else 1.0001 * loss - 0.0001 * loss.detach()

        return forward

    monkeypatch.setattr(System, "compile", miscompile)
    (found,) = compiled(setting)
    assert found.status == FAILED, found


def test_without_a_compiler_there_is_nothing_to_check(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "missing_to_compile", lambda device: "there is no compiler")
    assert [(each.status, each.result) for each in compiled(setting)] == [(NOT_APPLICABLE, "there is no compiler")]


def test_formats_that_a_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: str) -> list[str]:
        return [each.name for each in FORMATS if precision.missing_format(each, torch.device(device))]

    assert missing("cpu") == ["TensorFloat-32"]
    for capability, names in (((7, 5), ["TensorFloat-32", "bfloat16"]), ((9, 0), [])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert missing("cuda") == names


def test_nan_is_infinitely_wrong() -> None:
    assert share_of(math.nan, 1.0) == math.inf
    assert share_of(0.0, 0.0) == 0
    assert share_of(1e-9, 0.0) == math.inf
    assert share_of(1.0, 2.0) == 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_formats_on_a_gpu(tmp_path: Path) -> None:
    wrong: list[Any] = [each for each in precision.in_each_dtype(Setting(tmp_path)) if each.status == FAILED]
    assert not wrong

"""The first check describes the device, and tells a user's mistake from a device that does not work."""

from pathlib import Path

import pytest
import torch

from lmtrain.machine import available_cores
from lmtrain.verify.device.describe import the_device
from lmtrain.verify.device.finding import PASSED, ImpossibleOverridesError
from lmtrain.verify.device.setting import Setting


def test_a_cpu_is_described(tmp_path: Path) -> None:
    (found,) = the_device(Setting(tmp_path, ["system.device=cpu"]))
    assert found.status == PASSED
    assert found.values["kind"] == "cpu"
    assert found.values["cores"] == available_cores()
    assert torch.__version__ in found.result


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.dtype=float8", "system.dtype=float8: "),
        ("model.attention=cudnn", "model.attention=cudnn: "),
        ("system.device=cuda:97", "system.device=cuda:97: "),
        ("model.dropout=2", "model.dropout=2"),
    ],
)
def test_impossible_overrides_are_a_mistake(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ImpossibleOverridesError, match=f"^{message}"):
        list(the_device(Setting(tmp_path, ["system.device=cpu", override])))


def test_a_device_that_does_not_compute_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_model(cfg: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("lmtrain.parts.build_model", build_model)
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(the_device(Setting(tmp_path, ["system.device=cpu"])))

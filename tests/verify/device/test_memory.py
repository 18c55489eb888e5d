"""The planned memory agrees with a real step, and a plan that is off by a fifth does not."""

from pathlib import Path

import pytest

from lmtrain.verify.device import memory
from lmtrain.verify.device.finding import FAILED, PASSED
from lmtrain.verify.device.setting import Setting


@pytest.mark.slow
def test_the_plan_agrees_and_one_that_is_off_by_a_fifth_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ("model=llama_1m", "model.vocab_size=8192", "model.n_layer=2", "data.batch_size=2", "data.block_size=64")
    monkeypatch.setattr(memory, "CPU_SIZES", {"llama": sizes})
    setting = Setting(tmp_path, ["system.device=cpu"])
    (found,) = memory.planned_and_measured(setting)
    assert found.status == PASSED, found
    for factor in (0.8, 1.2):
        planned = round(factor * found.values["measured_bytes"])
        assert memory.compare(planned, found.values["measured_bytes"], "llama").status == FAILED

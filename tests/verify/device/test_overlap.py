"""The checks of steps, batches and checkpoints pass, and fail if something waits, is mixed up, or is copied late."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.saver import Saver
from lmtrain.data.prefetch import MicroBatch
from lmtrain.trainer import Trainer
from lmtrain.verify.device import overlap
from lmtrain.verify.device.finding import FAILED, PASSED
from lmtrain.verify.device.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, ["system.device=cpu"])


@pytest.mark.slow
def test_steps_do_not_wait(setting: Setting) -> None:
    found = list(overlap.steps_do_not_wait(setting))
    assert [each.what for each in found] == ["float32", "bfloat16", "float16"]
    assert {each.status for each in found} == {PASSED}, found


@pytest.mark.parametrize(
    "wait", [lambda loss: loss.item(), bool, lambda loss: loss.nonzero()], ids=["item", "bool", "nonzero"]
)
def test_a_step_that_waits_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch, wait: Any) -> None:
    step = Trainer.step

    def waiting(self: Trainer) -> Any:
        loss, norm = step(self)
        wait(loss)
        return loss, norm

    monkeypatch.setattr(Trainer, "step", waiting)
    found = next(overlap.steps_do_not_wait(setting))
    assert found.status == FAILED
    assert "would wait" in found.result


def test_batches_arrive_and_others_are_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.status for each in overlap.batches_arrive(setting)] == [PASSED]
    arrived: list[MicroBatch] = []

    def to(self: MicroBatch, device: torch.device) -> MicroBatch:
        arrived.append(self)
        return self if len(arrived) != 50 else arrived[-2]  # memory that was used again too early

    monkeypatch.setattr(MicroBatch, "to", to)
    found = next(overlap.batches_arrive(setting))
    assert (found.status, found.result) == (FAILED, "batch 49 is wrong")


@pytest.mark.slow
def test_checkpoints_are_of_their_step_and_a_late_copy_is_found(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [each.status for each in overlap.checkpoints_are_of_their_step(setting)] == [PASSED]

    class Late(Saver):
        def _copy(self, checkpoint: Checkpoint) -> tuple[Checkpoint, None]:
            return checkpoint, None

    saver_of = overlap.saver_of

    def late(folder: CheckpointFolder) -> Saver:
        return Late(folder, saver_of(folder)._before_commit)

    monkeypatch.setattr(overlap, "saver_of", late)
    monkeypatch.setattr(overlap, "CheckpointFolder", lambda path: CheckpointFolder(setting.folder / "late"))
    found = next(overlap.checkpoints_are_of_their_step(setting))
    assert found.status == FAILED
    assert "elements" in found.result

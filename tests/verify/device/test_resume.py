"""The check of kills passes, and reports what `verify-resume` finds."""

from pathlib import Path

import pytest

from lmtrain.verify.bit_comparison import BitDifference
from lmtrain.verify.device import resume
from lmtrain.verify.device.finding import FAILED, PASSED
from lmtrain.verify.device.setting import Setting
from lmtrain.verify.verification import BitsDifferError, Verification


@pytest.mark.slow
def test_a_run_continues_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "KILLS", 1)
    (found,) = resume.after_kills(Setting(tmp_path, ["system.device=cpu"]))
    assert found.status == PASSED, found
    assert len(found.values["phases"]) == 1


def test_a_difference_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(self: Verification) -> None:
        raise BitsDifferError([BitDifference(3, "metrics.jsonl", "train/loss")], tmp_path, tmp_path, None)

    monkeypatch.setattr(Verification, "run_undisturbed", differs)
    (found,) = resume.after_kills(Setting(tmp_path, ["system.device=cpu"]))
    assert (found.status, found.result) == (FAILED, "step 3, metrics.jsonl: train/loss")

"""The trial of micro-batch sizes computes as the run will."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.tokens import TINY

from lmtrain.config.compose import compose
from lmtrain.config.preflight import preflight
from lmtrain.hardware.cpu_speed import machine_key
from lmtrain.micro_batch import trial
from lmtrain.system import System

WHOLE = 8


@pytest.fixture
def cfg(token_folder: Path) -> Any:
    kept = [text for text in TINY if not text.startswith(("trainer.gradient", "data.batch_size"))]
    more = [f"data.path={token_folder}", "data.batch_size=auto", f"trainer.global_batch_size={WHOLE}"]
    return preflight(compose([*kept, *more]))


def formats(cfg: Any, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the number formats of the timed steps."""
    found: list[str] = []
    time_steps = trial.timed_steps

    def steps(cfg: Any, system: System, *arguments: Any, **named: Any) -> Any:
        seconds = time_steps(cfg, system, *arguments, **named)
        found.append(system.dtype_name)
        return seconds

    monkeypatch.setattr(trial, "timed_steps", steps)
    monkeypatch.setattr(trial, "STEPS", 1)
    monkeypatch.setattr(trial, "largest_that_fits", lambda *_: WHOLE)
    assert len(trial.trial(cfg, kept)) == len(found) >= 2  # sizes
    return set(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bfloat16_speed", "least", "kept", "expected"),
    [
        pytest.param(7e11, 0.0, {}, "bfloat16", id="a fast CPU"),
        pytest.param(1e10, 0.0, {}, "float32", id="a slow CPU"),
        pytest.param(1e10, 0.0, {"system.dtype": "bfloat16"}, "bfloat16", id="a fork on a slow CPU"),
        pytest.param(7e11, 0.0, {"system.dtype": "float32"}, "float32", id="a fork on a fast CPU"),
        # A model this narrow has 16.4 products per cast with the whole batch, and 14.5 with half of it.
        pytest.param(7e11, 0.6 * 15.5, {}, "bfloat16", id="the whole batch is above the threshold, half of it below"),
    ],
)
def test_the_trial_computes_in_the_format_of_the_run(
    cfg: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bfloat16_speed: float,
    least: float,
    kept: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr("lmtrain.hardware.number_format.MIN_SAVING", least)
    file = tmp_path / "cpu-speed" / f"{machine_key()}.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"float32": 1e11, "bfloat16": bfloat16_speed}), encoding="utf-8")
    assert formats(cfg, kept, monkeypatch) == {expected}

"""`benchmark optimizers` measures every choice of optimizer on one model."""

import json
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark.optimizers import main
from lmtrain.errors import ConfigError

SMALL = [*TINY, "data.path=none", "model.vocab_size=61"]


@pytest.mark.slow
def test_all_choices_are_measured_against_adamw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "optimizers.json"
    assert main([*SMALL, "--rounds", "2", "--steps", "2", "--json", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    conf = Path(__file__).parents[2] / "conf" / "optimizer"
    known = {path.stem for path in conf.glob("*.yaml")}
    measured = set(written["state_bytes"])
    assert known - measured <= {name for name in known if f"{name} is left out: " in shown}  # without its package
    assert {"adamw", "lion", "muon", "normuon"} <= measured <= known
    for rounds in (written["update_seconds"], written["step_seconds"]):
        assert [set(each) for each in rounds] == [measured, measured]
    for update, step in zip(written["update_seconds"], written["step_seconds"], strict=True):
        assert all(0 < update[name] < step[name] for name in measured)
    tensors = 20  # each has a step counter
    assert written["state_bytes"]["adamw"] == 8 * written["parameters"] + 4 * tensors
    assert written["state_bytes"]["lion"] == 4 * written["parameters"]


def test_only_some_choices_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--only", "lion", "--rounds", "1", "--steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "lion" in shown
    assert "muon" not in shown
    assert "2 × 4 × 16 tokens" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer=lion"], "optimizer=lion: this benchmark compares optimizers at their own settings; see --only"),
        (["--only", "lyon"], "optimizer=lyon: no such choice"),
        (["model.vocab_size=null"], "model.vocab_size=null: data.path=none has no token files"),
    ],
)
def test_a_mistake_is_reported(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*SMALL, *arguments, "--rounds", "1"])


def test_an_unknown_name_of_the_library_is_reported() -> None:
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ConfigError, match="did you mean"):
        main([*SMALL, "--only", "lion", "--library", "prodigi", "--rounds", "1"])

"""`benchmark loops` times the trainer and two bare loops of the same tiny model."""

import json
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark.loops import CONTENDERS
from lmtrain.commands.benchmark import main
from lmtrain.errors import ConfigError


@pytest.mark.slow
def test_every_loop_is_timed(tmp_path: Path, token_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loops.json"
    options = [f"data.path={token_folder}", "--rounds=1", "--steps=2", f"--json={out}"]
    assert main(["loops", *TINY, *options]) == 0
    (seconds,) = json.loads(out.read_text(encoding="utf-8"))["seconds"]
    assert seconds.keys() == CONTENDERS.keys()
    assert min(seconds.values()) > 0
    assert "medians of 1 round of 2 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mistake_that_shows_when_the_parts_are_built_is_reported(token_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^system.dtype=float8: needs a GPU"):
        main(["loops", *TINY, f"data.path={token_folder}", "system.device=cpu", "system.dtype=float8"])

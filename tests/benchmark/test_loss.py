"""`benchmark loss` times every way on this machine, for the shapes of a config."""

import json
from pathlib import Path

import pytest
from support.tokens import VOCAB_SIZE

from lmtrain.benchmark.loss import WHOLE, main
from lmtrain.errors import ConfigError

SMALL = [
    "data=tokens",
    "data.path=none",
    "model.vocab_size=300",
    "model.d_model=24",
    "data.batch_size=2",
    "data.block_size=32",
]


def test_it_times_chunks_and_whole_logits(tmp_path: Path) -> None:
    out = tmp_path / "loss.json"
    assert main([*SMALL, "--rows", "16", "64", "--rounds", "1", "--no-compile", "--json", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert {WHOLE, "16 rows", "64 rows"} <= set(written["seconds"][0])
    assert written["bytes"]["16 rows"] < written["bytes"]["64 rows"] < written["bytes"][WHOLE]


def test_the_vocabulary_may_be_that_of_the_data(token_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model.vocab_size=null", f"data.path={token_folder}", "--rows", "16", "--rounds", "1", "--no-compile"]
    assert main([*SMALL, *options]) == 0
    shown = capsys.readouterr().out
    assert f"64 tokens, {VOCAB_SIZE} ids" in shown
    assert "auto-chunker" not in shown  # it is not compared here


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("system.dtype=float8", "system.dtype=float8: needs a GPU"),
        ("data.batch_size=auto trainer.global_batch_size=8", "data.batch_size=auto: only a run finds the number"),
    ],
)
def test_a_mistake_is_reported(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*SMALL, *override.split(), "--rounds", "1", "--no-compile"])

"""`benchmark loss` times every way on this machine, for the shapes of a config."""

import json
from pathlib import Path

import pytest

from lmtrain.benchmark.loss import WHOLE, main
from lmtrain.errors import ConfigError

SMALL = ["model.vocab_size=300", "model.d_model=24", "data.batch_size=2", "data.block_size=32"]


def test_it_times_chunks_and_whole_logits(tmp_path: Path) -> None:
    out = tmp_path / "loss.json"
    assert main([*SMALL, "--rows", "16", "64", "--rounds", "1", "--no-compile", "--json", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert {WHOLE, "16 rows", "64 rows"} <= set(written["seconds"][0])
    assert written["bytes"]["16 rows"] < written["bytes"]["64 rows"] < written["bytes"][WHOLE]


def test_a_vocabulary_of_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size=None"):
        main(["model.vocab_size=null", "--rounds", "1", "--no-compile"])

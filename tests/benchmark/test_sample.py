"""`benchmark sample` times text generation of a model of a config."""

import json
from pathlib import Path

import pytest

from lmtrain.benchmark.sample import CACHE, RECOMPUTE, TRANSFORMERS, main
from lmtrain.errors import ConfigError

SMALL = ["data=tokens", "data.path=none", "data.block_size=16", "model.vocab_size=70", "model.d_model=24"]
SIZES = ["model.n_layer=2", "model.n_head=2", "model.d_ff=32"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama_1m", "gpt2"])
def test_it_times_all_contenders_at_each_batch_size(model: str, tmp_path: Path) -> None:
    out = tmp_path / "sample.json"
    arguments = [f"model={model}", *SMALL, *SIZES, "--tokens", "10", "--batch-sizes", "1", "3", "--rounds", "2"]
    assert main([*arguments, "--json", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert {*written["tokens_per_second"]} == {"1", "3"}
    for rounds in written["tokens_per_second"].values():
        assert [{*each} for each in rounds] == [{CACHE, RECOMPUTE, TRANSFORMERS}] * 2
        assert all(speed > 0 for each in rounds for speed in each.values())
    assert written["tokens"] == 10


def test_a_model_that_transformers_lacks_is_timed_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model=decoder", *SMALL, *SIZES, "model.n_kv_head=1", "model.rope_fraction=0.5", "--tokens", "4"]
    assert main([*options, "--rounds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "transformers is left out: model.rope_fraction=0.5" in shown.replace("\n", " ")
    assert RECOMPUTE in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tokens", "17"],
            "--tokens 17: the model sees at most data.block_size=16 tokens; give --tokens 16 or data.",
        ),
        (["--tokens", "4", "model.vocab_size=null", "model=llama_1m"], "model.vocab_size=null"),
    ],
)
def test_a_mistake_is_reported(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*SMALL, *arguments])

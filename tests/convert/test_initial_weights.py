"""Tests of `init_from`: a new run begins with the weights of a Hugging Face folder or of another run."""

from pathlib import Path

import pytest
import torch
from support.command_line import Cli
from support.exported_models import LLAMA, loaded_model
from support.tokens import TINY, write_tokens

from lmtrain.convert.hugging_face.export import export_folder
from lmtrain.convert.hugging_face.read_folder import read_hugging_face_folder
from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.files.durable import sha256_of
from lmtrain.files.limited import read_json
from lmtrain.run.reading.loaded import load_model

# A learning rate that is lost in rounding keeps the weights as they were at the start.
STILL = ["optimizer.lr=1e-30", "scheduler=constant", "trainer.max_steps=2", "trainer.ema_decay=0.9"]
RUN = [*TINY, *LLAMA, "data.path=tokens", *STILL]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tokens(Path("tokens"))
    export_folder(loaded_model(LLAMA), Path("model"), "float32")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["parallel.world_size=2"], ["parallel.world_size=2", "parallel=fsdp"]])
def test_a_run_begins_with_the_weights_of_a_folder(folder: Path, more: list[str], cli: Cli) -> None:
    done = cli(*RUN, *more, "init_from=model", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    expected = read_hugging_face_folder(folder).weights
    found = load_model(Path("run"), "latest", "cpu").model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    recorded = read_json(Path("run/environment.json"))["init_from"]
    assert recorded["folder"] == str(folder)
    assert recorded["sha256"]["model.safetensors"] == sha256_of(folder / "model.safetensors")

    if not more:
        (folder / "model.safetensors").unlink()  # a run that has begun does not need it again
        resumed = cli("resume=run", "trainer.max_steps=3")
        assert resumed.returncode == 0, resumed.stderr
        assert read_json(Path("run/environment.json"))["init_from"] == recorded
        forked = cli("fork=run", "trainer.max_steps=4", "hydra.run.dir=forked")
        assert forked.returncode == 0, forked.stderr
        both = cli("fork=run", "init_from=tokens", "trainer.max_steps=4", "hydra.run.dir=both")
        assert both.returncode == 2
        assert both.stderr == (
            "config error: init_from=tokens: a fork starts with the weights of fork=run; give only one of them\n"
        )
        assert cli("resume=run", "init_from=tokens").returncode == 2

        again = cli(*RUN, "init_from=run", "hydra.run.dir=again")
        assert again.returncode == 0, again.stderr
        found = load_model(Path("again"), "latest", "cpu").model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused_in_one_line(folder: Path, cli: Cli) -> None:
    done = cli(*RUN, "model.d_ff=64", "init_from=model", "hydra.run.dir=run")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("config error: init_from=model: the weights do not fit the model: ")
    assert "model.layers.0.mlp.gate_proj.weight is 48 × 32 instead of 64 × 32" in line
    done = cli(*RUN, "init_from=tokens", "hydra.run.dir=other")
    assert done.returncode == 2
    assert "init_from=tokens: neither a Hugging Face folder (no config.json) nor a run (no config.yaml)" in done.stderr
    assert not Path("other").exists(), "nothing is left of a mistake that can be seen before the start"
    done = cli(*RUN, "init_from=nothere", "hydra.run.dir=other")
    assert "init_from=nothere: no such folder; give a Hugging Face folder or a run" in done.stderr


@pytest.mark.slow
def test_data_of_another_tokenizer_is_refused(folder: Path, cli: Cli) -> None:
    letters = {chr(65 + number): number for number in range(50)}
    tokenizer_of_characters(letters).tokenizer.save("model/tokenizer.json")
    shuffled = {letter: 49 - number for letter, number in letters.items()}
    tokenizer_of_characters(shuffled).tokenizer.save("tokens/tokenizer.json")
    begun, imported = (*RUN, "init_from=model"), ("import", "model", "data.path=tokens", "logger=[]")
    for number, arguments in enumerate((begun, imported)):
        done = cli(*arguments, f"hydra.run.dir=run-{number}")
        assert done.returncode == 2, done.stdout
        assert "data.path=tokens: was made with another tokenizer" in done.stderr

"""Tests of `import` of Hugging Face folders: there and back without loss, continued training, and bad folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import Cli
from support.exported_models import GPT2, LLAMA, MODELS, loaded_model
from support.tokens import write_tokens

from lmtrain.commands.export import main as export_run
from lmtrain.commands.import_run import main as import_run
from lmtrain.convert.hugging_face.export import export_folder
from lmtrain.convert.hugging_face.read_folder import read_hugging_face_folder
from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.run.reading.loaded import load_model

WEIGHTS = "model.safetensors"
RUN = ["hydra.run.dir=run", "logger=[]"]
SMALL = ["system.device=cpu", "sample_tokens=0", "data.batch_size=2", "trainer.gradient_accumulation_steps=1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an exported Llama with a tokenizer, below the current folder."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of_characters({chr(65 + number): number for number in range(50)})
    export_folder(loaded_model(LLAMA, tokenizer), Path("model"), "float32")
    return Path("model")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_comes_back_with_the_same_bits(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = loaded_model(MODELS[name])
    export_folder(loaded, Path("first"), dtype)
    assert import_run(["first", *RUN]) == 0
    assert export_run(["run", "--to", "hf", "second", "--dtype", dtype]) == 0
    for file in ("config.json", "generation_config.json", WEIGHTS):
        assert Path("first", file).read_bytes() == Path("second", file).read_bytes(), file
    assert import_run(["second", "hydra.run.dir=again", "logger=[]"]) == 0
    one, other = (load_model(Path(run), "latest", "cpu").model.state_dict() for run in ("run", "again"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_an_imported_model_is_evaluated_forked_and_resumed(folder: Path, cli: Cli) -> None:
    write_tokens(Path("tokens"))
    done = cli("import", "model", *RUN)
    assert done.returncode == 0, done.stderr
    assert "next: python -m lmtrain fork=run data.path=DIR" in done.stdout
    assert read_json(Path("run/imported.json"))["sha256"].keys() == {"config.json", WEIGHTS}
    found = cli("evaluate", "run", "--data", "tokens", "--device", "cpu")
    assert found.returncode == 0, found.stderr
    assert cli("evaluate", "run", "--device", "cpu").returncode == 2
    forked = cli("fork=run", "data.path=tokens", "trainer.max_steps=2", "hydra.run.dir=forked", *SMALL)
    assert forked.returncode == 0, forked.stderr
    began = cli("import", "model", "data.path=tokens", "logger=[]", "hydra.run.dir=with", "trainer.max_steps=2", *SMALL)
    assert began.returncode == 0, began.stderr
    assert "next: python -m lmtrain resume=with" in began.stdout
    resumed = cli("resume=with")
    assert resumed.returncode == 0, resumed.stderr


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_config(f, model_type="mamba"), "model_type=mamba: can't be imported; the architectures that"),
        (lambda f: change_config(f, attention_bias=True, mlp_bias=True), "attention_bias=True, mlp_bias=True: the"),
        (lambda f: change_config(f, rope_parameters={"rope_type": "yarn"}), "rope_parameters.rope_type='yarn': only"),
        (lambda f: change_config(f, hidden_size="x"), "hidden_size='x': not a size"),
        (lambda f: change_config(f, num_hidden_layers=10**4), "model.layers.3 missing, of 10000 layers"),
        (
            lambda f: change_config(f, num_hidden_layers=2 * 10**9),
            "num_hidden_layers=2000000000: not a size from 1 to 10,000",
        ),
        (lambda f: change_config(f, vocab_size=10**9), "embed_tokens.weight is 61 × 32 instead of 1000000000 × 32"),
        (lambda f: change_config(f, intermediate_size=64), "gate_proj.weight is 48 × 32 instead of 64 × 32"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: not a JSON object"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: change_weights(f, lambda t: t.pop(NORM)), "do not fit the model: model.norm.weight missing"),
        (lambda f: change_weights(f, lambda t: t.pop(LAYER)), f"do not fit the model: {LAYER} missing"),
        (lambda f: change_weights(f, lambda t: t.update(extra=torch.ones(1))), "extra unexpected"),
        (
            lambda f: change_weights(f, lambda t: t.update({NORM: torch.ones(3)})),
            "model.norm.weight is 3 instead of 32",
        ),
        (
            lambda f: change_weights(f, lambda t: t.update({NORM: torch.ones(32, dtype=torch.int8)})),
            "model.norm.weight has numbers of type int8; quantised models can't be imported",
        ),
        (
            lambda f: change_weights(f, lambda t: t.update({"lm_head.weight": torch.ones(61, 32)})),
            "tie_word_embeddings is true in config.json, but lm_head.weight is not model.embed_tokens.weight",
        ),
        (
            lambda f: change_weights(f, lambda t: t.update({NORM: torch.full((32,), torch.nan)})),
            "model.norm.weight: numbers that are not finite; the model has diverged, or is damaged",
        ),
        (
            lambda f: change_weights(f, lambda t: t.update({NORM: torch.full((32,), 1e300, dtype=torch.float64)})),
            "model.norm.weight: numbers that are not finite",
        ),
        (
            lambda f: change_weights(f, lambda t: t.update({"lm_head.weight": torch.full((61, 32), torch.nan)})),
            "lm_head.weight: numbers that are not finite",
        ),
        (pickled, "has its weights only as a pickle (pytorch_model.bin)"),
        (lambda f: (f / WEIGHTS).unlink(), "has no weights (model.safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "damaged, or not a safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), "damaged, or not a safetensors file"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not a file that the tokenizers library"),
        (
            lambda f: tokenizer_of_characters({chr(65 + n): n for n in range(62)}).tokenizer.save(
                str(f / "tokenizer.json")
            ),
            "has 62 ids, but the model has only 61; it is not the tokenizer of this model",
        ),
    ],
)
def test_a_bad_folder_is_refused_in_one_line(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        import_run(["model", *RUN])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("run").exists()


def test_the_exit_code_of_a_bad_folder_is_2(folder: Path, cli: Cli) -> None:
    pickled(folder)
    done = cli("import", "model", *RUN)
    assert done.returncode == 2
    assert done.stderr.startswith("config error: model: has its weights only as a pickle")


def test_a_folder_without_the_prefix_and_with_masks_is_read(tmp_path: Path) -> None:
    """The GPT-2 on Hugging Face's hub has names without `transformer.`, and stores the causal masks."""
    loaded = loaded_model(GPT2)
    export_folder(loaded, tmp_path / "model", "float32")
    tensors = load_file(tmp_path / "model" / WEIGHTS)
    short = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file({**short, "h.0.attn.bias": torch.ones(1, 1, 24, 24)}, tmp_path / "model" / WEIGHTS)
    found = read_hugging_face_folder(tmp_path / "model").weights
    state = loaded.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_folder_without_a_tokenizer_is_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert import_run(["bare", *RUN]) == 0
    assert "has no tokenizer.json" in capsys.readouterr().out
    assert not Path("run/tokenizer.json").exists()

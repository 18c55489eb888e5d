"""Tests of exported folders: transformers loads them, with the same logits and the same token ids."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from support.exported_models import DECODER, GPT2, LLAMA, MODELS, VOCAB_SIZE, config_of, loaded_model
from support.transformers_versions import VERSIONS, read_with
from tokenizers import Tokenizer
from torch import nn

from lmtrain.convert.hugging_face.export import export_folder
from lmtrain.convert.hugging_face.weights_files import read_weights, write_weights
from lmtrain.data.tokenizer import BPE, Bytes, Characters

TOKENS = torch.randint(VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(1))
LETTERS = "".join(map(chr, [*range(9, 14), *range(32, 127), *range(0xA0, 0x250), *range(0x4E00, 0x4E40), 0x1F98A]))
TEXT = "The quick brown fox, and 12 more.\n\tdef run(self):\n        return [1, 2]\n" * 20 + LETTERS


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits(name: str, version: str, tmp_path: Path) -> None:
    loaded = loaded_model(MODELS[name])
    export_folder(loaded, tmp_path / "model", "float32")
    found = read_with(version, tmp_path / "model", tokens=TOKENS.tolist())
    assert not found["loading"], found["loading"]
    assert found["dtype"] == "torch.float32"
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):  # tables of positions are in float32
        with torch.no_grad():
            ours = loaded.model.to(dtype)(TOKENS)[0]
        theirs = torch.tensor(found[str(dtype).removeprefix("torch.")], dtype=dtype)
        assert (ours - theirs).abs().max() <= tolerance * ours.abs().max()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.logit_softcap=30.0", "model.nope_every=2"], ["model.logit_softcap=30.0", "model.nope_every=2"]),
        (["model.embedding_scale=true"], ["model.embedding_scale=True"]),
        (["model.value_embeddings=[0,-1]", "model.mlp=relu2"], ["model.value_embeddings=[0,-1]", "model.mlp=relu2"]),
        (["model.attention_softcap=50.0", "model.parallel_blocks=true"], ["attention_softcap", "parallel_blocks"]),
        (["model.rope_fraction=0.5"], ["model.rope_fraction=0.5"]),
        (["model.sliding_window=4", "model.global_every=2"], ["model.global_every=2"]),
    ],
)
def test_options_that_transformers_lacks_are_refused_together(
    overrides: list[str], named: list[str], tmp_path: Path
) -> None:
    loaded = loaded_model([*DECODER, *overrides])
    with pytest.raises(ValueError, match="no such option") as caught:
        export_folder(loaded, tmp_path / "model", "float32")
    assert all(each in str(caught.value) for each in named)
    assert not list(tmp_path.iterdir())


class UsersModel(nn.Module):
    """A model whose arguments have other names than those here."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)


def test_a_users_model_is_refused_by_name(tmp_path: Path) -> None:
    loaded = loaded_model(LLAMA)
    config = OmegaConf.create({"model": {"_target_": "mymodels.Tiny", "size": 4}})
    with pytest.raises(ValueError, match=r"^model._target_=mymodels.Tiny: transformers has no such model; the models"):
        export_folder(replace(loaded, model=UsersModel(4), config=config), tmp_path / "model", "float32")


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    loaded = loaded_model(["model=moe_1m", "model.vocab_size=61", "data.block_size=24"])
    with pytest.raises(ValueError, match=r"model\.mlp=lmtrain\.model\.experts"):
        export_folder(loaded, tmp_path / "model", "float32")


class OneText:
    """A corpus of one text."""

    def texts(self) -> Iterator[str]:
        yield TEXT

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        yield TEXT


TOKENIZERS = {"bpe": BPE(vocab_size=400), "bytes": Bytes(), "characters": Characters()}


def random_texts(count: int, letters: str) -> list[str]:
    """Return texts with runs of white space, names of special tokens, and letters of many scripts."""
    generator = random.Random(0)
    parts = ["<|endoftext|>", "</s>", "  ", "\n\n", "'s", "the ", "<|", "|>", "1234"]
    parts = [part for part in parts if set(part) <= set(letters)]
    texts = []
    for _ in range(count):
        chosen = [
            generator.choice(parts) if generator.random() < 0.3 else "".join(generator.choices(letters, k=5))
            for _ in range(generator.randrange(6))
        ]
        texts.append("".join(chosen))
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_makes_the_same_ids_of_10_000_texts(kind: str, version: str, tmp_path: Path) -> None:
    stored = TOKENIZERS[kind].fit(OneText())
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), *range(0x1F300, 0x1F900)]))
    letters = "".join(sorted(set(TEXT))) if kind == "characters" else every
    loaded = loaded_model([*LLAMA, f"model.vocab_size={stored.vocab_size}"], stored)
    export_folder(loaded, tmp_path / "model", "float32")
    texts = random_texts(10_000, letters)
    found = read_with(version, tmp_path / "model", texts=texts)
    assert found["ids"] == [stored.encode(text) for text in texts]
    assert found["decoded"] == [stored.decode(ids, skip_special_tokens=False) for ids in found["ids"][:50]]
    assert found["eos"] == stored.end_of_text
    assert found["model_max_length"] == 24


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_chosen_format(dtype: str, tmp_path: Path) -> None:
    loaded = loaded_model(GPT2)
    export_folder(loaded, tmp_path / "model", dtype)
    found = load_file(tmp_path / "model" / "model.safetensors")
    name = "transformer.h.1.attn.c_attn.weight"
    expected = loaded.model.get_parameter("layers.1.attention.qkv.weight").detach()
    assert torch.equal(found[name], expected.T.to(getattr(torch, dtype)))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == (dtype, dtype)


def test_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    loaded = loaded_model(GPT2)
    with torch.no_grad():
        loaded.model.get_parameter("norm.weight")[0] = 1e6
    with pytest.raises(ValueError, match=r"--dtype float16: norm.weight has numbers up to 1e\+06"):
        export_folder(loaded, tmp_path / "model", "float16")


def test_large_models_are_written_in_files_with_an_index(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((10, 10), float(number)) for number in range(5)}
    write_weights(tmp_path, tensors, most_bytes=900)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    assert index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    found = read_weights(tmp_path)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names model-00002-of-00003.safetensors, which is missing"):
        read_weights(tmp_path)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    loaded = loaded_model(LLAMA, Bytes().fit(OneText()))
    with pytest.raises(ValueError, match="has 257 ids, but the model has only 61"):
        export_folder(loaded, tmp_path / "model", "float32")


def test_a_folder_with_files_is_refused_and_an_empty_one_used(tmp_path: Path) -> None:
    loaded = loaded_model(LLAMA)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ValueError, match=r"--to hf .*used: exists already and is not empty"):
        export_folder(loaded, tmp_path / "used", "float32")
    (tmp_path / "empty").mkdir()
    remarks = export_folder(loaded, tmp_path / "empty", "float32")
    assert [remark for remark in remarks if "no tokenizer.json" in remark]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "used"]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_transformers_itself_is_exported(version: str, tmp_path: Path) -> None:
    loaded = loaded_model(["model=transformers", "model.vocab_size=61", "data.block_size=24"])
    export_folder(loaded, tmp_path / "model", "float32")
    found = read_with(version, tmp_path / "model", tokens=TOKENS.tolist())
    with torch.no_grad():
        ours = loaded.model(TOKENS)[0]
    assert not found["loading"]
    assert (ours - torch.tensor(found["float32"])).abs().max() <= 1e-5 * ours.abs().max()


def test_the_tokenizer_is_loaded_as_it_was(tmp_path: Path) -> None:
    stored = Bytes().fit(OneText())
    loaded = loaded_model([*LLAMA, "model.vocab_size=300"], stored)
    export_folder(loaded, tmp_path / "model", "float32")
    assert Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).get_vocab() == stored.tokenizer.get_vocab()
    assert config_of(LLAMA).model.vocab_size == VOCAB_SIZE

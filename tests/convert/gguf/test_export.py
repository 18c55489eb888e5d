"""GGUF files have the tensors and the tokens of the model; mistakes and full disks leave nothing behind."""

import os
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.exported import PADDED, loaded, tokenizer
from support.exported_models import loaded_model

from lmtrain.convert.gguf import export as export_module
from lmtrain.convert.gguf.export import export_gguf
from lmtrain.errors import ConfigError


def written(path: Path, *, dtype: str = "float32", model: str = "llama", kind: str = "bpe", **options: Any) -> Any:
    export_gguf(loaded(model, kind, **options), path, dtype)
    return gguf.GGUFReader(path)


def tensors_of(reader: Any) -> Mapping[str, np.ndarray]:
    return {each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_float32_keeps_every_bit(tmp_path: Path, model: str, tied: bool) -> None:
    reader = written(tmp_path / "a.gguf", model=model, tie_embeddings=tied)
    found = tensors_of(reader)
    weights = dict(loaded(model, "bpe", tie_embeddings=tied).model.named_parameters())
    assert ("output.weight" in found) == (not tied)
    assert len(found) == len(weights)
    assert sorted(value.size for value in found.values()) == sorted(weight.numel() for weight in weights.values())
    for name, theirs in (("embedding", "token_embd"), ("layers.1.mlp.down", "blk.1.ffn_down"), ("norm", "output_norm")):
        np.testing.assert_array_equal(found[f"{theirs}.weight"], weights[f"{name}.weight"].detach().numpy())
    settings = {key: field.contents() for key, field in reader.fields.items()}
    assert settings["general.architecture"] == model
    assert settings[f"{model}.attention.head_count"] == 4
    assert settings[f"{model}.context_length"] == 64
    if model == "llama":
        assert settings["llama.attention.head_count_kv"] == 2
        assert settings["llama.rope.freq_base"] == 5000


def test_rows_of_queries_are_in_the_order_that_llama_cpp_rotates(tmp_path: Path) -> None:
    found = tensors_of(written(tmp_path / "a.gguf"))["blk.0.attn_k.weight"]
    ours = dict(loaded("llama", "bpe").model.named_parameters())["layers.0.attention.k.weight"].detach().numpy()
    for head in range(2):
        for number in range(8):
            np.testing.assert_array_equal(found[16 * head + 2 * number], ours[16 * head + number])
            np.testing.assert_array_equal(found[16 * head + 2 * number + 1], ours[16 * head + 8 + number])


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_sixteen_bits_round_to_nearest(tmp_path: Path, dtype: str, digits: int) -> None:
    exact, rounded = tensors_of(written(tmp_path / "a.gguf")), tensors_of(written(tmp_path / "b.gguf", dtype=dtype))
    for name, value in exact.items():
        if value.ndim == 1:
            np.testing.assert_array_equal(rounded[name], value)
        else:  # half a unit in the last place; subnormals of float16 are 2^-24 apart
            assert (np.abs(rounded[name] - value) <= np.abs(value) * 2.0**-digits + 2.0**-25).all()
    assert not np.array_equal(rounded["token_embd.weight"], exact["token_embd.weight"])


def test_q8_0_is_within_half_a_step_of_each_block(tmp_path: Path) -> None:
    exact = tensors_of(written(tmp_path / "a.gguf"))
    reader = written(tmp_path / "b.gguf", dtype="q8_0")
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"
    for name, value in tensors_of(reader).items():
        if kinds[name] == "Q8_0":
            blocks = exact[name].reshape(-1, 32).astype(np.float64)
            step = np.abs(blocks).max(1, keepdims=True) / 127
            # The scale is stored as float16, so that up to 127 steps are off by another 2^-11 of themselves.
            assert (np.abs(value.reshape(-1, 32) - blocks) <= step * (0.5 + 127 * 2.0**-11)).all()


def test_rows_that_are_no_multiple_of_a_block_are_float16(tmp_path: Path) -> None:
    reader = written(tmp_path / "a.gguf", dtype="q8_0", d_ff=80)
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_gpt2_without_biases_has_zeros(tmp_path: Path) -> None:
    found = tensors_of(written(tmp_path / "a.gguf", model="gpt2", bias=False))
    biases = [value for name, value in found.items() if name.endswith(".bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(value.any() for value in biases)


def test_ids_that_the_tokenizer_does_not_have_are_unused(tmp_path: Path) -> None:
    settings = {key: field.contents() for key, field in written(tmp_path / "a.gguf").fields.items()}
    tokens, types = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 600 + PADDED
    assert types[-PADDED:] == [5] * PADDED
    end = settings["tokenizer.ggml.eos_token_id"]
    assert (tokens[end], types[end]) == ("<|endoftext|>", 3)
    assert settings["tokenizer.ggml.pre"] == "gpt-2"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("gpt2", {"gelu": "exact"}, "model.gelu=exact: the architecture gpt2 of llama.cpp has no such option"),
        ("llama", {}, "--dtype int4: a GGUF file has one of float32, float16, bfloat16, q8_0"),
    ],
)
def test_what_llama_cpp_lacks_is_named(tmp_path: Path, model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        export_gguf(loaded(model, "bytes", **options), tmp_path / "a.gguf", "float32" if options else "int4")
    assert list(tmp_path.iterdir()) == []


def test_experts_that_no_layer_has_are_no_obstacle(tmp_path: Path) -> None:
    moe = ["model=moe_1m", "model.vocab_size=270", "data.block_size=24", "model.n_layer=2"]
    run = replace(loaded_model(moe), tokenizer=tokenizer("bytes"))
    with pytest.raises(ConfigError, match=r"^model\.mlp=lmtrain\.model\.experts\.mixture\.MixtureOfExperts: the arch"):
        export_gguf(run, tmp_path / "a.gguf", "float32")
    dense = loaded_model([*moe, "model.dense_layers=2"])
    export_gguf(replace(dense, tokenizer=tokenizer("bytes")), tmp_path / "a.gguf", "float32")
    found = tensors_of(gguf.GGUFReader(tmp_path / "a.gguf"))
    ours = dense.model.get_parameter("layers.1.mlp.down.weight").detach().numpy()
    np.testing.assert_array_equal(found["blk.1.ffn_down.weight"], ours)


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama", "bytes")
    (tmp_path / "there.gguf").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"there.gguf: exists already; give another file"):
        export_gguf(model, tmp_path / "there.gguf", "float32")
    with pytest.raises(ConfigError, match="outputs/small: has no tokenizer, which a GGUF file needs"):
        export_gguf(replace(model, tokenizer=None), tmp_path / "a.gguf", "float32")
    model.model.get_parameter("layers.0.mlp.up.weight").data[0, 0] = 1e6
    with pytest.raises(ConfigError, match=r"--dtype float16: blk\.0\.ffn_up.weight has values above 65,504"):
        export_gguf(model, tmp_path / "a.gguf", "float16")
    wide = loaded("llama", "bytes", d_ff=80)
    wide.model.get_parameter("layers.0.mlp.down.weight").data[0, 0] = 1e6
    with pytest.raises(
        ConfigError, match=r"--dtype q8_0: blk\.0\.ffn_down.weight has values above 65,504, but is float1"
    ):
        export_gguf(wide, tmp_path / "a.gguf", "q8_0")
    with pytest.raises(ValueError, match=r"outputs/small/tokenizer.json: has 600 ids, but the model has only 260"):
        export_gguf(replace(model, tokenizer=tokenizer("bpe")), tmp_path / "a.gguf", "float32")
    monkeypatch.setattr(export_module, "is_installed", lambda name: False)
    with pytest.raises(ConfigError, match=r"needs the package gguf; install it with pip install 'lmtrain\[gguf\]'"):
        export_gguf(model, tmp_path / "a.gguf", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]


def test_missing_folders_are_made_and_two_exports_share_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial: list[str] = []
    monkeypatch.setattr(export_module, "sync", lambda path: partial.append(path.name))
    export_gguf(loaded("llama", "bytes"), tmp_path / "new" / "folder" / "a.gguf", "float32")
    assert partial == [f".tmp-a.gguf-{os.getpid()}", "folder"]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.gguf"]


def test_a_model_trained_on_single_documents_is_remarked_on(tmp_path: Path) -> None:
    model = loaded("llama", "bpe")
    model.config.model.mask_documents = True
    remarks = export_gguf(model, tmp_path / "a.gguf", "float32")
    assert remarks[0].startswith("the model was trained with model.mask_documents=true: give it one document at a time")
    assert "llama.cpp neither restarts positions" in remarks[0]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    model = loaded("llama", "bytes")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a write beyond this fails, as on a full disk
    try:
        with pytest.raises(OSError, match=r"a.gguf: could be written only in part \(.*\); free some space"):
            export_gguf(model, tmp_path / "a.gguf", "float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []

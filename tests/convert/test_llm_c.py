"""Files of llm.c, written as its own script writes them, are read with every bit; other files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmtrain.convert.imported_model import check_fits
from lmtrain.convert.llm_c import read_llm_c
from lmtrain.model.gpt2 import GPT2

SIZES = {"block_size": 16, "n_layer": 2, "n_head": 2, "d_model": 8}
VOCAB, PADDED = 50, 64


def model() -> GPT2:
    torch.manual_seed(1)
    made = GPT2(vocab_size=VOCAB, **SIZES)
    for param in made.parameters():
        nn.init.normal_(param)
    return made


def write(path: Path, made: GPT2, dtype: torch.dtype = torch.float32, **changed: int) -> Path:
    """Write a model as `write_model` of llm.c's `train_gpt2.py` does."""
    header = np.zeros(256, dtype="<i4")
    fields = {"magic": 20240326, "version": 3 if dtype == torch.float32 else 5, "block_size": 16, "vocab": VOCAB,
              "n_layer": 2, "n_head": 2, "d_model": 8, "padded": PADDED} | changed  # fmt: skip
    header[:8] = list(fields.values())
    state = made.state_dict()
    padding = torch.zeros(PADDED - VOCAB, 8)
    blocks = ["attention_norm.weight", "attention_norm.bias", "attention.qkv.weight", "attention.qkv.bias",
              "attention.o.weight", "attention.o.bias", "mlp_norm.weight", "mlp_norm.bias",
              "mlp.up.weight", "mlp.up.bias", "mlp.down.weight", "mlp.down.bias"]  # fmt: skip
    tensors = [torch.cat([state["embedding.weight"], padding]), state["positions.weight"]]
    tensors += [state[f"layers.{number}.{name}"] for name in blocks for number in range(2)]
    tensors += [state["norm.weight"], state["norm.bias"]]
    with path.open("wb") as file:
        file.write(header.tobytes())
        for tensor in tensors:
            file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    made = model()
    found = read_llm_c(write(tmp_path / "gpt2.bin", made, dtype))
    check_fits(found.weights, made)
    for name, weight in made.state_dict().items():
        assert torch.equal(found.weights[name], weight.to(dtype))
    assert found.settings["model"] == "gpt2"
    assert (found.settings["model.vocab_size"], found.settings["model.gelu"]) == (VOCAB, "tanh")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 1}, r"version 1 of llm.c's format; lmtrain reads 3 \(float32\) and 5"),
        ({"magic": 20240803}, "a Llama 3 of llm.c"),
        ({"n_layer": 3}, r"has [\d,]+ bytes, but its model needs [\d,]+; the file is damaged"),
        ({"n_head": 0}, "num_heads=0: not a size"),
        ({"n_head": 3}, "channels=8, num_heads=3"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    path = write(tmp_path / "gpt2.bin", model(), **changed)
    with pytest.raises(ValueError, match=f"gpt2.bin: {message}") as caught:
        read_llm_c(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1000, 5000])
def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "gpt2.bin", model())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"ends after|the file is damaged"):
        read_llm_c(path)

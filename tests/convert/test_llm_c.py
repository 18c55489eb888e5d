"""Files of llm.c, written as its own script writes them, are read with every bit; other files are named."""

from pathlib import Path

import pytest
import torch
from support.other_checkpoints import LLM_C_VOCAB, llm_c_model, write_llm_c

from lmtrain.convert.imported_model import check_fits
from lmtrain.convert.llm_c import read_llm_c


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    made = llm_c_model()
    found = read_llm_c(write_llm_c(tmp_path / "gpt2.bin", made, dtype))
    check_fits(found.weights, made)
    for name, weight in made.state_dict().items():
        assert torch.equal(found.weights[name], weight.to(dtype))
    assert found.settings["model"] == "gpt2"
    assert (found.settings["model.vocab_size"], found.settings["model.gelu"]) == (LLM_C_VOCAB, "tanh")


def test_a_model_that_has_diverged_is_refused(tmp_path: Path) -> None:
    made = llm_c_model()
    made.get_parameter("layers.1.mlp.up.bias").data[3] = torch.nan
    found = read_llm_c(write_llm_c(tmp_path / "gpt2.bin", made))
    with pytest.raises(ValueError, match=r"^layers.1.mlp.up.bias: numbers that are not finite; the model has diverged"):
        check_fits(found.weights, llm_c_model())


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
    path = write_llm_c(tmp_path / "gpt2.bin", llm_c_model(), **changed)
    with pytest.raises(ValueError, match=f"gpt2.bin: {message}") as caught:
        read_llm_c(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1000, 5000])
def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path, size: int) -> None:
    path = write_llm_c(tmp_path / "gpt2.bin", llm_c_model())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"ends after|the file is damaged"):
        read_llm_c(path)

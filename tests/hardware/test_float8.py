"""Linear layers in 8 bits: which ones, and that a model keeps its names and weights."""

from pathlib import Path

import pytest
import torch
from support.tiny_trainer import make_trainer, tiny_llama
from torch import nn

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.files.metrics import read_metrics
from lmtrain.hardware.float8 import convert_to_float8, is_converted
from lmtrain.hardware.number_format import lacks_hardware
from lmtrain.model.llama import Llama
from lmtrain.system import System


def llama() -> Llama:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_kv_head": None, "d_model": 32, "d_ff": 48}
    return Llama(64, 16, **sizes, tie_embeddings=False)  # type: ignore[arg-type]


def test_layers_of_fitting_sizes_are_converted_and_the_output_layer_is_not() -> None:
    assert is_converted(nn.Linear(32, 48), vocab_size=64)
    assert not is_converted(nn.Linear(32, 64), vocab_size=64)
    assert not is_converted(nn.Linear(32, 40), vocab_size=64)
    assert not is_converted(nn.Linear(40, 32), vocab_size=None)
    assert not is_converted(nn.Embedding(64, 32), vocab_size=64)


def test_a_converted_model_has_the_same_names_and_the_same_parameters() -> None:
    pytest.importorskip("torchao", reason="an extra: lmtrain[float8]")
    model = llama()
    before = dict(model.named_parameters())
    assert convert_to_float8(model) == 2 * 7
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is param and param.dtype == torch.float32 for name, param in before.items())
    kinds = {name: type(layer).__name__ for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert kinds["output"] == "Linear"
    assert set(kinds.values()) == {"Linear", "Float8Linear"}
    assert model.state_dict().keys() == llama().state_dict().keys()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_float8_trains_close_to_bfloat16_and_saves_plain_names(token_folder: Path, tmp_path: Path) -> None:
    if reason := lacks_hardware(torch.device("cuda"), "float8"):
        pytest.skip(reason)
    found = {}
    for dtype in ("bfloat16", "float8"):
        system = System(device="cuda", dtype=dtype, compile=True, deterministic=False)  # type: ignore[arg-type]
        make_trainer(token_folder, tmp_path / dtype, model=tiny_llama().cuda(), system=system).fit()
        latest = CheckpointFolder(tmp_path / dtype / "checkpoints").load_latest()
        assert latest is not None
        weights = latest.tensors["model"]
        assert weights.keys() == tiny_llama().state_dict().keys()
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        found[dtype] = read_metrics(tmp_path / dtype / "metrics.jsonl")[-1]["train/loss"]
    # Eight bits have a relative rounding error of 1/16; a loss of about 4 changes by far less.
    assert found["float8"] == pytest.approx(found["bfloat16"], rel=1 / 16)

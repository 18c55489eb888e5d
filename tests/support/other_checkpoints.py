"""Checkpoints as litgpt and llm.c write them, of small models with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lmtrain.model.gpt2 import GPT2

LLM_C_SIZES = {"block_size": 16, "n_layer": 2, "n_head": 2, "d_model": 8}
LLM_C_VOCAB, PADDED = 50, 64
LITGPT_CONFIG: dict[str, Any] = {
    "name": "tiny-llama",
    "block_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_query_groups": 2,
    "n_embd": 32,
    "head_size": 8,
    "padded_vocab_size": 64,
    "vocab_size": 60,
    "intermediate_size": 48,
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-6,
    "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False,
    "bias": False,
    "rotary_percentage": 1.0,
    "rope_base": 500,
}


def litgpt_weights() -> dict[str, Tensor]:
    """Return random weights under litgpt's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"lm_head": (64, 32), "transformer.wte": (64, 32), "transformer.ln_f": (32,)}
    for number in range(2):
        block = {"norm_1": (32,), "norm_2": (32,), "attn.qkv": (64, 32), "attn.proj": (32, 32)}
        block |= {"mlp.fc_1": (48, 32), "mlp.fc_2": (48, 32), "mlp.proj": (32, 48)}
        shapes |= {f"transformer.h.{number}.{name}": shape for name, shape in block.items()}
    return {f"{name}.weight": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def write_litgpt(folder: Path, tensors: object, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(LITGPT_CONFIG | changed), encoding="utf-8")
    return folder


def llm_c_model() -> GPT2:
    torch.manual_seed(1)
    made = GPT2(vocab_size=LLM_C_VOCAB, **LLM_C_SIZES)
    for param in made.parameters():
        nn.init.normal_(param)
    return made


def write_llm_c(path: Path, made: GPT2, dtype: torch.dtype = torch.float32, **changed: int) -> Path:
    """Write a model as `write_model` of llm.c's `train_gpt2.py` does."""
    header = np.zeros(256, dtype="<i4")
    fields = {"magic": 20240326, "version": 3 if dtype == torch.float32 else 5, "block_size": 16, "vocab": LLM_C_VOCAB,
              "n_layer": 2, "n_head": 2, "d_model": 8, "padded": PADDED} | changed  # fmt: skip
    header[:8] = list(fields.values())
    state = made.state_dict()
    padding = torch.zeros(PADDED - LLM_C_VOCAB, 8)
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

"""The tensors and settings of a model, as the architectures `llama` and `gpt2` of llama.cpp name them.

Source: llama.cpp, `src/llama-model.cpp` and `convert_hf_to_gguf.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lmtrain.convert.decoder_options import options_only_here, options_text
from lmtrain.errors import ConfigError
from lmtrain.model.decoder import Decoder
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama

# Options that the architecture of llama.cpp lacks, with the value that switches each off.
LLAMA_LACKS: Mapping[str, Any] = {"qk_norm": False, "sliding_window": None}
GPT2_LACKS: Mapping[str, Any] = {"gelu": "tanh"}
DEFAULT_ROPE_BASE = 10000.0

_SHARED_NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "attention.o": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
LLAMA_NAMES = _SHARED_NAMES | {
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "mlp.gate": "ffn_gate",
}
WITHOUT_BIAS = ("token_embd", "position_embd", "output")  # of gpt2
GPT2_NAMES = _SHARED_NAMES | {"positions": "position_embd", "attention.qkv": "attn_qkv"}

Setting: TypeAlias = int | float


@dataclass(frozen=True)
class GGUFModel:
    """A model in the terms of llama.cpp.

    Attributes:
        architecture: `llama` or `gpt2`.
        settings: Values by key, without the architecture's name before it, such as `attention.head_count`.
        tensors: Float32 tensors by name; matrices have the shape (outputs, inputs).
    """

    architecture: str
    settings: Mapping[str, Setting] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)


def gguf_model(model: nn.Module, options: Mapping[str, Any]) -> GGUFModel:
    """Return a model's settings and tensors for llama.cpp.

    Args:
        model: The model, on the CPU.
        options: The options of the model in the run's config.

    Raises:
        ConfigError: llama.cpp has no such architecture, or lacks an option of the model; the message names all of them.
    """
    if isinstance(model, Llama | Decoder):
        _refuse(options_only_here(options) | _not_off(options, LLAMA_LACKS), "llama")
        return GGUFModel("llama", _llama_settings(model, options), _llama_tensors(model, int(options["n_head"])))
    if isinstance(model, GPT2):
        _refuse(_not_off(options, GPT2_LACKS), "gpt2")
        return GGUFModel("gpt2", _gpt2_settings(model, options), _gpt2_tensors(model))
    raise ConfigError(
        f"model: {type(model).__name__} has no architecture in llama.cpp that lmtrain writes; it writes those of "
        "model=llama_…, model=decoder and model=gpt2"
    )


def _refuse(options: Mapping[str, Any], architecture: str) -> None:
    if options:
        raise ConfigError(f"{options_text(options)}: the architecture {architecture} of llama.cpp has no such option")


def _not_off(options: Mapping[str, Any], off: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key, value in off.items() if options.get(key, value) != value}


def _llama_settings(model: Llama | Decoder, options: Mapping[str, Any]) -> dict[str, Setting]:
    weights = _weights(model)
    d_head = model.d_model // int(options["n_head"])
    return {
        "context_length": model.block_size,
        "embedding_length": model.d_model,
        "block_count": model.n_layer,
        "feed_forward_length": len(weights["layers.0.mlp.up.weight"]),
        "vocab_size": model.vocab_size,
        "attention.head_count": int(options["n_head"]),
        "attention.head_count_kv": len(weights["layers.0.attention.k.weight"]) // d_head,
        "attention.layer_norm_rms_epsilon": float(model.norm.eps or 0.0),
        "rope.dimension_count": d_head,
        "rope.freq_base": float(options.get("rope_base") or DEFAULT_ROPE_BASE),
    }


def _llama_tensors(model: Llama | Decoder, n_head: int) -> dict[str, Tensor]:
    d_head = model.d_model // n_head
    tensors = {}
    for name, weight in _weights(model).items():
        rotated = name.endswith(("attention.q.weight", "attention.k.weight"))
        tensors[_renamed(name, LLAMA_NAMES)] = _interleaved(weight, d_head) if rotated else weight
    return tensors


def _interleaved(weight: Tensor, d_head: int) -> Tensor:
    """Return the rows (H · D, C) in the order in which llama.cpp rotates them: dimension 2i pairs with 2i + 1."""
    rows, columns = weight.shape
    halves = weight.reshape(rows // d_head, 2, d_head // 2, columns)  # dimension i pairs with i + D / 2
    return halves.transpose(1, 2).reshape(rows, columns)


def _gpt2_settings(model: GPT2, options: Mapping[str, Any]) -> dict[str, Setting]:
    return {
        "context_length": model.block_size,
        "embedding_length": model.d_model,
        "block_count": model.n_layer,
        "feed_forward_length": len(_weights(model)["layers.0.mlp.up.weight"]),
        "attention.head_count": int(options["n_head"]),
        "attention.layer_norm_epsilon": float(model.norm.eps),
    }


def _gpt2_tensors(model: GPT2) -> dict[str, Tensor]:
    tensors = {_renamed(name, GPT2_NAMES): weight for name, weight in _weights(model).items()}
    for name, weight in list(tensors.items()):
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module not in WITHOUT_BIAS and f"{module}.bias" not in tensors:
            tensors[f"{module}.bias"] = torch.zeros(len(weight))  # llama.cpp requires one; zeros are the same as none
    return tensors


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().to("cpu", torch.float32) for name, weight in model.named_parameters()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return llama.cpp's name: `layers.3.attention.q.weight` becomes `blk.3.attn_q.weight`."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return f"{names[module]}.{kind}"
    _, number, part = module.split(".", 2)
    return f"blk.{number}.{names[part]}.{kind}"

"""The names of tensors here and in transformers. Only names differ, and the direction of GPT-2's matrices."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Masks and frequencies that some versions of transformers stored; they follow from the config.
BUFFERS = re.compile(r".*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq")


@dataclass(frozen=True)
class TensorNames:
    """Maps the names of a model's tensors to those of its class in transformers, and back.

    Attributes:
        outer: The names of parts outside the layers, without `.weight` or `.bias`.
        inner: The names of parts inside a layer.
        prefix: What their names of layers begin with, before the number of the layer.
        transposed: Parts of layers whose matrices are stored as (in, out) there.
    """

    outer: Mapping[str, str]
    inner: Mapping[str, str]
    prefix: str
    transposed: frozenset[str] = frozenset()

    def theirs(self, name: str) -> str:
        """Return transformers' name of a tensor, or an empty string if there is none."""
        if found := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = found.groups()
            return f"{self.prefix}.{layer}.{self.inner[part]}.{kind}" if part in self.inner else ""
        part, _, kind = name.rpartition(".")
        return f"{self.outer[part]}.{kind}" if part in self.outer and kind in ("weight", "bias") else ""

    def ours(self, name: str) -> str:
        """Return lmtrain's name of a tensor, or an empty string if there is none."""
        if found := re.fullmatch(rf"{re.escape(self.prefix)}\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = found.groups()
            inner = {theirs: ours for ours, theirs in self.inner.items()}
            return f"layers.{layer}.{inner[part]}.{kind}" if part in inner else ""
        outer = {theirs: ours for ours, theirs in self.outer.items()}
        part, _, kind = name.rpartition(".")
        return f"{outer[part]}.{kind}" if part in outer and kind in ("weight", "bias") else ""

    def turned(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor with lmtrain's name `name` in the direction of the other side."""
        found = re.fullmatch(r"layers\.\d+\.(.+)\.weight", name)
        return tensor.T if found and found[1] in self.transposed else tensor


LLAMA = TensorNames(
    outer={"embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"},
    inner={
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.o_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
    prefix="model.layers",
)
GPT2 = TensorNames(
    outer={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "output": "lm_head",
    },
    inner={
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    prefix="transformer.h",
    transposed=frozenset({"attention.qkv", "attention.o", "mlp.up", "mlp.down"}),
)

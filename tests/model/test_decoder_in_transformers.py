"""Decoder matches, in float64, the models of transformers that have the same options.

Their norms are replaced by torch's RMSNorm, because theirs compute in float32, or are LayerNorms.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtrain.model.decoder import Decoder

TINY: dict[str, Any] = {
    "vocab_size": 61, "block_size": 16, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "d_model": 64, "d_ff": 48
}  # fmt: skip
NAMES = {
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
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def randomised(**options: Any) -> Decoder:
    """Return a model whose parameters are all random: with the initial norm gains, swapped names stay hidden."""
    torch.manual_seed(1)
    model = Decoder(**{**TINY, **options}).double().eval()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.3)
    return model


def in_transformers(model: Decoder, kind: str, names: dict[str, str], **config: Any) -> Any:
    """Return the model of transformers with the same weights."""
    import transformers

    sizes = {
        "vocab_size": TINY["vocab_size"], "max_position_embeddings": TINY["block_size"], "hidden_size": TINY["d_model"],
        "num_hidden_layers": TINY["n_layer"], "num_attention_heads": TINY["n_head"], "pad_token_id": None,
        "num_key_value_heads": TINY["n_kv_head"], "intermediate_size": TINY["d_ff"], "rope_parameters": ROPE,
        "tie_word_embeddings": True, "head_dim": TINY["d_model"] // TINY["n_head"], "attn_implementation": "sdpa",
    }  # fmt: skip
    theirs = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**{**sizes, **config})
    ).double()
    for path, module in [*theirs.named_modules()]:
        if "Norm" in type(module).__name__:
            parent, _, name = path.rpartition(".")
            width = model.d_model // TINY["n_head"] if name in ("q_norm", "k_norm") else model.d_model
            setattr(theirs.get_submodule(parent), name, nn.RMSNorm(width, eps=1e-5, dtype=torch.float64))
    state = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    for name, param in model.state_dict().items():
        if name.startswith("layers."):
            _, layer, own = name.removesuffix(".weight").split(".", 2)
            state[f"model.layers.{layer}.{(NAMES | names)[own]}.weight"] = param
    theirs.load_state_dict(state | {"lm_head.weight": model.embedding.weight}, strict=True)
    return theirs.eval()


def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return scores.softmax(dim)  # without their cast to float32


QWEN3 = ("Qwen3", {"qk_norm": True}, {}, {})
SMOLLM3 = ("SmolLM3", {"nope_every": 2}, {}, {"no_rope_layer_interval": 2})
STABLELM = (
    "StableLm",
    {"parallel_blocks": True, "rope_fraction": 0.25},
    {},
    {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}, "use_parallel_residual": True},
)
NEMOTRON = (
    "Nemotron",
    {"mlp": "relu2", "rope_fraction": 0.5},
    {},
    {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}, "hidden_act": "relu2"},
)
GEMMA2_OPTIONS = {
    "attention_softcap": 1.5, "logit_softcap": 2.0, "sliding_window": 5, "global_every": 2, "embedding_scale": True
}  # fmt: skip
GEMMA2 = (
    "Gemma2",
    GEMMA2_OPTIONS,
    {"mlp_norm": "pre_feedforward_layernorm"},
    {
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "hidden_activation": "silu",
        "attn_implementation": "eager",
    },
)


@pytest.mark.parametrize(
    ("kind", "options", "names", "config"),
    [QWEN3, SMOLLM3, STABLELM, NEMOTRON, GEMMA2],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_logits_match_transformers_in_float64(
    kind: str, options: dict[str, Any], names: dict[str, str], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "softmax", softmax)
    with torch.random.fork_rng(devices=[]):
        model = randomised(**options)
        if kind == "Gemma2":  # it also normalises the results of attention and MLP, which Decoder does not
            from transformers.models.gemma2 import modeling_gemma2

            class Gemma2Layer(modeling_gemma2.Gemma2DecoderLayer):
                def __init__(self, *args: Any) -> None:
                    super().__init__(*args)
                    self.post_attention_layernorm = self.post_feedforward_layernorm = nn.Identity()

            monkeypatch.setattr(modeling_gemma2, "Gemma2DecoderLayer", Gemma2Layer)
        theirs = in_transformers(model, kind, names, **config)
        tokens = torch.randint(61, (3, 16))
    with torch.no_grad():
        ours, others = model(tokens)[0], theirs(tokens).logits
        plain = Decoder(**{**TINY, "mlp": options.get("mlp", "swiglu")}).double()
        plain.load_state_dict(model.state_dict(), strict=False)
        without = plain(tokens)[0]
    torch.testing.assert_close(ours, others, rtol=1e-10, atol=1e-10)  # a million roundings in float64
    assert (ours - without).abs().max() > 0.1  # the options are in use

"""Turns the model of a run's config into the `config.json` of transformers, or says why it can't be."""

from collections.abc import Mapping
from typing import Any

from lmtrain.convert.decoder_options import options_only_here, options_text

FULL, SLIDING = "full_attention", "sliding_attention"


def exported_config(model: Mapping[str, Any], end_of_text: int | None, dtype: str) -> dict[str, Any]:
    """Return the content of `config.json` for the `model` node of a config.

    Args:
        model: The resolved node, with `_target_`.
        end_of_text: The id that ends a document, if there is one.
        dtype: The number format of the exported weights.

    Raises:
        ValueError: No class of transformers is this model; the message names every option that is in the way.
    """
    target = str(model.get("_target_"))
    if target not in EXPORTED:
        raise ValueError(
            f"model._target_={target}: transformers has no such model; the models that can be exported are "
            "model=llama_*, gpt2, decoder and transformers"
        )
    return {
        **EXPORTED[target](model),
        "vocab_size": model["vocab_size"],
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
        "initializer_range": float(model["init_std"]),
        "tie_word_embeddings": model["tie_embeddings"],
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 4.56
    }


def _llama(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "mlp_bias": False,
        **_llama_sizes(model),
    }


def _decoder(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a Llama, or of a Mistral or Qwen3 for the options that these have beyond it."""
    window, n_layer = model.get("sliding_window"), model["n_layer"]
    every = model.get("global_every")
    refused = options_only_here(model)
    if window is not None and every is not None and not model.get("qk_norm"):
        refused["global_every"] = every  # only Qwen3 has it, beside normalised queries and keys
    if refused:
        raise ValueError(
            f"{options_text(refused)}: Llama, Mistral and Qwen3 in transformers have no such option; not exported"
        )
    if not model.get("qk_norm"):
        if window is None:
            return _llama(model)
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": window,
            **_llama_sizes(model),
        }
    kinds = [
        FULL if window is None or (every is not None and (number + 1) % every == 0) else SLIDING
        for number in range(n_layer)
    ]
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": 0 if window is not None else n_layer,
        "layer_types": kinds,
        **_llama_sizes(model),
    }


def _llama_sizes(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": model["d_model"],
        "intermediate_size": model["d_ff"],
        "num_hidden_layers": model["n_layer"],
        "num_attention_heads": model["n_head"],
        "num_key_value_heads": model.get("n_kv_head") or model["n_head"],
        "head_dim": model["d_model"] // model["n_head"],
        "hidden_act": "silu",
        "max_position_embeddings": model["block_size"],
        "rms_norm_eps": float(model["norm_eps"]),
        "attention_bias": False,
        "attention_dropout": float(model["dropout"]),
        "rope_theta": float(model["rope_base"]),  # what transformers 4 reads
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(model["rope_base"]),
        },  # what transformers 5 reads
    }


def _gpt2(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": model["block_size"],
        "n_embd": model["d_model"],
        "n_layer": model["n_layer"],
        "n_head": model["n_head"],
        "n_inner": model.get("d_ff"),
        "activation_function": "gelu_new" if model["gelu"] == "tanh" else "gelu",
        "layer_norm_epsilon": 1e-5,  # torch's default, which GPT2 here has
        **{f"{place}_pdrop": float(model["dropout"]) for place in ("resid", "embd", "attn")},
    }


EXPORTED = {
    "lmtrain.model.llama.Llama": _llama,
    "lmtrain.model.decoder.Decoder": _decoder,
    "lmtrain.model.gpt2.GPT2": _gpt2,
}

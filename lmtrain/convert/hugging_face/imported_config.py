"""Turns the `config.json` of a Hugging Face folder into overrides of lmtrain's config."""

from collections.abc import Callable, Mapping
from typing import Any

from lmtrain.convert.hugging_face.model_config import FULL, SLIDING
from lmtrain.convert.imported_model import Value

MOST_POSITIONS = 1 << 20
MOST_LAYERS = 10_000  # far more than any model has; more are damage, which would take minutes and much memory
GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}
SUPPORTED = "llama, mistral, qwen3, gpt2"


def imported_overrides(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return overrides, as groups (`model`) and values (`model.n_layer`), for a model like that of a `config.json`.

    Raises:
        ValueError: No model here computes what the config says; the message names the architecture, or all fields that
            are in the way.
    """
    kind = str(config.get("model_type"))
    if kind not in READERS:
        raise ValueError(f"model_type={kind}: can't be imported; the architectures that can are {SUPPORTED}")
    fields = _Fields(config)
    return {**READERS[kind](fields), "model.init_std": fields.number("initializer_range", 0.02)}


class _Fields:
    """Reads fields of a config, and refuses what is not what it must be."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def size(self, name: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name}={value!r}: not a size from 1 to {most:,}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise ValueError(f"{name}={value!r}: not a number of at least 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: not true or false")
        return value

    def refuse_others(self, expected: Mapping[str, Any]) -> None:
        """Raise ValueError that names every field that is there with a value other than the only one possible."""
        others = [
            f"{name}={self.config[name]!r}"
            for name, only in expected.items()
            if name in self.config and self.config[name] is not None and self.config[name] != only
        ]
        if others:
            raise ValueError(f"{', '.join(others)}: the models here have no such option, so it can't be imported")

    def dropout(self, *names: str) -> float:
        """Return the dropout, which is one number here; 0 where the config has several."""
        values = {self.number(name, 0.1 if self.config["model_type"] == "gpt2" else 0.0) for name in names}
        return values.pop() if len(values) == 1 else 0.0


def _llama_sizes(fields: _Fields) -> dict[str, Value]:
    config = fields.config
    d_model, n_head = fields.size("hidden_size"), fields.size("num_attention_heads")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"rope_parameters={rope!r}: not an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_parameters.rope_type={kind!r}: only plain rotary positions can be imported")
    fields.refuse_others(
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "head_dim": d_model // n_head,
            "partial_rotary_factor": 1.0,
        }
    )
    rotary = _Fields({"rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0))})
    return {
        "model.vocab_size": fields.size("vocab_size"),
        "model.block_size": min(fields.size("max_position_embeddings", 2048), MOST_POSITIONS),
        "model.n_layer": fields.size("num_hidden_layers", most=MOST_LAYERS),
        "model.n_head": n_head,
        "model.n_kv_head": fields.size("num_key_value_heads", n_head),
        "model.d_model": d_model,
        "model.d_ff": fields.size("intermediate_size"),
        "model.dropout": fields.dropout("attention_dropout"),
        "model.rope_base": rotary.number("rope_theta", 10000.0),
        "model.norm_eps": fields.number("rms_norm_eps", 1e-6),
        "model.tie_embeddings": fields.flag("tie_word_embeddings", False),
    }


def _llama(fields: _Fields) -> dict[str, Value]:
    return {"model": "llama_50m", **_llama_sizes(fields)}


def _mistral(fields: _Fields) -> dict[str, Value]:
    window = fields.config.get("sliding_window")
    return {
        "model": "decoder",
        **_llama_sizes(fields),
        "model.sliding_window": None if window is None else fields.size("sliding_window"),
    }


def _qwen3(fields: _Fields) -> dict[str, Value]:
    window, every = _windows(fields)
    return {
        "model": "decoder",
        **_llama_sizes(fields),
        "model.qk_norm": True,
        "model.sliding_window": window,
        "model.global_every": every,
    }


def _windows(fields: _Fields) -> tuple[int | None, int | None]:
    """Return the sliding window, and each how many layers one attends to all tokens."""
    if not fields.flag("use_sliding_window", False):
        return None, None
    n_layer, window = fields.size("num_hidden_layers", most=MOST_LAYERS), fields.size("sliding_window")
    first = fields.size("max_window_layers", 28) if fields.config.get("max_window_layers") != 0 else 0
    kinds = fields.config.get("layer_types") or [FULL if number < first else SLIDING for number in range(n_layer)]
    if isinstance(kinds, list):
        every = kinds.index(FULL) + 1 if FULL in kinds else None
        if kinds == [FULL if every and (number + 1) % every == 0 else SLIDING for number in range(n_layer)]:
            return (None, None) if every == 1 else (window, every)
    raise ValueError("layer_types: only sliding windows in all layers, or in all but each n-th, can be imported")


def _gpt2(fields: _Fields) -> dict[str, Value]:
    gelu = str(fields.config.get("activation_function", "gelu_new"))
    if gelu not in GELUS:
        raise ValueError(f"activation_function={gelu!r}: not one of {', '.join(GELUS)}, so it can't be imported")
    fields.refuse_others(
        {
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }
    )
    return {
        "model": "gpt2",
        "model.vocab_size": fields.size("vocab_size"),
        "model.block_size": fields.size("n_positions", 1024),
        "model.n_layer": fields.size("n_layer", most=MOST_LAYERS),
        "model.n_head": fields.size("n_head"),
        "model.d_model": fields.size("n_embd"),
        "model.d_ff": None if fields.config.get("n_inner") is None else fields.size("n_inner"),
        "model.dropout": fields.dropout("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "model.bias": True,
        "model.gelu": GELUS[gelu],
        "model.tie_embeddings": fields.flag("tie_word_embeddings", True),
    }


READERS: Mapping[str, Callable[[_Fields], dict[str, Value]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen3": _qwen3,
    "gpt2": _gpt2,
}

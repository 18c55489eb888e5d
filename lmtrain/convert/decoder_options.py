"""Options of `Decoder` that no model of other programs has in the same form."""

from collections.abc import Mapping
from typing import Any

# With the value that switches each off.
ONLY_HERE: Mapping[str, Any] = {
    "embedding_scale": False,
    "value_embeddings": [],
    "mlp": "swiglu",
    "parallel_blocks": False,
    "rope_fraction": 1.0,
    "nope_every": None,
    "attention_softcap": None,
    "logit_softcap": None,
}


def options_only_here(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options, with their values, that a model has; `model` is the node of its config."""
    found = {key: model[key] for key, off in ONLY_HERE.items() if key in model and not _is_off(model[key], off)}
    if "mlp" in found and model.get("dense_layers", 0) >= model["n_layer"]:
        del found["mlp"]  # no layer has it
    return found


def options_text(options: Mapping[str, Any]) -> str:
    """Return options for a message: `model.logit_softcap=30.0, model.nope_every=4`."""
    return ", ".join(f"model.{key}={_short(value)}" for key, value in options.items())


def _is_off(value: Any, off: Any) -> bool:
    return value == off or (off == [] and not value)


def _short(value: Any) -> str:
    return str(value.get("_target_", "{…}")) if isinstance(value, Mapping) else str(value).replace(" ", "")

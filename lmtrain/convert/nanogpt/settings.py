"""Turns the settings of a nanoGPT training into overrides of lmtrain's config."""

from collections.abc import Mapping
from typing import Any

from lmtrain.convert.imported_model import Value
from lmtrain.terminal.as_text import first_few

Number = bool | int | float

MODEL_ARGS = {
    "n_layer": "model.n_layer",
    "n_head": "model.n_head",
    "n_embd": "model.d_model",
    "block_size": "model.block_size",
    "vocab_size": "model.vocab_size",
    "bias": "model.bias",
    "dropout": "model.dropout",
}
SETTINGS = {
    "batch_size": "data.batch_size",
    "block_size": "data.block_size",
    "gradient_accumulation_steps": "trainer.gradient_accumulation_steps",
    "max_iters": "trainer.max_steps",
    "grad_clip": "trainer.grad_clip",
    "eval_interval": "trainer.eval_interval",
    "eval_iters": "trainer.eval_batches",
    "log_interval": "trainer.log_interval",
    "learning_rate": "optimizer.lr",
}
SCHEDULE = {
    "warmup_iters": "scheduler.warmup_steps",
    "min_lr": "scheduler.min_lr",
    "lr_decay_iters": "scheduler.max_steps",
}
LARGEST_NUMBER = 1e15
DTYPES = ("float32", "bfloat16", "float16")


def model_overrides(model_args: Mapping[str, Any]) -> dict[str, Value]:
    """Return overrides for `model=gpt2` with nanoGPT's sizes and its exact GELU.

    Raises:
        ValueError: an argument is missing, or is unknown, so that its effect is unknown, too.
    """
    if missing := [key for key in MODEL_ARGS if key not in model_args]:
        raise ValueError(f"model_args has no {', '.join(missing)}")
    if unknown := [key for key in model_args if key not in MODEL_ARGS]:
        raise ValueError(f"model_args has {first_few(unknown)}, which nanoGPT's GPT-2 does not")
    values = {ours: checked_number(f"model_args.{key}", model_args[key]) for key, ours in MODEL_ARGS.items()}
    for key in MODEL_ARGS.keys() - {"bias", "dropout"}:
        if not isinstance(model_args[key], int) or model_args[key] < 1:
            raise ValueError(f"model_args.{key}={model_args[key]}: not a size")
    return {"model": "gpt2", **values, "model.gelu": "exact", "model.tie_embeddings": True}


def settings_overrides(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return overrides for the settings that the file contains. nanoGPT draws its batches with replacement.

    Raises:
        ValueError: a setting is not a number, or the dtype is unknown.
    """
    overrides: dict[str, Value] = {"data": "tokens", "data.order": "random"}
    known = dict(SETTINGS)
    if config.get("decay_lr", True):
        known |= SCHEDULE
    else:  # without decay there is no warmup either
        overrides |= {"scheduler": "constant", "scheduler.warmup_steps": 0}
    overrides |= {ours: checked_number(f"config.{key}", config[key]) for key, ours in known.items() if key in config}
    if "dtype" in config:
        if config["dtype"] not in DTYPES:
            raise ValueError(f"config.dtype={config['dtype']!r}: not one of {', '.join(DTYPES)}")
        # On other devices than CUDA, nanoGPT ignores its dtype and computes in float32.
        overrides["system.dtype"] = config["dtype"] if "cuda" in str(config.get("device", "cuda")) else "float32"
    return overrides


def checked_number(name: str, value: object) -> Number:
    """Return the value; raise ValueError if it is not a number, or is larger than any real setting."""
    if not isinstance(value, bool | int | float) or not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"{name}={value!r}: not a number")
    return value

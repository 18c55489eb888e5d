"""Reads checkpoints of litgpt: `lit_model.pth` and `model_config.yaml` in a folder, of the Llama family.

Source: litgpt 0.5, `litgpt/model.py` and `litgpt/config.py`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lmtrain.convert.imported_model import ImportedModel, Value
from lmtrain.convert.tokenizer_check import refuse_more_ids
from lmtrain.convert.torch_file import read_torch_file, refuse_shared_memory, size_text
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, load_tokenizer
from lmtrain.files.durable import sha256_of
from lmtrain.files.limited import read_yaml_text
from lmtrain.terminal.as_text import first_few

WEIGHTS, CONFIG = "lit_model.pth", "model_config.yaml"
# What model=decoder computes; other values are refused by name. `None` stands for litgpt's "not used".
SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "norm_class_name": ("RMSNorm",),
    "mlp_class_name": ("LLaMAMLP",),
    "parallel_residual": (False,),
    "shared_attention_norm": (False,),
    "post_attention_norm": (False,),
    "post_mlp_norm": (False,),
    "bias": (False,),
    "attn_bias": (False,),
    "lm_head_bias": (False,),
    "scale_embeddings": (False,),
    "rotary_percentage": (1.0,),
    "rope_condense_ratio": (1,),
    "rope_adjustments": (None,),
    "rope_interleave": (False,),
    "rope_local_base_freq": (None,),
    "attention_scores_scalar": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "sliding_window_size": (None,),
    "norm_qk": (False,),
    "n_expert": (0,),
    "latent_attention": (None,),
}
# litgpt's defaults of these keys, where they are not what a Llama has: a file that leaves them out means these.
LITGPT_DEFAULTS: Mapping[str, Any] = {
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
    "parallel_residual": True,
    "bias": True,
    "rotary_percentage": 0.25,
}
SIZES = ("block_size", "n_layer", "n_head", "n_query_groups", "n_embd", "padded_vocab_size", "intermediate_size")
NUMBERS: Mapping[str, float] = {"norm_eps": 1e-5, "rope_base": 10000}  # with litgpt's defaults
MOST = 1 << 24  # of each size; larger ones are damage
OUTER = {"lm_head": "output", "transformer.wte": "embedding", "transformer.ln_f": "norm"}
INNER = {
    "norm_1": "attention_norm",
    "attn.proj": "attention.o",
    "norm_2": "mlp_norm",
    "mlp.fc_1": "mlp.gate",
    "mlp.fc_2": "mlp.up",
    "mlp.proj": "mlp.down",
}
BLOCK = re.compile(r"transformer\.h\.(\d{1,6})\.(.+)")


def read_litgpt_folder(folder: Path) -> ImportedModel:
    """Read a folder that litgpt has written, of a Llama-like model.

    Raises:
        ValueError: A file is missing or damaged, or the model is not one that lmtrain has; the message names why.
        OSError: A file can't be read.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: has {WEIGHTS}, but no {CONFIG}")
    try:
        config = yaml.safe_load(read_yaml_text(folder / CONFIG))
        if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
            raise ValueError("not a mapping of names")
        settings = _settings(config)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {' '.join(str(error).split())}") from error
    content = read_torch_file(folder / WEIGHTS)
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise ValueError(f"{folder / WEIGHTS}: not litgpt's dict of tensors")
    try:
        refuse_shared_memory(list(tensors.values()))
        weights = _weights(tensors, config)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from error
    tokenizer = load_tokenizer(folder) if (folder / TOKENIZER_FILE).is_file() else None
    refuse_more_ids(tokenizer, config["padded_vocab_size"], folder)
    record = {
        "folder": str(folder.resolve()),
        "sha256": {name: sha256_of(folder / name) for name in (WEIGHTS, CONFIG)},
        "config": json.loads(json.dumps(config, default=str)),  # YAML also has dates
    }
    return ImportedModel(settings, weights, their_name, tokenizer, record)


def their_name(name: str) -> str:
    """Return litgpt's name of a tensor; queries, keys and values have one tensor there."""
    module, _, kind = name.rpartition(".")
    for theirs, ours in OUTER.items():
        if module == ours:
            return f"{theirs}.{kind}"
    _, number, part = module.split(".", 2)
    inner = {ours: theirs for theirs, ours in INNER.items()} | dict.fromkeys(
        ("attention.q", "attention.k", "attention.v"), "attn.qkv"
    )
    return f"transformer.h.{number}.{inner[part]}.{kind}"


def _settings(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return overrides for a model of litgpt's config; raise ValueError for what lmtrain does not have."""
    values = {**LITGPT_DEFAULTS, **config}
    lacking = [f"{key}={values[key]}" for key, known in SUPPORTED.items() if values.get(key, known[0]) not in known]
    if "gemma" in str(config.get("name", "")).lower():
        lacking.append("Gemma's norms")
    if lacking:
        raise ValueError(f"{', '.join(lacking)}: lmtrain has no such model; it reads litgpt's Llama-like ones")
    values["n_query_groups"] = values.get("n_query_groups") or values.get("n_head")  # null = one for each head
    for key in SIZES:
        if not isinstance(values.get(key), int) or isinstance(values[key], bool) or not 1 <= values[key] <= MOST:
            raise ValueError(f"{key}={values.get(key)}: not a size from 1 to {MOST:,}")
    heads, groups, head_size = values["n_head"], values["n_query_groups"], values.get("head_size")
    if values["n_embd"] % heads or head_size not in (None, values["n_embd"] // heads):
        raise ValueError(f"head_size={head_size}: lmtrain's heads share n_embd={values['n_embd']} among n_head={heads}")
    if heads % groups:
        raise ValueError(f"n_query_groups={groups}: not a divisor of n_head={heads}")
    for key in NUMBERS:
        value = values.setdefault(key, NUMBERS[key])
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e15:
            raise ValueError(f"{key}={value}: not a number of at least 0")
    return {
        "model": "llama_1m",
        "model.vocab_size": values["padded_vocab_size"],
        "model.block_size": values["block_size"],
        "model.n_layer": values["n_layer"],
        "model.n_head": heads,
        "model.n_kv_head": groups,
        "model.d_model": values["n_embd"],
        "model.d_ff": values["intermediate_size"],
        "model.norm_eps": float(values["norm_eps"]),
        "model.rope_base": float(values["rope_base"]),
        "model.tie_embeddings": False,
    }


def _weights(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors by lmtrain's names, with queries, keys and values in tensors of their own."""
    n_head = config["n_head"]
    groups = config.get("n_query_groups") or n_head
    d_head = config["n_embd"] // n_head
    weights: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        found = BLOCK.fullmatch(module)
        if module in OUTER:
            weights[f"{OUTER[module]}.{kind}"] = tensor
        elif found and found[2] in INNER:
            weights[f"layers.{int(found[1])}.{INNER[found[2]]}.{kind}"] = tensor
        elif found and found[2] in ("attn.qkv", "attn.attn") and kind == "weight":
            expected = (n_head + 2 * groups) * d_head, config["n_embd"]
            if tensor.shape != expected:
                raise ValueError(f"{name} is {size_text(tensor)} instead of {expected[0]} × {expected[1]}")
            if found[2] == "attn.attn":  # up to litgpt 0.4: the queries, key and value of each group together
                tensor = _ungrouped(tensor, groups, n_head // groups, d_head)
            parts = torch.split(tensor, [n_head * d_head, groups * d_head, groups * d_head])
            for part, value in zip("qkv", parts, strict=True):
                weights[f"layers.{int(found[1])}.attention.{part}.{kind}"] = value.clone()
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"the weights do not fit the model: {first_few(unknown)} unexpected")
    return weights


def _ungrouped(tensor: Tensor, groups: int, queries: int, d_head: int) -> Tensor:
    """Return rows (G · (Q + 2) · D, C), in which each group has its queries, key and value, as all q, all k, all v."""
    columns = tensor.shape[1]
    grouped = tensor.reshape(groups, queries + 2, d_head, columns)
    parts = grouped[:, :queries], grouped[:, queries : queries + 1], grouped[:, queries + 1 :]
    return torch.cat([part.reshape(-1, columns) for part in parts])

"""Reads checkpoints of llm.c: a GPT-2 as a header of 256 numbers and then its weights, in float32 or bfloat16.

Source: llm.c, `train_gpt2.py` (`write_model`) and `train_gpt2.cu` (`gpt2_build_from_checkpoint`).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmtrain.convert.imported_model import ImportedModel, Value
from lmtrain.files.durable import sha256_of

MAGIC, LLAMA_MAGIC = 20240326, 20240803
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
FORMATS = {3: torch.float32, 5: torch.bfloat16}  # by version
MOST = 1 << 24  # of each size; larger ones are damage


def read_llm_c(path: Path) -> ImportedModel:
    """Read a checkpoint of llm.c's GPT-2. Rows of the embedding beyond the vocabulary, which only pad it, are left out.

    Raises:
        ValueError: The file has another architecture or version, or its size is not that of the model in its header.
        OSError: The file can't be read.
    """
    try:
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES), dtype="<i4")
        if len(header) < HEADER_INTS:
            raise ValueError(f"ends after {4 * len(header)} bytes of its header")
        magic, version, block_size, vocab_size, n_layer, n_head, d_model, rows = header[:8].tolist()
        if magic == LLAMA_MAGIC:
            raise ValueError("a Llama 3 of llm.c, which is made from a Hugging Face folder; import that folder")
        if version not in FORMATS:
            raise ValueError(f"version {version} of llm.c's format; lmtrain reads 3 (float32) and 5 (bfloat16)")
        sizes = {"max_seq_len": block_size, "vocab_size": vocab_size, "num_layers": n_layer, "num_heads": n_head,
                 "channels": d_model, "padded_vocab_size": rows}  # fmt: skip
        if wrong := [f"{name}={size}" for name, size in sizes.items() if not 0 < size <= MOST]:
            raise ValueError(f"{', '.join(wrong)}: not a size")
        if d_model % n_head or rows < vocab_size:
            raise ValueError(f"channels={d_model}, num_heads={n_head}, padded_vocab_size={rows}: not those of a GPT-2")
        shapes = _shapes(block_size, rows, n_layer, d_model)
        dtype = FORMATS[version]
        expected = HEADER_BYTES + dtype.itemsize * sum(map(math.prod, shapes.values()))
        if (size := path.stat().st_size) != expected:
            raise ValueError(f"has {size:,} bytes, but its model needs {expected:,}; the file is damaged")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    weights = _weights(path, shapes, dtype, n_layer)
    weights["embedding.weight"] = weights["embedding.weight"][:vocab_size].clone()
    settings: dict[str, Value] = {
        "model": "gpt2",
        "model.vocab_size": vocab_size,
        "model.block_size": block_size,
        "model.n_layer": n_layer,
        "model.n_head": n_head,
        "model.d_model": d_model,
        "model.d_ff": 4 * d_model,
        "model.bias": True,
        "model.gelu": "tanh",
        "model.tie_embeddings": True,
    }
    record = {"file": str(path.resolve()), "sha256": {path.name: sha256_of(path)}, "config": sizes}
    return ImportedModel(settings, weights, record=record)


def _shapes(block_size: int, rows: int, n_layer: int, d_model: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the order of the file; `layers.*` has one tensor for each layer, one after the other."""
    L, C = n_layer, d_model
    return {
        "embedding.weight": (rows, C),
        "positions.weight": (block_size, C),
        "layers.*.attention_norm.weight": (L, C),
        "layers.*.attention_norm.bias": (L, C),
        "layers.*.attention.qkv.weight": (L, 3 * C, C),
        "layers.*.attention.qkv.bias": (L, 3 * C),
        "layers.*.attention.o.weight": (L, C, C),
        "layers.*.attention.o.bias": (L, C),
        "layers.*.mlp_norm.weight": (L, C),
        "layers.*.mlp_norm.bias": (L, C),
        "layers.*.mlp.up.weight": (L, 4 * C, C),
        "layers.*.mlp.up.bias": (L, 4 * C),
        "layers.*.mlp.down.weight": (L, C, 4 * C),
        "layers.*.mlp.down.bias": (L, C),
        "norm.weight": (C,),
        "norm.bias": (C,),
    }


def _weights(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, n_layer: int) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        for name, shape in shapes.items():
            data = bytearray(file.read(math.prod(shape) * dtype.itemsize))
            tensor = torch.frombuffer(data, dtype=dtype).reshape(shape)
            if "*" not in name:
                weights[name] = tensor
            else:
                weights |= {name.replace("*", str(number)): tensor[number].clone() for number in range(n_layer)}
    return weights

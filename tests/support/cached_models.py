"""Small models in float64 that keep keys and values, one for each option that changes how."""

from typing import Any

import torch
from torch import nn

from lmtrain.model.decoder import Decoder
from lmtrain.model.experts.mixture import MixtureOfExperts
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama

SIZES: dict[str, Any] = {"vocab_size": 50, "block_size": 40, "n_layer": 3, "n_head": 4, "d_model": 32, "d_ff": 48}
DOCUMENTS = {"mask_documents": True, "end_of_text": 3}
CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "llama": (Llama, {"n_kv_head": None}),
    "grouped": (Llama, {"n_kv_head": 2, "tie_embeddings": False}),
    "llama-documents": (Llama, {"n_kv_head": 1, **DOCUMENTS}),
    "gpt2": (GPT2, {}),
    "gpt2-documents": (GPT2, DOCUMENTS),
    "decoder": (Decoder, {"n_kv_head": 2}),
    "everything": (
        Decoder,
        {
            "n_kv_head": 2,
            "qk_norm": True,
            "value_embeddings": [0, -1],
            "embedding_scale": True,
            "rope_fraction": 0.5,
            "nope_every": 2,
            "sliding_window": 5,
            "global_every": 3,
            "attention_softcap": 20.0,
            "logit_softcap": 10.0,
            "parallel_blocks": True,
            "mlp": "relu2",
            **DOCUMENTS,
        },
    ),
    "window": (Decoder, {"n_kv_head": 4, "sliding_window": 7}),
    "experts": (Decoder, {"n_kv_head": 4, "mlp": "experts", "sliding_window": 3}),
}


def model_of(case: str) -> nn.Module:
    torch.manual_seed(1)
    kind, options = CASES[case]
    if options.get("mlp") == "experts":
        options = {**options, "mlp": lambda d_model, d_ff: MixtureOfExperts(d_model, d_ff, n_expert=4, n_active=2)}
    return kind(**{**SIZES, **options}).double().eval()

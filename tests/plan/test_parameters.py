"""Parameters are counted by part, for the shipped models and for a user's model."""

from typing import Any

import torch
from torch import nn

from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.plan.parameters import has_learned_positions, parameters_by_part

SIZES: dict[str, Any] = {"vocab_size": 61, "block_size": 16, "n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 48}


def test_the_parts_of_a_tied_and_an_untied_llama() -> None:
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)  # two key-value heads for four query heads
    parts = {"embedding": 61 * 32, "norms": 5 * 32, "attention": attention, "mlp": 2 * 3 * 32 * 48}
    assert parameters_by_part(Llama(**SIZES, n_kv_head=2), 61) == parts
    untied = Llama(**SIZES, n_kv_head=2, tie_embeddings=False)
    assert parameters_by_part(untied, 61) == {**parts, "head": 61 * 32}
    assert sum(parameters_by_part(untied, 61).values()) == sum(param.numel() for param in untied.parameters())
    assert not has_learned_positions(untied)


def test_the_parts_of_gpt2_include_its_positions() -> None:
    model = GPT2(**SIZES)
    parts = parameters_by_part(model, 61)
    assert parts["embedding"] == (61 + 16) * 32
    assert parts["attention"] == 2 * (4 * 32 * 32 + 4 * 32)
    assert sum(parts.values()) == sum(param.numel() for param in model.parameters())
    assert has_learned_positions(model)


def test_the_parts_of_an_unknown_model_have_its_own_names() -> None:
    class UserModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(61, 8)
            self.mixer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
            self.blocks = nn.ModuleList([nn.MultiheadAttention(8, 2)])
            self.scale = nn.Parameter(torch.ones(3))
            self.lm_head = nn.Linear(8, 61, bias=False)

    assert parameters_by_part(UserModel(), 61) == {
        "scale": 3,
        "embedding": 488,
        "mixer": 72,
        "norms": 16,
        "attention": 4 * 64 + 4 * 8,
        "head": 488,
    }

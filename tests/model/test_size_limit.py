"""A model that is too large is refused before it takes memory; any other model passes without side effects."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.model.size_limit import ModelTooLargeError, SizeLimit, refuse_too_large

PLENTY = SizeLimit(bytes=1 << 40)


def llama(**changes: Any) -> Llama:
    sizes = {"n_layer": 2, "n_head": 2, "n_kv_head": None, "d_model": 32, "d_ff": 64, **changes}
    return Llama(**{"vocab_size": 61, "block_size": 16, **sizes})


def stored(model: nn.Module) -> SizeLimit:
    tensors = model.state_dict().values()
    return SizeLimit(PLENTY.bytes, len(tensors), sum(tensor.numel() for tensor in tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 200_000}, "more than 2 times the [0-9,]+ parameters of the checkpoint"),
        ({"vocab_size": 10**12}, "more than 2 times the [0-9,]+ parameters of the checkpoint"),
        ({"n_layer": 2_000_000, "d_model": 4, "d_ff": 4}, "more than 2 times the 20 tensors of the checkpoint"),
        ({"d_model": 4 * 10**12}, "parameters of the checkpoint"),
        ({"vocab_size": 10**25}, "tensors that fit into no memory"),
        ({"block_size": 10**10}, "a table of more than 10,000,000 positions"),
    ],
)
def test_a_model_far_larger_than_the_checkpoint_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ModelTooLargeError, match=message):
        refuse_too_large(lambda: llama(**changes), stored(llama()))


def test_a_model_beyond_the_memory_is_refused() -> None:
    with pytest.raises(ModelTooLargeError, match=r"takes more than the 1099\.5 GB of this machine"):
        refuse_too_large(lambda: llama(n_layer=40, d_model=200_000, d_ff=200_000), PLENTY)
    refuse_too_large(lambda: llama(n_layer=20, d_model=20_000, d_ff=20_000), PLENTY)  # 132 GB, never allocated


class Tied(nn.Module):
    """Creates several large tensors but keeps only one, which three layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = (nn.Linear(1000, 1000, bias=False) for _ in range(3))
        self.first.weight = self.second.weight = self.embedding.weight
        for _ in range(5):
            self.first.weight = nn.Parameter(torch.empty(1000, 1000))
        self.first.weight = self.embedding.weight


def test_replaced_tensors_do_not_count() -> None:
    refuse_too_large(Tied, SizeLimit(bytes=13_000_000, tensors=2, elements=2_000_000))


class LooksAtItsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.largest = self.layer.weight.max().item()


@pytest.mark.parametrize(
    "build", [llama, Tied, LooksAtItsWeights, lambda: GPT2(61, 16, 2, 2, 32), lambda: llama(n_head=3)]
)
def test_a_model_that_fits_passes_and_draws_no_random_number(build: Any) -> None:
    before, modules = torch.random.get_rng_state(), set(sys.modules)
    refuse_too_large(build, PLENTY)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not {name for name in set(sys.modules) - modules if name.startswith(("sympy", "torch._inductor"))}

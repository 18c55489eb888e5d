"""Logits with a cache against those of a forward of the whole sequence, in float64."""

import pytest
import torch
from support.cached_models import CASES, SIZES, model_of
from torch import Tensor, nn

from lmtrain.model.cache import KeyValueCache, Prefill, Step, can_cache
from lmtrain.model.decoder import Decoder


def whole(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens[None])[0][0]
    return logits


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rows_of_different_lengths_have_the_logits_of_the_whole_sequence(case: str) -> None:
    model = model_of(case)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(10, (40,), generator=generator) for _ in range(3)]  # few ids, so documents are short
    firsts = [4, 11, 1]
    cache = KeyValueCache(3, 40)
    wanted = [whole(model, row) for row in rows]
    for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        logits, _ = model(row[None, :first], cache=Prefill(cache, number))
        assert logits.shape == (1, 1, 50)
        torch.testing.assert_close(logits[0, 0], wanted[number][first - 1], rtol=1e-10, atol=1e-12)
    for more in range(29):
        ids = [int(row[first + more]) for row, first in zip(rows, firsts, strict=True)]
        step = Step(cache, ids)
        logits, _ = model(torch.tensor(ids)[:, None], cache=step)
        step.finish()
        for number, first in enumerate(firsts):
            torch.testing.assert_close(logits[number, 0], wanted[number][first + more], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["grouped", "everything"])
@torch.no_grad()
def test_a_row_can_move_and_another_one_take_its_place(case: str) -> None:
    model = model_of(case)
    one, two, three = torch.randint(10, (3, 20), generator=torch.Generator().manual_seed(0))
    cache = KeyValueCache(2, 40)
    model(one[None, :9], cache=Prefill(cache, 0))
    model(two[None, :5], cache=Prefill(cache, 1))
    cache.move(1, 0)
    model(three[None, :2], cache=Prefill(cache, 1))
    step = Step(cache, [int(two[5]), int(three[2])])
    logits, _ = model(torch.stack((two[5:6], three[2:3])), cache=step)
    step.finish()
    assert cache.sizes == [6, 3]
    for found, sequence in zip(logits[:, 0], (two[:6], three[:3]), strict=True):
        torch.testing.assert_close(found, whole(model, sequence)[-1], rtol=1e-10, atol=1e-12)


def test_a_part_of_a_users_own_may_mix_tokens() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    assert can_cache(model_of("llama"))
    assert not can_cache(nn.Linear(1, 1))
    sizes = {**SIZES, "n_kv_head": None, "mlp": lambda d_model, d_ff: Mixing(), "init_std": 0.02}
    assert not can_cache(Decoder(**sizes))

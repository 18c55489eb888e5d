"""Recomputed activations change neither losses nor gradients, with dropout, autocast, documents and compilation."""

import copy
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model.decoder import Decoder
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama

TINY: dict[str, Any] = {
    "vocab_size": 61, "block_size": 16, "n_layer": 3, "n_head": 4, "d_model": 32, "d_ff": 48
}  # fmt: skip
OPTIONS = {"n_kv_head": 2, "qk_norm": True, "value_embeddings": [0], "mlp": "relu2", "attention_softcap": 5.0}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (Llama, {"n_kv_head": 2}),
    "gpt2": (GPT2, {}),
    "decoder": (Decoder, OPTIONS),
    "parallel": (Decoder, {**OPTIONS, "parallel_blocks": True}),
}
DOCUMENTS = {"mask_documents": True, "end_of_text": 3}
every_model = pytest.mark.parametrize("name", MODELS)
every_kind = pytest.mark.parametrize("recompute", ["attention", "layer"])


def build(name: str, **changes: Any) -> Any:
    kind, config = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        return kind(**{**TINY, **config, **changes})


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def loss_and_gradients(model: Any, forward: Any = None, *, autocast: bool = False) -> list[Tensor]:
    model.zero_grad()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = (model if forward is None else forward)(*batch())[1]
        loss.backward()
    return [loss.detach(), *(param.grad.clone() for param in model.parameters())]


@every_model
@every_kind
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}, {**DOCUMENTS}, {**DOCUMENTS, "dropout": 0.2}], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputing_changes_no_bit(name: str, recompute: str, changes: dict[str, Any], autocast: bool) -> None:
    expected = loss_and_gradients(build(name, **changes), autocast=autocast)
    ours = loss_and_gradients(build(name, recompute=recompute, **changes), autocast=autocast)
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


@every_model
@every_kind
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}], ids=str)
def test_the_additional_flops_are_counted(name: str, recompute: str, changes: dict[str, Any]) -> None:
    def flops(**more: Any) -> int:
        model = build(name, attention="math", **changes, **more)
        with FlopCounterMode(display=False) as counter:
            model(*batch())[1].backward()
        return counter.get_total_flops()

    model = build(name, recompute=recompute, **changes)
    tokens = batch()[0].numel()
    assert flops(recompute=recompute) - flops() == model.recomputed_flops_per_token(16) * tokens
    assert build(name, **changes).recomputed_flops_per_token(16) == 0
    assert model.flops_per_token(16) == build(name, **changes).flops_per_token(16)


@every_model
def test_nothing_is_kept_for_a_backward_that_does_not_come(name: str) -> None:
    model = build(name, recompute="layer", **DOCUMENTS)
    with torch.no_grad():
        assert torch.equal(model(*batch())[1], build(name, **DOCUMENTS)(*batch())[1])


@pytest.mark.slow
@NEEDS_A_COMPILER
@every_kind
@pytest.mark.parametrize(("name", "changes"), [("llama", {}), ("gpt2", {**DOCUMENTS})])
def test_recomputing_is_compiled_into_one_graph(name: str, recompute: str, changes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = build(name, recompute=recompute, n_layer=1, **changes).double()
    expected = loss_and_gradients(copy.deepcopy(model))
    try:
        ours = loss_and_gradients(model, torch.compile(model, fullgraph=True))
    finally:
        torch._dynamo.reset()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)  # a million roundings in float64

"""A decoder with experts keeps what a language model promises, and its counts of FLOPs, memory and loads are right."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model.decoder import Decoder
from lmtrain.model.experts.mixture import MixtureOfExperts
from lmtrain.model.flops import count_flops
from lmtrain.model.size_limit import ModelTooLargeError, SizeLimit, refuse_too_large
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.muon import muon_update
from lmtrain.optimizer.rules import role_of
from lmtrain.plan.memory import StepSettings, simulate

TINY: dict[str, Any] = {
    "vocab_size": 61, "block_size": 24, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "d_model": 32, "d_ff": 48,
    "dense_layers": 1, "attention": "math",
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "sigmoid": {"router": "sigmoid", "n_shared": 1, "bias_rate": 0.01, "balance_loss": 0.0, "router_z_loss": 0.0},
    "one_expert": {"n_active": 1, "normalise": False},
}
DOCUMENTS = {"mask_documents": True, "end_of_text": 3}
each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        yield


def decoder(mixture: dict[str, Any], **changes: Any) -> Decoder:
    torch.manual_seed(0)
    mlp = partial(MixtureOfExperts, **{"n_expert": 6, "n_active": 2, **mixture})
    return Decoder(**{**TINY, "mlp": mlp, **changes})


def randomised(mixture: dict[str, Any], **changes: Any) -> Decoder:
    """Return a model in float64 whose parameters are all random, so that everything matters."""
    model = decoder(mixture, **changes).double()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.3)
    return model


def batch(vocab_size: int = 61, rows: int = 2, length: int = 24) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def mixtures(model: Decoder) -> list[MixtureOfExperts]:
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def results(model: Decoder, forward: Any = None) -> list[Tensor]:
    """Return the loss, all gradients and all loads of one micro-batch."""
    model.zero_grad()
    loss = (model if forward is None else forward)(*batch())[1]
    loss.backward()
    loads = [module.load.clone() for module in mixtures(model)]
    return [loss.detach(), *(param.grad.clone() for param in model.parameters()), *loads]


@each_mixture
@pytest.mark.parametrize("sizes", [(65, 128), (512, 256), (1000, 64)], ids=str)
def test_the_initial_loss_is_that_of_a_uniform_guess(mixture: dict[str, Any], sizes: tuple[int, int]) -> None:
    vocab_size, d_model = sizes
    model = decoder(mixture, vocab_size=vocab_size, block_size=64, d_model=d_model, d_ff=3 * d_model)
    with torch.no_grad():
        loss = model(*batch(vocab_size, 8, 64))[1].item()
    assert loss == pytest.approx(math.log(vocab_size), abs=0.1)


@each_mixture
def test_last_matrices_start_smaller_and_first_layers_can_be_dense(mixture: dict[str, Any]) -> None:
    model = decoder(mixture, d_model=128, d_ff=384)
    assert [layer.mlp in mixtures(model) for layer in model.layers] == [False, True, True]
    for module in mixtures(model):
        assert module.experts.up.std().item() == pytest.approx(0.02, rel=0.05)
        assert module.experts.down.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
        if module.shared is not None:
            assert module.shared.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)


@each_mixture
@pytest.mark.parametrize("changed", [0, 11, 23])
def test_later_tokens_do_not_reach_earlier_logits(mixture: dict[str, Any], changed: int) -> None:
    model, (x, _) = randomised(mixture), batch()
    other = x.clone()
    other[:, changed:] = (other[:, changed:] + 1) % 61
    with torch.no_grad():
        before, after = model(x)[0], model(other)[0]
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=0, atol=1e-10)
    assert ((before - after)[:, changed:].abs().amax(-1) > 1e-9).all()


@each_mixture
def test_documents_stay_apart(mixture: dict[str, Any]) -> None:
    model = randomised(mixture, **DOCUMENTS)
    first, second = (torch.randint(4, 61, (1, length)) for length in (9, 12))
    end = torch.tensor([[3]])
    with torch.no_grad():
        packed = model(torch.cat((end, first, end, second), dim=1))[0]
        alone = [model(torch.cat((end, part), dim=1))[0] for part in (first, second)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-10)


@each_mixture
def test_gradient_flows_to_every_parameter_and_the_bias_is_saved(mixture: dict[str, Any]) -> None:
    model = decoder(mixture)
    model(*batch())[1].backward()
    assert [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()] == []
    saved = model.state_dict().keys() - dict(model.named_parameters()).keys()
    assert saved == {"layers.1.mlp.bias", "layers.2.mlp.bias"}


@pytest.mark.parametrize("parallel", [False, True])
def test_the_losses_of_routers_are_in_the_gradient_and_not_in_the_loss(parallel: bool) -> None:
    weights = {"balance_loss": 0.3, "router_z_loss": 0.2}
    with_losses, without = (
        randomised(mixture, parallel_blocks=parallel) for mixture in (weights, dict.fromkeys(weights, 0.0))
    )
    without.load_state_dict(with_losses.state_dict())
    ours, plain = results(with_losses), results(without)
    assert torch.equal(ours[0], plain[0])
    assert not torch.equal(ours[1], plain[1])
    routed = [layer.mlp(torch.randn(2, 8, 32).double())[1].loss for layer in with_losses.layers[1:]]
    assert all(loss > 0.3 for loss in routed)


@each_mixture
def test_loads_are_counted_in_training_only(mixture: dict[str, Any]) -> None:
    model = decoder(mixture)
    with torch.no_grad():
        model(*batch())
    model.eval()(*batch())
    model.train()(batch()[0])  # logits only
    assert not any(module.load.any() for module in mixtures(model))
    for counted in (1, 2):
        model(*batch())
        assert [module.load.sum().item() for module in mixtures(model)] == 2 * [
            counted * 48 * mixtures(model)[0].n_active
        ]


@each_mixture
@pytest.mark.parametrize("recompute", ["attention", "layer"])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1, "parallel_blocks": True}], ids=str)
def test_recomputing_changes_no_bit_and_counts_no_token_twice(
    mixture: dict[str, Any], recompute: str, changes: dict[str, Any]
) -> None:
    found = []
    for kind in ("none", recompute):
        model = decoder(mixture, recompute=kind, **changes)
        torch.manual_seed(5)
        found.append(results(model))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@each_mixture
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}], ids=str)
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_flops_are_those_that_torch_counts(mixture: dict[str, Any], changes: dict[str, Any], recompute: str) -> None:
    model = decoder(mixture, recompute=recompute, **changes)
    with FlopCounterMode(display=False) as counter:
        model(*batch())[1].backward()
    flops = model.flops_per_token(24) + model.recomputed_flops_per_token(24)
    assert counter.get_total_flops() == flops * 48


@pytest.mark.slow
def test_plan_counts_all_experts_as_memory_and_the_active_ones_as_flops() -> None:
    model = decoder(MIXTURES["sigmoid"], n_layer=2)

    def build() -> tuple[Decoder, torch.optim.Optimizer]:
        built = decoder(MIXTURES["sigmoid"], n_layer=2)
        named = built.named_parameters()
        return built, adamw(named, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)

    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        cost = simulate(build, StepSettings(device, dtype, 1, 2, 24))
        params = 4 * sum(param.numel() for param in model.parameters())
        assert params <= cost.peak["weights"] < 1.25 * params  # with tables of positions; CUDA rounds up to 512 bytes
        assert 2 * params <= cost.peak["optimizer"] < 2.25 * params
    assert count_flops(lambda: build()[0], 2, 24) == model.flops_per_token(24)


def test_the_size_limit_counts_experts() -> None:
    with pytest.raises(ModelTooLargeError):
        refuse_too_large(lambda: decoder({"n_expert": 10**7}), SizeLimit(10**9))


def test_optimizers_take_experts_for_hidden_matrices() -> None:
    model = decoder({"n_shared": 1})
    for name, param in model.layers[1].mlp.named_parameters(prefix="layers.1.mlp"):
        assert role_of(name, param.ndim) == "hidden"
    up = model.layers[1].mlp.experts.up
    settings = {
        "momentum": 0.95, "nesterov": True, "iterations": 5, "precision": "float32", "scale": "match_adamw",
        "weight_decay": 0.0, "lr": 0.1,
    }  # fmt: skip
    gradient = torch.randn_like(up)
    with torch.no_grad():
        expected = up.clone()
        for expert in range(len(up)):  # each expert is a matrix of its own
            muon_update([expected[expert]], [gradient[expert]], [{}], settings, None)
        muon_update([up], [gradient], [{}], settings, None)
    # Products of a batch of matrices may round differently: five iterations of about 50 roundings of numbers near 1.
    torch.testing.assert_close(up, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@NEEDS_A_COMPILER
def test_experts_are_compiled_into_one_graph() -> None:
    torch._dynamo.reset()
    model = randomised({"n_shared": 1}, recompute="layer", n_layer=1, dense_layers=0)
    expected = results(copy.deepcopy(model))
    try:
        ours = results(model, torch.compile(model, fullgraph=True))
    finally:
        torch._dynamo.reset()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)  # a million roundings in float64

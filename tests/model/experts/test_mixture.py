"""A mixture of experts matches transformers in float64, and its router's losses match the papers' formulas."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmtrain.model.experts.mixture import MixtureOfExperts, add_gradient, balance_loss, router_z_loss

C, D, E = 16, 12, 6
CLOSE = {"rtol": 0.0, "atol": 1e-10}  # about a million roundings in float64
MATRICES = ("gate", "up", "down")


def mixture(n_active: int = 2, **changes: Any) -> MixtureOfExperts:
    """Return a mixture whose parameters and biases are all random."""
    settings = {"balance_loss": 0.0, "router_z_loss": 0.0, "d_expert": D, **changes}
    generator = torch.Generator().manual_seed(1)
    model = MixtureOfExperts(C, 24, E, n_active, **settings).double()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.4, generator=generator)
        if settings.get("router") == "sigmoid":
            model.bias.uniform_(-0.3, 0.3, generator=generator)
    return model


def tokens(rows: int = 40) -> Tensor:
    return torch.randn(2, rows, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@contextmanager
def without_rounding() -> Iterator[None]:
    """Let transformers' routers, which round to float32, compute in float64."""
    with (
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        yield


def mixtral() -> tuple[Any, dict[str, Any]]:
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=C, intermediate_size=D, num_local_experts=E, num_experts_per_tok=2)
    return MixtralSparseMoeBlock(config), {}


def qwen3() -> tuple[Any, dict[str, Any]]:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(hidden_size=C, moe_intermediate_size=D, num_experts=E, num_experts_per_tok=3)
    config.norm_topk_prob = True
    return Qwen3MoeSparseMoeBlock(config), {"n_active": 3}


def olmoe() -> tuple[Any, dict[str, Any]]:
    from transformers.models.olmoe.modeling_olmoe import OlmoeConfig, OlmoeSparseMoeBlock

    config = OlmoeConfig(hidden_size=C, intermediate_size=D, num_experts=E, num_experts_per_tok=2)
    return OlmoeSparseMoeBlock(config), {"normalise": False}


def deepseek() -> tuple[Any, dict[str, Any]]:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE

    config = DeepseekV3Config(hidden_size=C, moe_intermediate_size=D, n_routed_experts=E, num_experts_per_tok=2)
    config.n_group = config.topk_group = 1
    config.n_shared_experts, config.routed_scaling_factor = 2, 1.0
    return DeepseekV3MoE(config), {"router": "sigmoid", "n_shared": 2}


@pytest.mark.slow  # importing transformers takes seconds
@pytest.mark.parametrize("build", [mixtral, qwen3, olmoe, deepseek])
def test_outputs_and_gradients_are_those_of_transformers(build: Any) -> None:
    theirs, settings = build()
    theirs.double()
    ours = mixture(**settings)
    state = {
        "gate.weight": ours.router.weight,
        "experts.gate_up_proj": torch.cat([ours.experts.gate, ours.experts.up], dim=1),
        "experts.down_proj": ours.experts.down,
    }
    if ours.shared is not None:
        state |= {f"shared_experts.{part}_proj.weight": getattr(ours.shared, part).weight for part in MATRICES}
        state["gate.e_score_correction_bias"] = ours.bias
    theirs.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, strict=True)
    x, y = tokens().requires_grad_(), tokens().requires_grad_()
    out, routing = ours(x)
    with without_rounding():
        expected = theirs(y)
    torch.testing.assert_close(out, expected, **CLOSE)
    assert routing.load.sum() == ours.n_active * 80
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.router.weight.grad, theirs.gate.weight.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.experts.down.grad, theirs.experts.down_proj.grad, rtol=1e-10, atol=1e-10)


def by_all_experts(model: MixtureOfExperts, x: Tensor) -> Tensor:
    """Return the output of a mixture that computes all experts for all tokens, and multiplies most with zero."""
    logits = x @ model.router.weight.T
    scores = logits.softmax(-1) if model.router_kind == "softmax" else logits.sigmoid()
    chosen = torch.zeros_like(scores).scatter(-1, (scores + model.bias).topk(model.n_active, -1).indices, 1.0)
    weights = scores * chosen
    if model.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    gate, up = (torch.einsum("btc,edc->bted", x, getattr(model.experts, part)) for part in ("gate", "up"))
    out = torch.einsum("bted,ecd,bte->btc", F.silu(gate) * up, model.experts.down, weights)
    return out if model.shared is None else out + model.shared(x)


@pytest.mark.parametrize("rows", [1, 40])  # with two tokens, most experts have none
@pytest.mark.parametrize(
    "settings",
    [{}, {"n_active": 6}, {"n_active": 1, "normalise": False}, {"router": "sigmoid", "n_shared": 1}],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_all_experts_computed_densely(settings: dict[str, Any], rows: int) -> None:
    model = mixture(**settings)
    grads = []
    for function in (lambda x: model(x)[0], lambda x: by_all_experts(model, x)):
        model.zero_grad()
        x = tokens(rows).requires_grad_()
        out = function(x)
        out.square().sum().backward()
        grads.append([out, x.grad, *(param.grad for param in model.parameters())])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_every_token_gets_all_its_experts_even_if_all_tokens_pick_the_same() -> None:
    model = mixture()
    model.bias[:2] = 10.0  # far above any score
    x = tokens()
    out, routing = model(x)
    assert routing.load.tolist() == [80, 80, 0, 0, 0, 0]
    torch.testing.assert_close(out, by_all_experts(model, x), **CLOSE)


def test_the_output_of_a_token_does_not_depend_on_other_tokens() -> None:
    """So it knows nothing of later tokens and of other documents. Products of fewer rows round differently."""
    model = mixture(router="sigmoid", n_shared=1)
    x = tokens()
    whole = model(x)[0]
    for part in (slice(0, 1), slice(7, 23)):
        torch.testing.assert_close(model(x[:, part])[0], whole[:, part], **CLOSE)


def test_the_same_numbers_give_the_same_bits() -> None:
    def gradients() -> list[Tensor]:
        model = mixture(n_shared=1, balance_loss=0.1, router_z_loss=0.1).float()
        x = tokens().float().requires_grad_()
        out, routing = model(x)
        (out.square().sum() + routing.loss).backward()
        return [out, x.grad, *(param.grad for param in model.parameters())]

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


def test_the_balance_loss_is_that_of_switch_transformers() -> None:
    logits = torch.randn(50, E, dtype=torch.float64)
    scores = logits.softmax(-1)
    load = torch.bincount(scores.argmax(-1), minlength=E)
    fractions = [(scores.argmax(-1) == expert).double().mean() for expert in range(E)]  # eq. 5
    probabilities = [scores[:, expert].mean() for expert in range(E)]  # eq. 6
    expected = E * sum(f * p for f, p in zip(fractions, probabilities, strict=True))  # eq. 4 without alpha
    torch.testing.assert_close(balance_loss(scores, load), expected, **CLOSE)
    uniform = torch.full((50, E), 0.5, dtype=torch.float64)  # also for scores that don't add up to 1
    torch.testing.assert_close(balance_loss(uniform, torch.full((E,), 7)).item(), 1.0, **CLOSE)


@pytest.mark.slow
def test_the_balance_loss_is_that_of_transformers_divided_by_the_experts_of_a_token() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(50, E, dtype=torch.float64)
    scores = logits.softmax(-1)
    load = torch.bincount(scores.topk(3).indices.flatten(), minlength=E)
    theirs = load_balancing_loss_func((logits,), E, 3) / 3
    torch.testing.assert_close(balance_loss(scores, load).float(), theirs.float(), rtol=1e-5, atol=0.0)  # float32 sums


def test_the_losses_of_the_router_act_on_the_gradient_only() -> None:
    model = mixture(balance_loss=0.3, router_z_loss=0.2)
    x = tokens()
    logits = x.flatten(0, 1) @ model.router.weight.T
    load = torch.bincount(logits.topk(2).indices.flatten(), minlength=E)
    z_loss = logits.exp().sum(-1).log().square().mean()  # ST-MoE, eq. 5
    torch.testing.assert_close(router_z_loss(logits), z_loss, **CLOSE)
    extra = 0.3 * balance_loss(logits.softmax(-1), load) + 0.2 * z_loss
    (expected,) = torch.autograd.grad(model(x)[0].sum() + extra, model.router.weight)
    out, routing = model(x)
    loss = add_gradient(out.sum(), routing.loss)
    assert torch.equal(loss, out.sum())
    (gradient,) = torch.autograd.grad(loss, model.router.weight)
    torch.testing.assert_close(gradient, expected, **CLOSE)


def test_the_bias_moves_against_the_load_of_the_whole_step() -> None:
    model = mixture(bias_rate=0.25)
    model.count(torch.tensor([4, 0, 2, 2, 2, 1]))
    model.count(torch.tensor([0, 3, 0, 1, 2, 1]))  # together 4, 3, 2, 3, 4, 2, with a mean of 3
    model.after_update(torch.tensor(False))
    assert model.bias.tolist() == [-0.25, 0.0, 0.25, 0.0, -0.25, 0.25]
    assert not model.load.any()
    assert model.metrics()["moe/imbalance"] == pytest.approx(4 / 3)


def test_a_bad_step_leaves_the_bias_and_forgets_the_load() -> None:
    model = mixture(bias_rate=0.25)
    model.count(torch.tensor([4, 0, 2, 2, 2, 1]))
    model.after_update(torch.tensor(True))
    assert not model.bias.any()
    assert not model.load.any()


def test_the_bias_picks_experts_and_does_not_weigh_them() -> None:
    model = mixture(router="sigmoid", n_active=2)
    x = tokens()
    before = model.bias.clone()
    out = model(x)[0]
    model.bias += 0.5  # the same for all, so the picks stay
    assert not torch.equal(before, model.bias)
    torch.testing.assert_close(model(x)[0], out, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_experts_in_16_bits_and_the_router_in_32(dtype: torch.dtype) -> None:
    model = mixture().float()
    x = tokens().float()
    expected, exact = model(x)
    with torch.autocast("cpu", dtype):
        out, routing = model(x)
    assert out.dtype == dtype
    assert torch.equal(routing.load, exact.load)
    # Three roundings of the inputs, weights and result of each of three products, and a few of what is between them,
    # each relative to the sums of the absolute terms. The weights add up to 1, and silu(x) is at most |x|.
    gate, up, down = (getattr(model.experts, part).abs().amax(0) for part in MATRICES)
    bound = ((x.abs() @ gate.T) * (x.abs() @ up.T)) @ down.T
    assert ((out.float() - expected).abs() / bound).max() < 16 * torch.finfo(dtype).eps / 2
    assert not torch.equal(out.float(), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_active": 7}, "model.mlp.n_active=7: a token cannot have more than n_expert=6 experts"),
        ({"n_active": 1}, "set model.mlp.normalise=false"),
        ({"n_active": 5, "d_expert": None}, "model.d_ff=24: cannot be divided among 5 active and 0 shared experts"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**settings)


def test_a_token_takes_the_flops_of_a_dense_mlp_by_default() -> None:
    model = MixtureOfExperts(C, 24, E, 2, n_shared=1)
    assert model.experts.matrix_parameters() + sum(p.numel() for p in model.shared.parameters()) == 3 * C * 24

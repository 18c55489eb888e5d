"""Cautious weight decay and the place of epsilon match their formulas in float64; without them nothing changes."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support.parameters import parameters, set_gradients

from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.lion import lion
from lmtrain.optimizer.muon import muon, normuon

ADAMW: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
MUON: dict[str, Any] = ADAMW | {"momentum": 0.95, "nesterov": True, "iterations": 5, "precision": "float32"}
MUON |= {"adamw_lr_scale": 0.5}


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize(("eps", "eps_root"), [(1e-8, 0.0), (1e-8, 1e-2), (0.0, 1e-2)])
def test_adamw_matches_its_formula(cautious: bool, eps: float, eps_root: float) -> None:
    named = parameters(seed=1)
    options = ADAMW | {"eps": eps, "eps_root": eps_root, "cautious_decay": cautious}
    optimizer = adamw(named.items(), **options)
    x = {name: param.detach().numpy().copy() for name, param in named.items()}
    m, v = ({name: np.zeros_like(value) for name, value in x.items()} for _ in range(2))
    skipped = 0
    for t in range(1, 21):
        set_gradients(named, t)
        optimizer.step()
        for name in x:
            g = named[name].grad.numpy()  # type: ignore[union-attr]
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            u = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.95**t) + eps_root) + eps)
            decays = (u * x[name] >= 0) if cautious else 1.0
            skipped += int(np.size(decays) - np.sum(decays))
            decay = 0.1 if x[name].ndim >= 2 else 0.0
            x[name] = x[name] - 3e-3 * (u + decay * decays * x[name])
            np.testing.assert_allclose(named[name].detach().numpy(), x[name], rtol=1e-12, atol=1e-14)
    assert (skipped > 100) == cautious


def test_cautious_lion_matches_its_formula() -> None:
    named = parameters(seed=1)
    optimizer = lion(named.items(), lr=3e-3, weight_decay=0.5, betas=(0.9, 0.99), cautious_decay=True)
    x = {name: param.detach().numpy().copy() for name, param in named.items()}
    m = {name: np.zeros_like(value) for name, value in x.items()}
    for t in range(1, 21):
        set_gradients(named, t)
        named["matrix"].grad[0] = 0.0  # type: ignore[index]  # in the first steps, these updates are 0 and decay
        optimizer.step()
        for name in x:
            g = named[name].grad.numpy()  # type: ignore[union-attr]
            u = np.sign(0.9 * m[name] + 0.1 * g)
            m[name] = 0.99 * m[name] + 0.01 * g
            decay = 0.5 if x[name].ndim >= 2 else 0.0
            x[name] = x[name] - 3e-3 * (u + decay * (u * x[name] >= 0) * x[name])
            np.testing.assert_allclose(named[name].detach().numpy(), x[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_cautious_muon_decays_where_its_own_update_has_the_sign_of_the_weight(name: str) -> None:
    def make(named: Any, **changes: Any) -> Any:
        options = MUON | changes
        return (
            muon(named, **options, scale="match_adamw") if name == "muon" else normuon(named, **options, row_beta=0.9)
        )

    named, plain = parameters(seed=1), parameters(seed=1)
    optimizer, skipped = make(named.items(), cautious_decay=True), 0
    without = make(plain.items(), weight_decay=0.0)
    for t in range(6):
        for key, param in plain.items():  # the moments do not depend on the weights
            param.data.copy_(named[key].data)
        before = {key: param.detach().clone() for key, param in named.items()}
        for each, params in ((optimizer, named), (without, plain)):
            set_gradients(params, t)
            each.step()
        for key, x in before.items():
            aligned = (x - plain[key].detach()) * x >= 0
            skipped += int((~aligned).sum())
            expected = plain[key].detach() - 3e-3 * (0.1 if x.ndim >= 2 else 0.0) * aligned.double() * x
            torch.testing.assert_close(named[key].detach(), expected, rtol=1e-12, atol=1e-14)
    assert skipped > 20


def test_tiny_numbers_of_opposite_signs_do_not_decay() -> None:
    """In float32 their product is 0."""
    weight = torch.nn.Parameter(torch.tensor([[1e-30, -1e-30]]))
    optimizer = lion([("w", weight)], lr=0.0, weight_decay=0.5, betas=(0.9, 0.99), cautious_decay=True)
    optimizer.param_groups[0]["lr"] = 1e-35  # the update is far smaller than the weight
    weight.grad = torch.tensor([[-1.0, -1.0]])
    before = weight.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.5e35
    optimizer.step()
    assert torch.allclose(weight.detach() / before, torch.tensor([[1.0, 0.5]]), rtol=1e-4)


def test_without_options_adamw_is_torchs_and_groups_are_as_before() -> None:
    optimizer = adamw(parameters(seed=1).items(), **ADAMW)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    for made in (optimizer, lion(parameters(seed=1).items(), lr=1, weight_decay=0.1, betas=(0, 0))):
        assert not any({"decay_follows_lr", "cautious_decay", "eps_root"} & group.keys() for group in made.param_groups)


def test_the_state_of_torchs_adamw_serves_the_one_with_options() -> None:
    """So a fork or an allowed change in a resume keeps the moments."""
    named = parameters(seed=1)
    plain = adamw(named.items(), **ADAMW)
    set_gradients(named, 0)
    plain.step()
    other = adamw(named.items(), **ADAMW, eps_root=1e-30)
    other.state.update({param: copy.deepcopy(plain.state[param]) for param in named.values()})
    set_gradients(named, 1)
    start = {name: param.detach().clone() for name, param in named.items()}
    plain.step()
    expected = {name: param.detach().clone() for name, param in named.items()}
    for name, param in named.items():
        param.data.copy_(start[name])
    other.step()
    for name, param in named.items():
        torch.testing.assert_close(param.detach(), expected[name], rtol=1e-13, atol=1e-15)


def test_a_denominator_that_can_be_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^optimizer\.eps=0: needs optimizer\.eps_root above 0"):
        adamw(parameters(seed=1).items(), **(ADAMW | {"eps": 0.0}))

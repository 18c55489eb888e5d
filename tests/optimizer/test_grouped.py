"""Optimizers of several algorithms: AdamW's part is torch's, a bad step changes no bit, and rules choose."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.parameters import parameters, set_gradients

from lmtrain.optimizer.adafactor import adafactor
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.adamw8bit import adamw8bit
from lmtrain.optimizer.group_table import GroupRow, group_rows
from lmtrain.optimizer.grouped import GroupedOptimizer, adamw_update
from lmtrain.optimizer.lion import lion
from lmtrain.optimizer.muon import muon, normuon

MUON: dict[str, Any] = {
    "lr": 0.02,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "iterations": 5,
    "precision": "auto",
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "adamw_lr_scale": 0.5,
}
ADAMW: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
MAKE: dict[str, Callable[..., Any]] = {
    "lion": lambda named, **more: lion(named, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99), **more),
    "muon": lambda named, **more: muon(named, **MUON, scale="match_adamw", **more),
    "adafactor": lambda named, **more: adafactor(
        named, lr=1e-2, weight_decay=0.1, beta2_decay=0.8, clip=1.0, least_rms=1e-3, eps=1e-15, **more
    ),
    "adamw8bit": lambda named, **more: adamw8bit(named, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, **more),
    "normuon": lambda named, **more: normuon(named, **MUON, row_beta=0.95, **more),
    "adamw with options": lambda named, **more: adamw(named, **ADAMW, eps_root=1e-12, cautious_decay=True, **more),
    "cautious muon": lambda named, **more: muon(named, **MUON, scale="match_adamw", cautious_decay=True, **more),
}


def test_the_part_of_adamw_has_the_bits_of_torchs():
    ours, theirs = parameters(seed=1, dtype=torch.float32), parameters(seed=1, dtype=torch.float32)
    group = {"params": list(ours.values()), "algorithm": "adamw", "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = GroupedOptimizer([{**group, "weight_decay": 0.1}], {"adamw": adamw_update}, 1e-3)
    reference = torch.optim.AdamW(theirs.values(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(5):
        for each, params in ((optimizer, ours), (reference, theirs)):
            set_gradients(params, step)
            each.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", list(MAKE))
def test_a_bad_step_changes_no_bit(name):
    named = parameters(seed=1, dtype=torch.float32)
    optimizer = MAKE[name](named.items())
    for step in range(3):
        set_gradients(named, step)
        optimizer.step()
    before = copy.deepcopy([(p, optimizer.state[p]) for p in named.values()])
    set_gradients(named, 3)
    for param in named.values():
        param.grad.view(-1)[0] = float("nan")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = [(p, optimizer.state[p]) for p in named.values()]
    for (param, state), (param_before, state_before) in zip(after, before, strict=True):
        assert torch.equal(param, param_before)
        assert all(torch.equal(state[key], state_before[key]) for key in state_before)
    optimizer.found_inf = torch.zeros(())  # a good step, decided on the device
    set_gradients(named, 3)
    optimizer.step()
    assert not any(
        torch.equal(param, param_before) for (param, _), (param_before, _) in zip(after, before, strict=True)
    )


@pytest.mark.parametrize("name", list(MAKE))
def test_a_step_is_the_same_where_the_device_decides(name):
    results = []
    for found_inf in (None, torch.zeros(())):
        named = parameters(seed=1)
        optimizer = MAKE[name](named.items())
        if found_inf is not None:
            optimizer.found_inf = found_inf
        for step in range(4):
            set_gradients(named, step)
            optimizer.step()
        results.append(named)
    for key in results[0]:
        torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-6, atol=1e-9)


def test_rules_change_groups():
    rules = [
        {"role": "embedding", "lr_scale": 0.5},
        {"names": "mat*", "algorithm": "adamw"},
        {"ndim": 1, "weight_decay": 0.2},
        {"names": "bias", "weight_decay": 0.0},
    ]
    named = parameters(seed=1)
    rows = group_rows(MAKE["muon"](named.items(), rules=rules), named.items())
    assert rows == [
        GroupRow("adamw", ("embedding", "hidden"), 2, 48, 0.5, 0.1),
        GroupRow("adamw", ("vector",), 1, 4, 0.5, 0.2),
        GroupRow("muon", ("hidden",), 1, 24, 1.0, 0.1),
        GroupRow("adamw", ("vector",), 2, 6, 0.5, 0.0),
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"names": "layer.*"},
            r"rule 1 \(names: layer\.\*\): matches no parameter of the model, which has",
        ),
        ({"role": "hidden", "algorithm": "soap"}, "unknown algorithm soap; choose from adamw, muon"),
        ({"ndim": 1, "algorithm": "muon"}, "algorithm=muon needs matrices"),
        ({"lr_scal": 0.5}, r"^optimizer\.rules: rule 1, lr_scal: unknown key; did you mean lr_scale\?"),
        ({"x": 0.5}, r"^optimizer\.rules: rule 1, x: unknown key; there are role, names, ndim, lr_scale"),
        ({"role": "embeding"}, r"^optimizer\.rules: rule 1, role: embeding: input should be 'embedding', 'output'"),
        ({"lr_scale": -1}, r"^optimizer\.rules: rule 1, lr_scale: -1: input should be greater than or equal to 0"),
    ],
)
def test_a_rule_with_a_mistake_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        MAKE["muon"](parameters(seed=1).items(), rules=[rule])
    if "algorithm" in rule:
        with pytest.raises(ValueError, match="this optimizer has only one; leave it out"):
            adamw(parameters(seed=1).items(), lr=1, weight_decay=0, betas=(0, 0), eps=1, rules=[rule])

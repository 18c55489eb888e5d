"""Each optimizer of pytorch-optimizer resumes bit for bit, or is refused before it trains."""

import json
from typing import Any

import pytest
import torch
from support.parameters import parameters, set_gradients
from torch import nn

from lmtrain.checkpoint.optimizer_state import (
    changed_groups,
    group_values,
    load_groups,
    load_optimizer_state,
    optimizer_state,
)
from lmtrain.optimizer.library import INEXACT, library

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

# They need a closure, the model, data that is not there, or keep a state that a checkpoint cannot hold.
REFUSED = {
    *("adahessian", "adalomo", "adammini", "adashift", "aggmo", "alig", "bsam", "conda", "demo", "distributedmuon"),
    *("emofact", "emolynx", "emonavi", "lbfgs", "lomo", "lorarite", "ranger21", "scalableshampoo", "sophiah", "spam"),
    *("spectralsphere", *INEXACT),
}


def build(name: str, named: dict[str, nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    return library(named.items(), name=name, lr=1e-3, weight_decay=0.1, options=options)


def train(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        every = parameters(seed=0)
        set_gradients(every, step)
        for key, param in named.items():
            param.grad = every[key].grad.to(param.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (step + 1)
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("name", pytorch_optimizer.get_supported_optimizers())
def test_every_optimizer_resumes_bit_for_bit_or_is_refused(name: str) -> None:
    torch.manual_seed(0)
    named = parameters(seed=6, dtype=torch.float32)
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"^optimizer.name={name}: cannot be used here"):
            build(name, named)
        return
    optimizer = build(name, named)
    initial = [dict(group) for group in group_values(optimizer)]
    train(optimizer, named, range(5))
    tensors, plain = optimizer_state(optimizer, named.items())
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    plain = json.loads(json.dumps(plain))
    groups = json.loads(json.dumps(changed_groups(optimizer, initial)))
    weights = {key: param.detach().clone() for key, param in named.items()}
    random = torch.get_rng_state()
    train(optimizer, named, range(5, 8))

    resumed = {key: nn.Parameter(weights[key].clone()) for key in named}
    fresh = build(name, resumed)
    load_optimizer_state(fresh, resumed.items(), tensors, plain)
    load_groups(fresh, initial, groups)
    torch.set_rng_state(random)
    train(fresh, resumed, range(5, 8))
    for key in named:
        assert torch.equal(named[key], resumed[key]), key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("soapp", {}, r"^optimizer\.name=soapp: pytorch-optimizer has no such optimizer; did you mean soap"),
        ("soap", {"beta": 1}, r"^optimizer\.options\.beta: soap has no such argument; did you mean betas\?"),
        ("soap", {"betas": [2, 2]}, r"^optimizer\.name=soap: cannot be used here: "),
    ],
)
def test_mistakes_name_the_way_out(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, parameters(seed=1), **options)


def test_muon_gets_only_hidden_matrices() -> None:
    named = parameters(seed=1, dtype=torch.float32)
    optimizer = build("muon", named)
    names = {id(param): name for name, param in named.items()}
    flags = {names[id(param)]: group["use_muon"] for group in optimizer.param_groups for param in group["params"]}
    assert flags == {name: name in ("cube", "matrix") for name in named}


def test_options_reach_the_optimizer() -> None:
    optimizer = build("ademamix", parameters(seed=1), betas=[0.8, 0.9, 0.99])
    assert [group["betas"] for group in optimizer.param_groups] == [[0.8, 0.9, 0.99]] * len(optimizer.param_groups)

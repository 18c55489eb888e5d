"""An optimizer's state is saved and restored by parameter name, bit for bit."""

import pytest
import torch
from support.parameters import SHAPES, parameters, set_gradients
from torch import nn

from lmtrain.checkpoint.optimizer_state import (
    changed_groups,
    group_values,
    load_groups,
    load_optimizer_state,
    optimizer_state,
)
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.lion import lion
from lmtrain.optimizer.muon import muon, normuon

MUON = {
    **{"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "iterations": 5, "precision": "auto"},
    **{"betas": (0.9, 0.95), "eps": 1e-8, "adamw_lr_scale": 0.1},
}
HYPER = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


class NestedState(torch.optim.Optimizer):
    """Keeps tensors in lists and dicts, as SOAP does."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["sides"] = [torch.zeros_like(param), [], {"deep": (torch.zeros_like(param), 3)}]
                    state["empty"], state["name"] = None, "a/b"
                state["sides"][0].add_(param.grad)
                state["sides"][2]["deep"][0].mul_(0.9).add_(state["sides"][0])
                param.sub_(state["sides"][2]["deep"][0], alpha=group["lr"])


def train(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        set_gradients(named, step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()


OPTIMIZERS = [
    pytest.param(lambda named: adamw(named, **HYPER), id="adamw"),
    pytest.param(lambda named: torch.optim.SGD((param for _, param in named), lr=0.1, momentum=0.9), id="sgd"),
    pytest.param(lambda named: torch.optim.Adam(list(named), amsgrad=True), id="adam-of-named-parameters"),
    pytest.param(lambda named: torch.optim.NAdam(list(named), foreach=False), id="nadam"),
    pytest.param(lambda named: torch.optim.Adafactor(list(named)), id="adafactor"),
    pytest.param(lambda named: lion(named, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99)), id="lion"),
    pytest.param(lambda named: muon(named, **MUON, scale="spectral"), id="muon"),
    pytest.param(lambda named: normuon(named, **MUON, row_beta=0.9), id="normuon"),
    pytest.param(lambda named: NestedState(param for _, param in named), id="state-in-lists"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", OPTIMIZERS)
def test_steps_after_loading_are_the_same_bit_for_bit(build, dtype):
    named = parameters(seed=6, dtype=dtype)
    optimizer = build(named.items())
    train(optimizer, named, range(5))
    tensors, plain = optimizer_state(optimizer, named.items())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = {name: param.detach().clone() for name, param in named.items()}
    train(optimizer, named, range(5, 9))
    assert any(not torch.equal(weights[name], named[name].detach()) for name in named)

    resumed = {name: nn.Parameter(weights[name].clone()) for name in reversed(named)}  # in another order
    fresh = build(resumed.items())
    load_optimizer_state(fresh, resumed.items(), tensors, plain)
    train(fresh, resumed, range(5, 9))
    for name in named:
        assert torch.equal(named[name], resumed[name]), name
    after, again = optimizer_state(optimizer, named.items()), optimizer_state(fresh, resumed.items())
    assert after[1] == again[1]
    assert after[0].keys() == again[0].keys()
    for name, tensor in after[0].items():
        assert tensor.dtype == again[0][name].dtype, name
        assert torch.equal(tensor, again[0][name]), name


def test_state_is_keyed_by_parameter_name():
    named = parameters(seed=7)
    optimizer = adamw(named.items(), **HYPER)
    assert optimizer_state(optimizer, named.items()) == ({}, {})
    train(optimizer, named, range(3))
    tensors, plain = optimizer_state(optimizer, named.items())
    assert tensors.keys() == {f"{name}/{key}" for name in SHAPES for key in ("step", "exp_avg", "exp_avg_sq")}
    assert plain == {}
    assert {path: tensor.shape for path, tensor in tensors.items() if path.endswith("/exp_avg")} == {
        f"{name}/exp_avg": shape for name, shape in SHAPES.items()
    }
    assert {tensor.item() for path, tensor in tensors.items() if path.endswith("/step")} == {3.0}


@pytest.mark.parametrize("moments", [torch.float32, torch.float64])
def test_moments_keep_a_dtype_wider_than_their_parameter(moments):
    named = parameters(seed=8, dtype=torch.bfloat16)
    optimizer = adamw(named.items(), **HYPER)
    third = torch.full((4, 5), 1 / 3, dtype=moments)
    load_optimizer_state(optimizer, named.items(), {"matrix/exp_avg": third}, {})
    loaded = optimizer.state[named["matrix"]]["exp_avg"]
    assert loaded.dtype == moments
    assert torch.equal(loaded, third)


def test_names_with_a_slash_and_plain_values_are_restored():
    named = {"a/b": nn.Parameter(torch.zeros(2))}
    optimizer = torch.optim.SGD([param for _, param in named.items()], lr=0.1)
    load_optimizer_state(optimizer, named.items(), {"a/b/moment": torch.ones(2)}, {"a/b/count": 3, "a/b/none": None})
    tensors, plain = optimizer_state(optimizer, named.items())
    assert torch.equal(tensors["a/b/moment"], torch.ones(2))
    assert plain == {"a/b/count": 3, "a/b/none": None}


@pytest.mark.parametrize("kind", ["tensor", "plain"])
def test_state_of_an_unknown_parameter_is_refused(kind):
    named = parameters(seed=9)
    optimizer = adamw(named.items(), **HYPER)
    path = "layers.0.gone/exp_avg"
    tensors, plain = ({path: torch.zeros(2)}, {}) if kind == "tensor" else ({}, {path: 1})
    with pytest.raises(ValueError, match=r"layers\.0\.gone"):
        load_optimizer_state(optimizer, named.items(), tensors, plain)


def test_without_changed_values_the_groups_may_be_others():
    named = list(parameters(seed=10).items())
    one, two = adamw(named, **HYPER), torch.optim.SGD([param for _, param in named], lr=0.1)
    assert (len(one.param_groups), len(two.param_groups)) == (2, 1)
    load_groups(two, group_values(two), changed_groups(one, group_values(one)))
    with pytest.raises(ValueError, match="has 2 parameter groups, but this one has 1"):
        load_groups(two, group_values(two), [{"d": 0.5}, {}])

"""AdamW against the paper's algorithm in float64, which tensors decay, and optimizer state that goes by name."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lmtrain.model.llama import Llama
from lmtrain.optimizer import adamw, load_optimizer_state, optimizer_state

SHAPES = {"embedding": (7, 4), "gain": (4,), "cube": (2, 3, 4), "scale": (), "bias": (5,), "matrix": (4, 5)}
HYPER = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in SHAPES.items()
    }


def set_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for name in SHAPES:  # in this order, whatever the order of the parameters
        gradient = torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)
        named[name].grad = gradient.to(named[name].dtype)


def train(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        set_gradients(named, step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()


def test_twenty_steps_are_algorithm_2_of_the_paper():
    named = parameters(seed=1)
    optimizer = adamw(named.items(), **HYPER)
    theta = {name: param.detach().numpy().copy() for name, param in named.items()}
    m = {name: np.zeros_like(value) for name, value in theta.items()}
    v = {name: np.zeros_like(value) for name, value in theta.items()}
    (beta1, beta2), eps = HYPER["betas"], HYPER["eps"]
    for t in range(1, 21):
        lr = HYPER["lr"] * t / 20  # the trainer sets it before every step
        for group in optimizer.param_groups:
            group["lr"] = lr
        set_gradients(named, t)
        optimizer.step()
        for name in theta:
            g = named[name].grad.numpy()
            decay = HYPER["weight_decay"] if name in ("embedding", "cube", "matrix") else 0.0
            theta[name] = theta[name] * (1 - lr * decay)
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            m_hat, v_hat = m[name] / (1 - beta1**t), v[name] / (1 - beta2**t)
            theta[name] = theta[name] - lr * m_hat / (np.sqrt(v_hat) + eps)
            # Twenty steps are 200 roundings of 1.1e-16; a value near 0 was at most 0.1 before, by 20 rates of 3e-3.
            np.testing.assert_allclose(named[name].detach().numpy(), theta[name], rtol=1e-12, atol=1e-14)


def test_without_a_gradient_only_tensors_of_two_or_more_dimensions_shrink():
    named = parameters(seed=2)
    before = {name: param.detach().clone() for name, param in named.items()}
    optimizer = adamw(named.items(), **HYPER)
    for param in named.values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in named.items():
        factor = 1 - 3e-3 * 0.1 if len(SHAPES[name]) >= 2 else 1.0
        # Nine roundings of float64; three are needed.
        torch.testing.assert_close(param.detach(), before[name] * factor, rtol=1e-15, atol=0)


def test_a_frozen_parameter_is_left_alone(caplog):
    named = parameters(seed=3)
    named["cube"].requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="lmtrain.optimizer"):
        optimizer = adamw(named.items(), **HYPER)
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert held == {id(param) for name, param in named.items() if name != "cube"}
    assert caplog.messages == ["2 tensors decayed (48 params), 3 not decayed (10 params)"]


def test_a_model_of_matrices_alone_has_one_group():
    named = {name: param for name, param in parameters(seed=4).items() if param.ndim >= 2}
    assert [len(group["params"]) for group in adamw(named.items(), **HYPER).param_groups] == [3]


def test_the_production_model_logs_what_decays(caplog):
    folder = Path(__file__).parents[1] / "conf"
    config = OmegaConf.load(folder / "model/llama_50m.yaml")
    config.update(block_size=512)
    hyper = OmegaConf.to_container(OmegaConf.load(folder / "optimizer/adamw.yaml"))
    assert (config.pop("_target_"), hyper.pop("_target_")) == ("lmtrain.model.llama.Llama", "lmtrain.optimizer.adamw")
    with torch.device("meta"):
        model = Llama(**config)
    with caplog.at_level(logging.INFO, logger="lmtrain.optimizer"):
        optimizer = adamw(model.named_parameters(), **hyper)
    assert caplog.messages == ["113 tensors decayed (50,036,736 params), 33 not decayed (12,672 params)"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_the_cpu_uses_the_fused_kernel():
    assert adamw(parameters(seed=5).items(), **HYPER).defaults["fused"]


OPTIMIZERS = [
    pytest.param(lambda named: adamw(named, **HYPER), id="adamw"),
    pytest.param(lambda named: torch.optim.SGD((param for _, param in named), lr=0.1, momentum=0.9), id="sgd"),
    pytest.param(lambda named: torch.optim.Adam(list(named), amsgrad=True), id="adam-of-named-parameters"),
    pytest.param(lambda named: torch.optim.NAdam(list(named), foreach=False), id="nadam"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", OPTIMIZERS)
def test_after_loading_further_steps_are_the_same_to_the_bit(build, dtype):
    named = parameters(seed=6, dtype=dtype)
    optimizer = build(named.items())
    train(optimizer, named, range(5))
    tensors, plain = optimizer_state(optimizer, named.items())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = {name: param.detach().clone() for name, param in named.items()}
    train(optimizer, named, range(5, 9))
    assert any(not torch.equal(weights[name], named[name].detach()) for name in named)

    resumed = {name: nn.Parameter(weights[name].clone()) for name in reversed(named)}  # another order
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


def test_state_goes_by_name():
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
def test_moments_wider_than_their_parameter_stay_so(moments):
    named = parameters(seed=8, dtype=torch.bfloat16)
    optimizer = adamw(named.items(), **HYPER)
    third = torch.full((4, 5), 1 / 3, dtype=moments)
    load_optimizer_state(optimizer, named.items(), {"matrix/exp_avg": third}, {})
    loaded = optimizer.state[named["matrix"]]["exp_avg"]
    assert loaded.dtype == moments
    assert torch.equal(loaded, third)


def test_a_name_with_a_slash_and_plain_values_come_back():
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

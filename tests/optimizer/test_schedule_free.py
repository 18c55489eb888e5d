"""Schedule-free AdamW matches algorithm 1 of its paper in float64, in training and in evaluation."""

import sys

import numpy as np
import pytest
from support.parameters import parameters, set_gradients

from lmtrain.optimizer.schedule_free import schedule_free

SETTINGS = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def test_ten_steps_match_algorithm_1_of_the_paper():
    named = parameters(seed=1)
    optimizer = schedule_free(named.items(), **SETTINGS)
    z = {name: param.detach().numpy().copy() for name, param in named.items()}
    x, v = {name: value.copy() for name, value in z.items()}, {name: np.zeros_like(value) for name, value in z.items()}
    beta1, beta2 = SETTINGS["betas"]
    weights, largest = 0.0, 0.0
    for t in range(1, 11):
        lr = SETTINGS["lr"] * min(1, t / 4)  # a warmup, which the trainer sets
        for group in optimizer.param_groups:
            group["lr"] = lr
        set_gradients(named, t)
        gradients = {name: param.grad.numpy().copy() for name, param in named.items()}
        optimizer.step()
        largest = max(largest, lr)
        weights += largest**2
        share = largest**2 / weights
        for name, g in gradients.items():
            y = (1 - beta1) * z[name] + beta1 * x[name]
            decay = SETTINGS["weight_decay"] if g.ndim >= 2 else 0.0
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            z[name] = z[name] - lr * (g / (np.sqrt(v[name] / (1 - beta2**t)) + SETTINGS["eps"]) + decay * y)
            x[name] = (1 - share) * x[name] + share * z[name]
            y = (1 - beta1) * z[name] + beta1 * x[name]
            np.testing.assert_allclose(named[name].detach().numpy(), y, rtol=1e-11, atol=1e-12, err_msg=name)
    optimizer.eval()
    for name, param in named.items():
        np.testing.assert_allclose(param.detach().numpy(), x[name], rtol=1e-10, atol=1e-11, err_msg=name)


def test_without_the_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match=r"needs the package schedulefree; pip install 'lmtrain\[optimizers\]'"):
        schedule_free(parameters(seed=1).items(), **SETTINGS)

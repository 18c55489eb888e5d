"""Lion matches the paper's algorithm in float64."""

import numpy as np
import pytest
import torch
from support.parameters import parameters, set_gradients

from lmtrain.optimizer.lion import lion


def test_twenty_steps_match_algorithm_2_of_the_paper():
    named = parameters(seed=1)
    optimizer = lion(named.items(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.99))
    theta = {name: param.detach().numpy().copy() for name, param in named.items()}
    m = {name: np.zeros_like(value) for name, value in theta.items()}
    for t in range(1, 21):
        lr = 3e-3 * t / 20  # the trainer sets it before every step
        for group in optimizer.param_groups:
            group["lr"] = lr
        set_gradients(named, t)
        optimizer.step()
        for name in theta:
            g = named[name].grad.numpy()
            update = np.sign(0.9 * m[name] + (1 - 0.9) * g)
            decay = 0.1 if theta[name].ndim >= 2 else 0.0
            theta[name] = theta[name] - lr * (update + decay * theta[name])
            m[name] = 0.99 * m[name] + (1 - 0.99) * g
            np.testing.assert_allclose(named[name].detach().numpy(), theta[name], rtol=1e-12, atol=1e-14)


def test_ten_steps_are_those_of_pytorch_optimizer():
    library = pytest.importorskip("pytorch_optimizer")
    ours, theirs = parameters(seed=2), parameters(seed=2)
    optimizer = lion(ours.items(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.99))
    groups = [
        {"params": [param for param in theirs.values() if (param.ndim >= 2) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    reference = library.Lion(groups, lr=3e-3, betas=(0.9, 0.99), weight_decouple=True)
    for t in range(10):
        for each, named in ((optimizer, ours), (reference, theirs)):
            for group in each.param_groups:
                group["lr"] = 3e-3 * (t + 1) / 10
            set_gradients(named, t)
            each.step()
    for name, param in ours.items():
        torch.testing.assert_close(param, theirs[name], rtol=1e-12, atol=1e-14)

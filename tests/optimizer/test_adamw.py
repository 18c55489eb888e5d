"""AdamW matches the paper's algorithm in float64."""

import numpy as np
import torch
from support.parameters import SHAPES, parameters, set_gradients

from lmtrain.optimizer.adamw import adamw

HYPER = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def test_twenty_steps_match_algorithm_2_of_the_paper():
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
            # Twenty steps round 200 times by 1.1e-16. Values near 0 were at most 0.1 before: a step moves them by 3e-3.
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
        # Allows nine roundings in float64; three happen.
        torch.testing.assert_close(param.detach(), before[name] * factor, rtol=1e-15, atol=0)


def test_the_cpu_uses_the_fused_kernel():
    assert adamw(parameters(seed=5).items(), **HYPER).defaults["fused"]


def test_ten_steps_are_those_of_torchs_plain_loop():
    ours, theirs = parameters(seed=6), parameters(seed=6)
    optimizer = adamw(ours.items(), **HYPER)
    groups = [
        {"params": [param for param in theirs.values() if (param.ndim >= 2) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    reference = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for t in range(10):
        for each, named in ((optimizer, ours), (reference, theirs)):
            for group in each.param_groups:
                group["lr"] = 3e-3 * (t + 1) / 10
            set_gradients(named, t)
            each.step()
    for name, param in ours.items():
        torch.testing.assert_close(param, theirs[name], rtol=1e-12, atol=1e-14)

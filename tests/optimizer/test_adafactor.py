"""Adafactor equals torch's in float64, and keeps little state."""

import torch
from support.parameters import parameters, set_gradients

from lmtrain.optimizer.adafactor import adafactor


def test_ten_steps_match_torchs():
    ours, theirs = parameters(seed=1), parameters(seed=1)
    optimizer = adafactor(ours.items(), lr=0.5, weight_decay=0.1, beta2_decay=0.8, clip=1.0, least_rms=1e-3, eps=1e-15)
    groups = [
        {"params": [p for p in theirs.values() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.Adafactor(groups, lr=0.5, eps=(1e-15, 1e-3), foreach=False)
    for step in range(10):  # the rate is first lr, later 1 / sqrt(step)
        for each, params in ((optimizer, ours), (reference, theirs)):
            for group in each.param_groups:
                group["lr"] = 0.5 * (step + 1) / 10
            set_gradients(params, step)
            each.step()
        for name, param in ours.items():
            # torch keeps the step in float32, so that its powers have errors of 2⁻²⁴ of their size.
            torch.testing.assert_close(param, theirs[name], rtol=1e-6, atol=1e-7, msg=name)


def test_the_state_of_a_matrix_is_a_row_and_a_column():
    named = parameters(seed=1)
    optimizer = adafactor(named.items(), lr=0.5, weight_decay=0.1, beta2_decay=0.8, clip=1.0, least_rms=1e-3, eps=1e-15)
    set_gradients(named, 0)
    optimizer.step()
    state = optimizer.state[named["matrix"]]
    assert {key: value.numel() for key, value in state.items()} == {"step": 1, "row_squares": 4, "column_squares": 5}

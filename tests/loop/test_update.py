"""A bad step changes neither parameters nor optimizer state, whether the device or the host skips its update."""

from collections.abc import Callable

import pytest
import torch
from support.parameters import parameters, set_gradients
from torch import nn

from lmtrain.loop.update import update
from lmtrain.optimizer.adamw import adamw

Named = dict[str, nn.Parameter]


def fused(named: Named) -> torch.optim.Optimizer:
    return adamw(named.items(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def not_fused(named: Named) -> torch.optim.Optimizer:
    return torch.optim.SGD(named.values(), lr=1e-2, momentum=0.9)


@pytest.mark.parametrize("make", [fused, not_fused])
def test_a_bad_step_is_skipped_and_the_others_are_plain_steps(make: Callable[[Named], torch.optim.Optimizer]) -> None:
    named, plain = parameters(seed=1, dtype=torch.float32), parameters(seed=1, dtype=torch.float32)
    optimizer, reference = make(named), make(plain)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step, bad in enumerate([False, True, False, True, True, False]):
        set_gradients(named, step)
        update(optimizer, scaler, torch.tensor(bad))
        if not bad:
            set_gradients(plain, step)
            reference.step()
        for name, param in named.items():  # later steps would show changed moments or step counts
            assert torch.equal(param, plain[name]), name
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("bad", [False, True])
def test_an_update_says_whether_it_was_skipped(bad: bool, overflow: bool) -> None:
    named = parameters(seed=1, dtype=torch.float32)
    before = {name: param.detach().clone() for name, param in named.items()}
    optimizer, scaler = fused(named), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(sum(param.sum() for param in named.values())).backward()
    if overflow:
        named["gain"].grad.fill_(float("inf"))
    scaler.unscale_(optimizer)
    skipped = update(optimizer, scaler, torch.tensor(bad))
    assert bool(skipped) == (bad or overflow)
    assert all(torch.equal(param, before[name]) for name, param in named.items()) == bool(skipped)

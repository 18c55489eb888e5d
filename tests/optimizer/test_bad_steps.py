"""With every optimizer, bad steps between good ones leave no trace: every bit is that of the good steps alone."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.parameters import parameters, set_gradients
from torch import nn

from lmtrain.checkpoint.optimizer_state import group_values, optimizer_state
from lmtrain.config.build import build
from lmtrain.loop.update import update

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
CHOICES = [path.stem for path in sorted(CONF.glob("*.yaml"))]
GOOD_STEPS = 10
BAD_AFTER = (0, 3, 4, 9)  # good steps; a bad one before each of these


def steps(choice: str, *, scales: bool, bad_after: tuple[int, ...]) -> tuple[object, ...]:
    """Do good steps and bad ones as the trainer does, and return all that a checkpoint would keep."""
    torch.manual_seed(0)
    named = parameters(seed=1, dtype=torch.float32)
    optimizer = build(OmegaConf.load(CONF / f"{choice}.yaml"), list(named.items()))
    scaler = torch.amp.GradScaler("cpu", enabled=scales, init_scale=2.0**10)
    scaler.scale(torch.ones(()))  # creates its scale
    for step in range(GOOD_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step + 1) / GOOD_STEPS * group.get("lr_scale", 1.0)
        if step in bad_after:
            one_step(optimizer, named, scaler, 100 + step, bad=True)
        one_step(optimizer, named, scaler, step, bad=False)
    tensors, plain = optimizer_state(optimizer, named.items())
    return {name: param.detach() for name, param in named.items()}, tensors, plain, group_values(optimizer)


def one_step(
    optimizer: torch.optim.Optimizer,
    named: dict[str, nn.Parameter],
    scaler: torch.amp.GradScaler,
    seed: int,
    *,
    bad: bool,
) -> None:
    set_gradients(named, seed)
    for param in named.values():
        assert param.grad is not None
        if bad:
            param.grad.view(-1)[0] = float("inf")
        param.grad.mul_(scaler.get_scale())  # a power of two, so no bit changes
    scaler.unscale_(optimizer)
    update(optimizer, scaler, torch.tensor(bad))
    optimizer.zero_grad()


@pytest.mark.parametrize("scales", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("choice", CHOICES)
def test_bad_steps_between_good_ones_leave_no_trace(choice: str, scales: bool) -> None:
    if choice == "library":
        pytest.importorskip("pytorch_optimizer")
    weights, tensors, plain, groups = steps(choice, scales=scales, bad_after=())
    disturbed = steps(choice, scales=scales, bad_after=BAD_AFTER)
    torch.testing.assert_close(disturbed[0], weights, rtol=0, atol=0)
    torch.testing.assert_close(disturbed[1], tensors, rtol=0, atol=0)
    assert disturbed[2:] == (plain, groups)

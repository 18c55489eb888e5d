"""An optimizer that is called element-wise gives rows of a tensor what it gives the whole tensor."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lmtrain.config.build import build
from lmtrain.config.compose import compose
from lmtrain.optimizer.elementwise import is_elementwise

ELEMENTWISE = {
    "adamw": True,
    "lion": True,
    "schedule_free": True,
    "muon": False,
    "normuon": False,
    "adafactor": False,
    "adamw8bit": False,
    "soap": False,
}


def steps(choice: str, weight: torch.Tensor, grads: list[torch.Tensor]) -> tuple[torch.Tensor, bool]:
    """Return a weight after some steps, and whether its optimizer is element-wise for it."""
    param = nn.Parameter(weight.clone())
    node = compose([f"optimizer={choice}"]).optimizer
    optimizer = build(node, [("layers.0.mlp.up.weight", param)])
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), is_elementwise(optimizer, optimizer.param_groups[0])


@pytest.mark.parametrize("choice", sorted(path.stem for path in Path("conf/optimizer").glob("*.yaml")))
def test_rows_alone_are_updated_as_in_the_whole(choice: str) -> None:
    if choice not in ELEMENTWISE:
        pytest.skip("needs a name, and is never element-wise")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 16, generator=generator)
    grads = [torch.randn(32, 16, generator=generator) for _ in range(12)]
    whole, elementwise = steps(choice, weight, grads)
    part, _ = steps(choice, weight[10:21], [grad[10:21] for grad in grads])
    assert elementwise == ELEMENTWISE[choice]
    assert torch.allclose(whole[10:21], part, rtol=1e-6, atol=0) == elementwise


def test_a_users_own_optimizer_says_so() -> None:
    class Own(torch.optim.SGD):
        elementwise = True

    class Other(torch.optim.Optimizer):
        pass

    params = [nn.Parameter(torch.ones(2))]
    assert is_elementwise(Own(params), {})
    assert is_elementwise(torch.optim.SGD(params), {})
    assert not is_elementwise(Other(params, {}), {})

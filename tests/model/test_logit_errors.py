"""Soft-caps and the z-loss: the loss in chunks agrees with autograd in float64, and the z-loss is in no value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmtrain.model.loss import IGNORE, linear_cross_entropy

OPTIONS = [{"softcap": 3.0}, {"z_loss": 0.1}, {"softcap": 3.0, "z_loss": 0.1}, {"z_loss": 40.0}]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 7, generator=random, dtype=torch.float64) for rows in (21, 13))
    targets = torch.randint(13, (21,), generator=random)
    targets[[3, 8, 9, 10, 11, 12, 13, 14, 15]] = IGNORE  # also a whole chunk of 8
    # Negative on average, so that Z is below 1 in some rows, where the z-loss pulls upwards.
    return hidden.to(dtype), (weight - 0.5).to(dtype), targets


def gradients(loss_of: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    loss = loss_of(*leaves, targets)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def reference(softcap: float | None = None, z_loss: float = 0.0) -> Callable[..., Tensor]:
    """Return the definition: the gradient is that of both losses, the value that of the first."""

    def loss_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = hidden @ weight.T
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        pull = z_loss * logits.logsumexp(1).square()[targets != IGNORE].mean()
        return F.cross_entropy(logits, targets) + pull - pull.detach()

    return loss_of


@each_option
@pytest.mark.parametrize("rows", [8, 64])
def test_loss_and_gradients_match_autograd_in_float64(options: dict[str, Any], rows: int) -> None:
    ours = gradients(lambda *x: linear_cross_entropy(*x, rows=rows, **options), *problem())
    for one, other in zip(ours, gradients(reference(**options), *problem()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@each_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_fewer_bits_are_near(options: dict[str, Any], dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(torch.float32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        ours = gradients(lambda *x: linear_cross_entropy(*x, rows=8, **options), hidden, weight, targets)
    exact = gradients(reference(**options), hidden.double(), weight.double(), targets)
    # Logits of up to 12 lose half a unit in the last place of inputs and product. That changes the softmax by the same
    # share of its largest entry, which the z-loss multiplies by up to 1 + 2 · z_loss · 12.
    unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    share = 10 * 12 * unit * (1 + 24 * options.get("z_loss", 0.0))
    for one, other in zip(ours, exact, strict=True):
        assert (one.double() - other).abs().max() < share * other.abs().max().clamp(min=1)


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, targets = problem()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets, rows=8, softcap=3.0, z_loss=0.1)
    exact = gradients(reference(3.0), hidden, weight, targets)[0]
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, targets, rows=8, softcap=3.0))


@each_option
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fused_kernel_on_cuda_agrees(options: dict[str, Any]) -> None:
    x = [tensor.cuda() for tensor in problem(torch.float32)]
    loss_of = torch.compile(lambda *given: linear_cross_entropy(*given, rows=8, **options))
    exact = gradients(
        reference(**options), *(tensor.double() if tensor.is_floating_point() else tensor for tensor in x)
    )
    for one, other in zip(gradients(loss_of, *x), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-2, atol=1e-2)  # TensorFloat-32 may be on

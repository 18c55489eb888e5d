"""Products of groups of rows are those of each group, also for empty groups, and have the right gradients."""

import pytest
import torch
from torch import Tensor

from lmtrain.model.experts.grouped_products import grouped_product

SIZES = [3, 0, 5, 8]


def inputs(width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), width, dtype=torch.float64, generator=generator)
    weight = torch.randn(len(SIZES), 24, width, dtype=torch.float64, generator=generator)
    return x, weight, torch.tensor(SIZES).cumsum(0).to(torch.int32)


def by_group(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([part @ matrix.T for part, matrix in zip(x.split(SIZES), weight, strict=True)])


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.square().sum(), inputs)


def test_products_and_gradients_are_those_of_each_group() -> None:
    x, weight, ends = inputs()
    x.requires_grad_(), weight.requires_grad_()
    out, expected = grouped_product(x, weight, ends), by_group(x, weight)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients(out, x, weight), gradients(expected, x, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not gradients(grouped_product(x, weight, ends), weight)[0][1].any()  # the group without rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("width", [16, 12])  # 12 numbers of 16 bits are no multiple of 16 bytes
def test_on_a_gpu_the_kernel_and_the_loop_agree_with_float64(width: int) -> None:
    x, weight, ends = inputs(width)
    x, weight = (tensor.bfloat16().double().requires_grad_() for tensor in (x, weight))
    near = [tensor.detach().cuda().bfloat16().requires_grad_() for tensor in (x, weight)]
    out, expected = grouped_product(*near, ends.cuda()), by_group(x, weight)
    # Sums of up to 24 products are added up in float32 and rounded to 8 bits at the end; gradients round twice.
    torch.testing.assert_close(out.double().cpu(), expected, rtol=2.0**-8, atol=1e-4)
    for ours, theirs in zip(gradients(out.float(), *near), gradients(expected, x, weight), strict=True):
        assert (ours.double().cpu() - theirs).abs().max() < 2.0**-6 * theirs.abs().max()

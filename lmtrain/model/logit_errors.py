"""The loss of a chunk of logits and the gradient of these logits, in few passes over them.

Shapes: R rows of a chunk, V vocabulary.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

IGNORE = -100  # targets of this value do not count, as in torch's cross_entropy
BLOCK = 2**19  # logits whose exponentials are computed at once on a CPU: they stay in the cache between the operations


def is_on_cpu(x: Tensor) -> bool:
    """Return whether a tensor is on a CPU, where the loss is computed in other steps than on CUDA."""
    if has_torch_function((x,)):  # `plan` simulates CUDA with tensors on the CPU
        found: bool = handle_torch_function(is_on_cpu, (x,), x)
        return found
    return x.device.type == "cpu"


def loss_and_errors(
    logits: Tensor,
    targets: Tensor,
    counted: Tensor,
    sums: torch.dtype,
    fused: bool,
    softcap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the losses; and errors (R, V) and a scale (R, 1) whose product is the gradient of the logits.

    Without options, that is softmax - one-hot. The errors are not normalised, because that would be one more pass over
    them. The logits may be overwritten.
    """
    # Unlike an index, nll_loss refuses targets out of range, as cross_entropy does.
    of_target = -F.nll_loss(logits, targets, reduction="none", ignore_index=IGNORE).to(sums)[:, None]  # (R, 1)
    slope = None
    if softcap is not None:
        of_target = of_target.div_(softcap).tanh_()
        slope = 1 - of_target.square()
        of_target *= softcap
    errors, top, total = (_fused_exponentials() if fused else _exponentials)(logits, sums, softcap, z_loss)
    of_target -= top  # before the logarithm comes in: a small one would vanish beside large logits
    losses = (total.log() - of_target).masked_fill(~counted[:, None], 0.0)
    # Directly from the logits, so that the error of a probability near 1 is precise in 16 bits, too.
    at_target = of_target.exp()
    if z_loss:
        at_target *= _pull(top, total, z_loss)
    at_target -= total
    if slope is not None:
        at_target *= slope
    at_target.masked_fill_(~counted[:, None], 0.0)
    if errors.dtype == torch.float16:  # totals of up to V, or hidden values divided by them, would leave its range
        errors.div_(total)
        at_target, total = at_target / total, torch.ones_like(total)
    row = torch.arange(len(targets), device=targets.device)
    errors[row, targets.clamp(min=0)] = at_target[:, 0].to(errors.dtype)  # scatter_ copies all errors twice on a CPU
    return losses.sum(), errors, (1 / total).masked_fill(~counted[:, None], 0.0)


def _pull(top: Tensor, total: Tensor, z_loss: float) -> Tensor:
    """Return the factor (R, 1) of the softmax in the gradient of the loss plus z_loss · log²Z."""
    return 1 + 2 * z_loss * (top + total.log())


def _exponentials(
    logits: Tensor, sums: torch.dtype, softcap: float | None, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite the logits (R, V) by their exponentials divided by the largest; return also its logarithm and the sum.

    The sum and the logarithm (R, 1) have the dtype `sums`. The exponentials in the result are multiplied with the slope
    of the soft-cap and with the factor of the z-loss; those in the sum are not.
    """
    rows, vocabulary = logits.shape
    block = max(1, BLOCK // vocabulary) if is_on_cpu(logits) else rows
    tops, totals = [], []
    for part in torch.split(logits, block):
        x = part.to(sums)
        if softcap is not None:
            x.div_(softcap).tanh_()
            slope = 1 - x.square()
            x.mul_(softcap)
        tops.append(x.amax(1, keepdim=True))
        x.sub_(tops[-1]).exp_()
        totals.append(x.sum(1, keepdim=True))
        if softcap is not None:
            x.mul_(slope)
        if z_loss:
            x.mul_(_pull(tops[-1], totals[-1], z_loss))
        if x.dtype != part.dtype:
            part.copy_(x)
    return logits, torch.cat(tops), torch.cat(totals)


@functools.cache
def _fused_exponentials() -> Callable[[Tensor, torch.dtype, float | None, float], tuple[Tensor, Tensor, Tensor]]:
    """Return `_exponentials` as one kernel."""

    def compute(
        logits: Tensor, sums: torch.dtype, softcap: float | None, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, slope = logits.to(sums), None
        if softcap is not None:
            tanh = (x / softcap).tanh()
            x, slope = softcap * tanh, 1 - tanh.square()
        top = x.amax(1, keepdim=True)
        x = (x - top).exp()
        total = x.sum(1, keepdim=True)
        if slope is not None:
            x = x * slope
        if z_loss:
            x = x * _pull(top, total, z_loss)
        return x.to(logits.dtype), top, total

    return torch.compile(compute, dynamic=False)

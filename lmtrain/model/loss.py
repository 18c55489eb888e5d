"""The cross-entropy of a linear output layer over a vocabulary, without ever holding all logits.

The logits (N, V) of a micro-batch are its largest tensor, and whole logits exist several times: as products, as
log-probabilities and as their gradients. Here a chunk of rows goes from its logits to its part of the gradients before
the next chunk starts, so only the logits of a chunk exist.

Shapes: N tokens, C width of the model, V vocabulary, R rows of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # targets of this value do not count, as in torch's cross_entropy
CHUNK_ROWS = 1024  # large enough for matrix products at full speed; smaller chunks were up to 8% slower on CPUs
# Up to so many logits are computed at once: they need few megabytes, and whole logits take fewer operations.
WHOLE_LOGITS = 2**22


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in nats of the logits `hidden @ weight.T`, over all targets other than -100.

    Products are computed in autocast's dtype; sums and logarithms at least in float32. The result is that of
    `F.cross_entropy(F.linear(hidden, weight), targets)` up to rounding. It is NaN if no target counts.

    Args:
        hidden: (N, C), the normalised output of the last layer.
        weight: (V, C), the output layer.
        targets: (N,), token ids.

    Raises:
        IndexError: a target on the CPU is neither a token id nor -100.
        RuntimeError: the gradient of the gradient is asked for.
    """
    if targets.numel() * weight.shape[0] <= WHOLE_LOGITS:
        return F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORE)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)  # type: ignore[no-untyped-call]
        return loss
    return _compute(hidden, weight, targets, dtype, False, False)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward, while the logits of a chunk are there; the backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        loss, count, for_hidden, for_weight = _compute(hidden, weight, targets, dtype, needs_hidden, needs_weight)
        ctx.save_for_backward(count, for_hidden, for_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("linear_cross_entropy has no second derivative: its gradient needs no graph")
        count, for_hidden, for_weight = ctx.saved_tensors
        # Only here, in at least float32: float16 gradients divided by the number of targets would vanish. Where no
        # target counts, the gradients are zero, and so is their product with a finite scale.
        scale = grad / count.clamp(min=1)
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            # A scalar does not widen the type of a product with a matrix.
            (for_hidden.to(scale.dtype) * scale).to(hidden_dtype) if ctx.needs_input_grad[0] else None,
            (for_weight * scale).to(weight_dtype) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _compute(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # A compiled graph calls the chunks as one operation: its compiler would unroll them, and keep more of them alive.
    compute = torch.ops.lmtrain.linear_cross_entropy if torch.compiler.is_compiling() else in_chunks
    loss, count, for_hidden, for_weight = compute(hidden, weight, targets, dtype, needs_hidden, needs_weight)
    return loss, count, for_hidden, for_weight


def in_chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean loss, the number of targets, and the gradients of the *sum* of losses, or empty tensors.

    The gradient of the hidden rows is in at least `dtype`, the gradient of the weight in at least float32.
    """
    sums = torch.promote_types(dtype, torch.float32)
    total = hidden.new_zeros((), dtype=sums)
    for_hidden = hidden.new_empty(hidden.shape if needs_hidden else 0, dtype=dtype)
    for_weight = weight.new_zeros(weight.shape if needs_weight else 0, dtype=sums)
    counted = targets != IGNORE
    count = counted.sum()
    with torch.autocast(hidden.device.type, enabled=False):
        weight = weight.to(dtype)
        for start in range(0, len(targets), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            x = hidden[rows].to(dtype)  # (R, C)
            losses = F.log_softmax(x @ weight.T, dim=-1, dtype=sums)  # (R, V)
            total += F.nll_loss(losses, targets[rows], reduction="sum", ignore_index=IGNORE)
            if not (needs_hidden or needs_weight):
                continue
            keep = counted[rows, None]  # (R, 1)
            errors = _minus_one_hot(losses.exp_(), targets[rows]).to(dtype)  # softmax - one-hot, in [-1, 1]
            del losses
            if needs_hidden:
                for_hidden[rows] = (errors @ weight).masked_fill_(~keep, 0.0)
            if needs_weight:
                _add_product(for_weight, errors.T, x.masked_fill(~keep, 0.0))
    return total / count, count, for_hidden, for_weight


def _minus_one_hot(probabilities: Tensor, targets: Tensor) -> Tensor:
    index = targets.clamp(min=0)[:, None]  # the row of an ignored target is not used
    return probabilities.scatter_(1, index, probabilities.gather(1, index) - 1.0)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product to a total that may have a wider type."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)  # torch's FLOP counter does not know addmm_
    elif a.dtype == torch.float16:
        # A sum over the rows of a chunk can be larger than float16's 65504, which a gradient scaler could not cure.
        torch.addmm(total, a.float(), b.float(), out=total)
    else:
        total.add_(a @ b)


@torch.library.custom_op("lmtrain::linear_cross_entropy", mutates_args=())
def _as_operation(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return in_chunks(hidden, weight, targets, dtype, needs_hidden, needs_weight)  # `benchmark` replaces it by name


@_as_operation.register_fake
def _shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=sums),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if needs_hidden else (0,), dtype=dtype),
        weight.new_empty(weight.shape if needs_weight else (0,), dtype=sums),
    )

"""The cross-entropy of a linear output layer over a vocabulary, without ever holding all logits.

The logits (N, V) of a micro-batch are its largest tensor, and whole logits exist several times: as products, as
log-probabilities and as their gradients. Here a chunk of rows goes from its logits to its part of the gradients before
the next chunk starts, so only the logits of a chunk exist.

Shapes: N tokens, C width of the model, V vocabulary, R rows of a chunk.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

IGNORE = -100  # targets of this value do not count, as in torch's cross_entropy
CHUNK_ROWS = 1024  # large enough for matrix products at full speed; smaller chunks were up to 8% slower on CPUs
# Up to so many logits are computed at once: they need few megabytes, and whole logits take fewer operations.
WHOLE_LOGITS = 2**22
BLOCK = 2**19  # logits whose exponentials are computed at once on a CPU: they stay in the cache between the operations


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int | None = None) -> Tensor:
    """Return the mean loss in nats of the logits `hidden @ weight.T`, over all targets other than -100.

    Products are computed in autocast's dtype; sums and logarithms at least in float32. The result is that of
    `F.cross_entropy(F.linear(hidden, weight), targets)` up to rounding. It is NaN if no target counts.

    Args:
        hidden: (N, C), the normalised output of the last layer.
        weight: (V, C), the output layer.
        targets: (N,), token ids.
        rows: Rows of a chunk; None chooses.

    Raises:
        IndexError: a target on the CPU is neither a token id nor -100.
        RuntimeError: the gradient of the gradient is asked for.
    """
    if rows is None and targets.numel() * weight.shape[0] <= WHOLE_LOGITS:
        return F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORE)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = rows or chunk_rows(dtype)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype, rows)  # type: ignore[no-untyped-call]
        return loss
    return _compute(hidden, weight, targets, dtype, rows, False, False)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward, while the logits of a chunk are there; the backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
        loss, count, for_hidden, for_weight = _compute(hidden, weight, targets, dtype, rows, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(count, for_hidden, for_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
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
            None,
        )


def _compute(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # One operation for the compiler, which would unroll the chunks and keep more of them alive.
    compute = torch.ops.lmtrain.linear_cross_entropy if torch.compiler.is_compiling() else in_chunks
    loss, count, for_hidden, for_weight = compute(hidden, weight, targets, dtype, rows, needs_hidden, needs_weight)
    return loss, count, for_hidden, for_weight


def chunk_rows(dtype: torch.dtype) -> int:
    """Return the rows of a chunk. Its logits take as many bytes in 16 bits as in 32."""
    return CHUNK_ROWS * (2 if dtype.itemsize == 2 else 1)


def is_on_cpu(x: Tensor) -> bool:
    """Return whether a tensor is on a CPU, where the loss is computed in other steps than on CUDA."""
    if has_torch_function((x,)):  # `plan` simulates CUDA with tensors on the CPU
        found: bool = handle_torch_function(is_on_cpu, (x,), x)
        return found
    return x.device.type == "cpu"


def in_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean loss, the number of targets, and the gradients of the *sum* of losses, or empty tensors.

    All are computed in `dtype` and returned in at least float32. `fused` compiles the work between the products.
    """
    sums = torch.promote_types(dtype, torch.float32)
    total = hidden.new_zeros((), dtype=sums)
    counted = targets != IGNORE
    count = counted.sum()
    for_hidden = hidden.new_empty(hidden.shape if needs_hidden else 0, dtype=sums)
    # Products of 16 bits on a CPU are up to twice as fast with these two matrices transposed. From about two chunks on,
    # that repays the transpositions. In 32 bits nothing does.
    transposed = dtype.itemsize == 2 and is_on_cpu(hidden) and len(targets) > 2 * rows
    with torch.autocast(hidden.device.type, enabled=False):
        weight = weight.to(dtype)  # (V, C)
        to_logits = weight.T.contiguous() if transposed else weight.T  # (C, V)
        shape = to_logits.shape if transposed else weight.shape
        for_weight = hidden.new_zeros(shape if needs_weight else 0, dtype=sums)
        for chunk in (slice(start, start + rows) for start in range(0, len(targets), rows)):
            x = hidden[chunk].to(dtype)  # (R, C)
            loss, errors, scale = _loss_and_errors(x @ to_logits, targets[chunk], counted[chunk], sums, fused)
            total += loss
            if needs_hidden:
                torch.mul(errors @ weight, scale, out=for_hidden[chunk])
            if needs_weight:
                x = (x * scale).to(dtype)
                _add_product(for_weight, *((x.T.contiguous(), errors) if transposed else (errors.T, x)))
            del errors  # before the next chunk needs as much memory
    if transposed and needs_weight:
        for_weight = for_weight.T.contiguous()
    return total / count, count, for_hidden, for_weight


def _loss_and_errors(
    logits: Tensor, targets: Tensor, counted: Tensor, sums: torch.dtype, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of the losses; and errors (R, V) and a scale (R, 1) whose product is softmax - one-hot.

    The errors are not normalised, because that would be one more pass over them. The logits may be overwritten.
    """
    # Unlike an index, nll_loss refuses targets out of range, as cross_entropy does.
    of_target = -F.nll_loss(logits, targets, reduction="none", ignore_index=IGNORE).to(sums)[:, None]  # (R, 1)
    errors, top, total = (_fused_exponentials() if fused else _exponentials)(logits, sums)
    of_target -= top  # before the logarithm comes in: a small one would vanish beside large logits
    losses = (total.log() - of_target).masked_fill(~counted[:, None], 0.0)
    # Directly from the logits, so that the error of a probability near 1 is precise in 16 bits, too.
    at_target = (of_target.exp() - total).masked_fill(~counted[:, None], 0.0)
    if errors.dtype == torch.float16:  # totals of up to V, or hidden values divided by them, would leave its range
        errors.div_(total)
        at_target, total = at_target / total, torch.ones_like(total)
    row = torch.arange(len(targets), device=targets.device)
    errors[row, targets.clamp(min=0)] = at_target[:, 0].to(errors.dtype)  # scatter_ copies all errors twice on a CPU
    return losses.sum(), errors, (1 / total).masked_fill(~counted[:, None], 0.0)


def _exponentials(logits: Tensor, sums: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite the logits (R, V) by their exponentials divided by the largest; return also its logarithm and the sum.

    The sum and the logarithm (R, 1) have the dtype `sums`.
    """
    rows, vocabulary = logits.shape
    block = max(1, BLOCK // vocabulary) if is_on_cpu(logits) else rows
    tops, totals = [], []
    for part in torch.split(logits, block):
        x = part.to(sums)
        tops.append(x.amax(1, keepdim=True))
        x.sub_(tops[-1]).exp_()
        totals.append(x.sum(1, keepdim=True))
        if x.dtype != part.dtype:
            part.copy_(x)
    return logits, torch.cat(tops), torch.cat(totals)


@functools.cache
def _fused_exponentials() -> Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor]]:
    """Return `_exponentials` as one kernel."""

    def compute(logits: Tensor, sums: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        x = logits.to(sums)
        top = x.amax(1, keepdim=True)
        x = (x - top).exp()
        return x.to(logits.dtype), top, x.sum(1, keepdim=True)

    return torch.compile(compute, dynamic=False)


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
def _operation(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # On a CPU, blocks that stay in a core's cache are nearly as fast as one kernel, and need no compilation.
    return in_chunks(hidden, weight, targets, dtype, rows, needs_hidden, needs_weight, fused=hidden.is_cuda)


@_operation.register_fake
def _shapes(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=sums),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if needs_hidden else (0,), dtype=sums),
        hidden.new_empty(weight.shape if needs_weight else (0,), dtype=sums),
    )

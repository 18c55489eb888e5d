"""The cross-entropy of a linear output layer over a vocabulary, without ever holding all logits.

The logits (N, V) of a micro-batch are its largest tensor, and whole logits exist several times: as products, as
log-probabilities and as their gradients. Here a chunk of rows goes from its logits to its part of the gradients before
the next chunk starts, so only the logits of a chunk exist.

Two options change the logits and their gradients: a soft-cap limits the logits, and the z-loss keeps the logarithm of
their normaliser Z near zero. The z-loss acts through the gradient alone: the loss that is returned is the cross-entropy
without it, so that runs with and without it can be compared.

Shapes: N tokens, C width of the model, V vocabulary, R rows of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmtrain.model.logit_errors import IGNORE, is_on_cpu, loss_and_errors

CHUNK_ROWS = 1024  # large enough for matrix products at full speed; smaller chunks were up to 8% slower on CPUs
# Up to so many logits are computed at once: they need few megabytes, and whole logits take fewer operations.
WHOLE_LOGITS = 2**22


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Return the mean loss in nats of the logits `hidden @ weight.T`, over all targets other than -100.

    Products are computed in autocast's dtype; sums and logarithms at least in float32. The result is that of
    `F.cross_entropy(F.linear(hidden, weight), targets)` up to rounding. It is NaN if no target counts.

    Args:
        hidden: (N, C), the normalised output of the last layer.
        weight: (V, C), the output layer.
        targets: (N,), token ids.
        rows: Rows of a chunk; None chooses.
        softcap: Logits x become softcap · tanh(x / softcap) (Gemma 2, section 2); None leaves them as they are.
        z_loss: The gradient is that of the loss plus z_loss · log²Z (PaLM, section 5).

    Raises:
        IndexError: a target on the CPU is neither a token id nor -100.
        RuntimeError: the gradient of the gradient is asked for.
    """
    plain = softcap is None and not z_loss
    if plain and rows is None and targets.numel() * weight.shape[0] <= WHOLE_LOGITS:
        return F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORE)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    rows = rows or chunk_rows(dtype)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype, rows, softcap, z_loss)  # type: ignore[no-untyped-call]
        return loss
    return _compute(hidden, weight, targets, dtype, rows, False, False, softcap, z_loss)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward, while the logits of a chunk are there; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        rows: int,
        softcap: float | None,
        z_loss: float,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        loss, count, for_hidden, for_weight = _compute(
            hidden, weight, targets, dtype, rows, needs_hidden, needs_weight, softcap, z_loss
        )
        ctx.save_for_backward(count, for_hidden, for_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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
            *[None] * 5,
        )


def _compute(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
    softcap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # One operation for the compiler, which would unroll the chunks and keep more of them alive.
    compute = torch.ops.lmtrain.linear_cross_entropy if torch.compiler.is_compiling() else in_chunks
    loss, count, for_hidden, for_weight = compute(
        hidden, weight, targets, dtype, rows, needs_hidden, needs_weight, softcap, z_loss
    )
    return loss, count, for_hidden, for_weight


def chunk_rows(dtype: torch.dtype) -> int:
    """Return the rows of a chunk. Its logits take as many bytes in 16 bits as in 32."""
    return CHUNK_ROWS * (2 if dtype.itemsize == 2 else 1)


def in_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
    softcap: float | None = None,
    z_loss: float = 0.0,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean loss, the number of targets, and the gradients of the *sum* of losses, or empty tensors.

    The gradients include the z-loss, the mean does not. All are computed in `dtype` and returned in at least float32.
    `fused` compiles the work between the products.
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
            loss, errors, scale = loss_and_errors(
                x @ to_logits, targets[chunk], counted[chunk], sums, fused, softcap, z_loss
            )
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
    softcap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # On a CPU, blocks that stay in a core's cache are nearly as fast as one kernel, and need no compilation.
    options = softcap, z_loss, hidden.is_cuda
    return in_chunks(hidden, weight, targets, dtype, rows, needs_hidden, needs_weight, *options)


@_operation.register_fake
def _shapes(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    rows: int,
    needs_hidden: bool,
    needs_weight: bool,
    softcap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=sums),
        targets.new_empty(()),
        hidden.new_empty(hidden.shape if needs_hidden else (0,), dtype=sums),
        hidden.new_empty(weight.shape if needs_weight else (0,), dtype=sums),
    )

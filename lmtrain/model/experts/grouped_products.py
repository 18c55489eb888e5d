"""Products of sorted rows with one matrix for each group of rows, as a mixture of experts needs them.

Shapes: R rows, G groups, M width of the input, N width of the output. `ends` (G,), int32, has the number of the row
after the last one of each group; a group may be empty.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

ALIGNMENT = 16  # bytes; the kernel needs rows of a multiple of it


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return `x @ weight[g].T` (R, N) for the rows of each group g, given `x` (R, M) and `weight` (G, N, M).

    On a CPU, the product of each group is a matrix product of its own; a GPU has a kernel for all of them in bfloat16.
    """
    out: Tensor = _GroupedProduct.apply(x, weight, ends)  # type: ignore[no-untyped-call]
    return out


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return _operation(x, "rows_times_matrices", rows_times_matrices)(x, weight.mT, ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, ends = ctx.saved_tensors
        grad = grad.contiguous()
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = _operation(grad, "rows_times_matrices", rows_times_matrices)(grad, weight, ends)
        if ctx.needs_input_grad[1]:
            for_weight = _operation(grad, "rows_times_rows", rows_times_rows)(grad, x, ends)
        return for_x, for_weight, None


def rows_times_matrices(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Return `rows[g] @ matrices[g]` (R, N) for `rows` (R, M) and `matrices` (G, M, N)."""
    if _has_kernel(rows, matrices):
        return F.grouped_mm(rows, matrices, offs=ends)
    out = rows.new_empty(len(rows), matrices.shape[2])
    for group, part in _parts(ends):
        torch.mm(rows[part], matrices[group], out=out[part])
    return out


def rows_times_rows(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Return `left[g].T @ right[g]` (G, N, M) for `left` (R, N) and `right` (R, M)."""
    if _has_kernel(left, right):
        return F.grouped_mm(left.T, right, offs=ends)
    out = left.new_empty(len(ends), left.shape[1], right.shape[1])
    for group, part in _parts(ends):
        torch.mm(left[part].T, right[part], out=out[group])  # zeros for an empty group
    return out


def _parts(ends: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield the number and the rows of each group."""
    start = 0
    for group, end in enumerate(ends.tolist()):
        yield group, slice(start, end)
        start = end


def _has_kernel(left: Tensor, right: Tensor) -> bool:
    """Return whether torch has a kernel for all groups at once, which does not wait for the sizes of the groups."""
    return (
        left.is_cuda
        and left.dtype == torch.bfloat16
        and all(tensor.shape[-1] * tensor.itemsize % ALIGNMENT == 0 for tensor in (left, right))
        and hasattr(F, "grouped_mm")
    )


def _operation(x: Tensor, name: str, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return the function, or an operation where the sizes of the groups are unknown: for the compiler and `plan`.

    Calling an operation directly would import the compiler, which takes seconds.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        operation: Callable[..., Tensor] = getattr(torch.ops.lmtrain, name)
        return operation
    return function


@torch.library.custom_op("lmtrain::rows_times_matrices", mutates_args=())
def _rows_times_matrices(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return rows_times_matrices(rows, matrices, ends)


@_rows_times_matrices.register_fake
def _rows_times_matrices_shape(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[2])


@torch.library.custom_op("lmtrain::rows_times_rows", mutates_args=())
def _rows_times_rows(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return rows_times_rows(left, right, ends)


@_rows_times_rows.register_fake
def _rows_times_rows_shape(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


@register_flop_formula(torch.ops.lmtrain.rows_times_matrices)
def _rows_times_matrices_flops(rows: Any, matrices: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs; each row is multiplied with one matrix."""
    return int(2 * rows[0] * rows[1] * matrices[2])


@register_flop_formula(torch.ops.lmtrain.rows_times_rows)
def _rows_times_rows_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs; each row adds a product to one matrix."""
    return int(2 * left[0] * left[1] * right[1])

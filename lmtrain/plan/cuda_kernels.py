"""Simulates, on the CPU, the kernels that CUDA uses for attention and dropout."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lmtrain.model.attention import AttentionPattern, attend, described, device_of, repeat_heads, scaled_dot_product
from lmtrain.model.attention_kind import AttentionDevice
from lmtrain.model.logit_errors import is_on_cpu

HOPPER = AttentionDevice("cuda", (9, 0), compiles=True, varlen=True)
VARLEN_ROWS = 128  # rows of float32 that varlen's backward allocates for each document that there might be


class CudaKernels(TorchFunctionMode):
    """Replaces fused attention and dropout, which keep other tensors for the backward on CUDA than on the CPU.

    The shipped models choose their attention as on this machine's GPU or, without one, as on an H100.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = described(torch.device("cuda")) if torch.cuda.is_available() else HOPPER

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is device_of:
            return self.device
        if func is is_on_cpu:
            return False
        replacement = {attend: _attend, F.scaled_dot_product_attention: _attention, F.dropout: _dropout}.get(func, func)
        return replacement(*args, **kwargs)


def run_backward(loss: Tensor) -> None:
    """Run the backward so that `CudaKernels` also acts on what it computes again.

    Torch's public functions pass through the mode, which is off while they run.
    """
    seed = (torch.ones_like(loss),)
    _engine_run_backward((loss,), seed, False, False, (), allow_unreachable=True, accumulate_grad=True)


def _attend(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
    """Run the kernel of the chosen kind, or one that keeps the same tensors for the backward."""
    if pattern.kind == "math":
        return attend(q, k, v, pattern)
    if pattern.kind == "efficient":
        return scaled_dot_product(
            q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1]), pattern, kernel=_efficient
        )
    if pattern.kind == "cudnn":
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if pattern.window is not None:  # as many products as with the keys of a window
        k, v = k[:, :, : pattern.window], v[:, :, : pattern.window]
    out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, pattern.dropout, True)[0]
    if pattern.kind == "varlen" and pattern.lengths is not None:
        rows = VARLEN_ROWS * (len(pattern.lengths) - 1) + q.shape[0] * q.shape[2]
        out = _TemporaryMemory.apply(out, rows * q.shape[1] * q.shape[3])  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


class _TemporaryMemory(torch.autograd.Function):
    """Returns its input, and allocates memory for a moment in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floats: int) -> Tensor:
        ctx.floats = floats
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        torch.empty(ctx.floats, dtype=torch.float32, device=grads[0].device)
        return grads[0], None


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run the kernel that CUDA chooses: flash for 16 bits, efficient for a mask or 32 bits, or plain products."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (q, k, v))
    aten = torch.ops.aten
    if attn_mask is None and q.dtype != torch.float32:
        out = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
    elif not enable_gqa:
        out = _efficient(q, k, v, attn_mask, dropout_p, is_causal, scale)
    else:
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    return cast(Tensor, out)


def _efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None:
        bias = attn_mask if attn_mask.is_floating_point() else attn_mask.to(q.dtype)
        attn_mask = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return cast(Tensor, kernel(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[0])


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    # The mask on CUDA has one byte per element; on the CPU it is a factor of the input's size.
    return torch.native_dropout(input, p, training)[0] if training and p else input

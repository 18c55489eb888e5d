"""Simulates, on the CPU, the kernels that CUDA uses for attention and dropout."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


class CudaKernels(TorchFunctionMode):
    """Replaces fused attention and dropout, which keep other tensors for the backward on CUDA than on the CPU."""

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = {F.scaled_dot_product_attention: _attention, F.dropout: _dropout}.get(func, func)
        return replacement(*args, **kwargs)


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
        if attn_mask is not None:
            bias = attn_mask if attn_mask.is_floating_point() else attn_mask.to(q.dtype)
            attn_mask = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        out = aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)[
            0
        ]
    else:
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    return cast(Tensor, out)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    # The mask on CUDA has one byte per element; on the CPU it is a factor of the input's size.
    return torch.native_dropout(input, p, training)[0] if training and p else input

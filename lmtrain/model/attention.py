"""Attention for every architecture: `attend(q, k, v, pattern)` with the kernel that suits the device and the task.

A model makes the pattern once per forward, and all its layers use it.

Shapes: B batch, T time, H heads, K key-value heads, D head width.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import handle_torch_function, has_torch_function

from lmtrain.model.attention_kind import AttentionDevice, AttentionKind, AttentionTask, choose_kind, obstacle
from lmtrain.model.document_mask import BLOCK, cumulative_lengths, document_blocks, mask_chunks, starts_of_windows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class AttentionPattern:
    """Says how layers of one forward attend: by which kernel, and to which tokens.

    Attention is causal. At most one of the three forms of documents is there, see `document_mask.py`. `window` is the
    number of tokens that a token attends to at most; `softcap` limits the scores. With a `cache`, queries attend to
    tokens of earlier forwards, too.
    """

    kind: AttentionKind
    dropout: float = 0.0
    masks: tuple[Tensor, ...] = ()
    lengths: Tensor | None = None
    blocks: "BlockMask | None" = None
    window: int | None = None
    softcap: float | None = None
    cache: "LayerCache | None" = None


class LayerCache(Protocol):
    """Holds the keys and values of one layer, see `cache.py`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
        """Keep new keys and values, and return what the queries find."""


class Attention:
    """Chooses the kernel for a model's attention.

    Args:
        kind: The wanted kind; `auto` takes the fastest one that can do the task.
        d_head: Width of a head.
        dropout: Probability of dropping a weight in training.
        documents: Documents are masked.
        windows: Some layers have a sliding window.
        softcap: Limit of the scores; None means no limit.
    """

    def __init__(
        self,
        kind: AttentionKind,
        d_head: int,
        dropout: float,
        documents: bool,
        windows: bool = False,
        softcap: float | None = None,
    ) -> None:
        self.kind, self.d_head, self.dropout, self.documents = kind, d_head, dropout, documents
        self.windows, self.softcap = windows, softcap
        self.devices: dict[str, AttentionDevice] = {}  # by type

    def check(self, device: torch.device, dtype: torch.dtype) -> AttentionKind:
        """Return the kind that training will use on a device. Call this before compiling, which cannot ask the device.

        Raises:
            ValueError: the wanted kind cannot do the task.
        """
        self.devices[device.type] = described(device)
        return self.choose(self.devices[device.type], dtype)

    def choose(
        self, device: AttentionDevice, dtype: torch.dtype, training: bool = True, any_length: bool = False
    ) -> AttentionKind:
        """Return the kind to use.

        Raises:
            ValueError: the wanted kind cannot do the task. Outside training, `auto` replaces it then, so that a model
                that was trained on a GPU can be sampled from anywhere.
        """
        task = AttentionTask(
            device,
            dtype,
            self.d_head,
            self.documents,
            training and self.dropout > 0,
            torch.are_deterministic_algorithms_enabled(),
            any_length,
            self.windows,
            self.softcap is not None,
        )
        usable = training or obstacle(self.kind, task) is None
        return choose_kind(self.kind if usable else "auto", task)

    def pattern(self, x: Tensor, starts: Tensor | None, training: bool, window: int | None = None) -> AttentionPattern:
        """Return the pattern of a forward.

        Args:
            x: The residual stream, which has the device and the number format.
            starts: Where each token's document starts (B, T); None if documents are not masked.
            training: Dropout acts.
            window: Number of tokens that a token attends to at most, itself included; None means all before it.
        """
        T = x.shape[1]
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        sampling = not training and T % BLOCK != 0  # then every token makes a new T
        kind = self.choose(device_of(x, self.devices), dtype, training, any_length=sampling)
        window = window if window is not None and window < T else None
        pattern = AttentionPattern(kind, self.dropout if training else 0.0, window=window, softcap=self.softcap)
        if kind == "varlen":
            return replace(pattern, lengths=_whole_rows(x) if starts is None else cumulative_lengths(starts))
        if starts is None:
            if kind == "flex":
                starts = torch.zeros_like(x[..., 0]).long()  # (B, T)
            elif window is None and self.softcap is None:
                return pattern
            else:
                starts = torch.zeros(1, T, dtype=torch.int64, device=x.device)  # the same for all sequences
        if window is not None:
            starts = starts_of_windows(starts, window)
        if kind == "flex":
            return replace(pattern, blocks=document_blocks(starts))
        return replace(pattern, masks=mask_chunks(starts, dtype, window))


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
    """Return the values (B, H, T, D) that queries (B, H, T, D) find at keys (B, K, T, D) and values (B, K, T, D)."""
    if has_torch_function((q, k, v)):  # `plan` simulates the kernels of other devices
        out: Tensor = handle_torch_function(attend, (q, k, v), q, k, v, pattern)
        return out
    if pattern.cache is not None:
        return pattern.cache.attend(q, k, v, pattern)
    if pattern.kind == "flex":
        return _flex(q, k, v, pattern)
    if pattern.kind == "varlen":
        return _varlen(q, k, v, pattern)
    if pattern.softcap is not None:
        return scaled_dot_product(q, k, v, pattern, kernel=partial(capped_attention, softcap=pattern.softcap))
    if pattern.kind == "flash" and q.device.type == "cpu":
        return scaled_dot_product(q, k, v, pattern)  # torch takes this kernel by itself
    if pattern.kind in ("efficient", "cudnn"):
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    with sdpa_kernel(BACKENDS[pattern.kind]):
        return scaled_dot_product(q, k, v, pattern)


def scaled_dot_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: AttentionPattern,
    kernel: Callable[..., Tensor] = F.scaled_dot_product_attention,
) -> Tensor:
    """Attend by torch's own function or a similar one, in chunks of queries if there are masks."""
    grouped, dropout = q.shape[1] != k.shape[1], pattern.dropout
    if not pattern.masks:
        return kernel(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
    parts, end = [], 0
    for mask in pattern.masks:
        queries, keys = mask.shape[-2:]
        begin, end = end, end + queries
        seen = slice(end - keys, end)
        chunk = q[:, :, begin:end], k[:, :, seen], v[:, :, seen]
        parts.append(kernel(*chunk, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Return scores or logits between -cap and cap; small ones hardly change (Gemma 2, section 2)."""
    return cap * torch.tanh(x / cap)


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float, enable_gqa: bool, *, softcap: float
) -> Tensor:
    """Attend by plain operations, with all scores (B, H, queries, keys) of a chunk."""
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT
    scores = soft_cap(scores.to(torch.promote_types(scores.dtype, torch.float32)), softcap) + attn_mask
    return F.dropout(scores.softmax(-1).to(v.dtype), dropout_p) @ v


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Return keys or values (B, K, T, D) for each of the query heads: (B, H, T, D)."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)


def device_of(x: Tensor, known: Mapping[str, AttentionDevice]) -> AttentionDevice:
    """Return what the device of a tensor offers for attention; `known` has devices by type."""
    if has_torch_function((x,)):
        found: AttentionDevice = handle_torch_function(device_of, (x,), x, known)
        return found
    return known[x.device.type] if x.device.type in known else described(x.device)


def described(device: torch.device) -> AttentionDevice:
    """Return what a device offers for attention."""
    if device.type != "cuda":
        return AttentionDevice(device.type)
    has_triton = find_spec("triton") is not None
    return AttentionDevice("cuda", torch.cuda.get_device_capability(device), has_triton, _has_varlen())


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def _whole_rows(x: Tensor) -> Tensor:
    B, T = x.shape[:2]
    return torch.arange(0, B * T + 1, T, device=x.device, dtype=torch.int32)


def _varlen(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
    from torch.nn.attention import varlen

    attend_in_rows: Callable[..., Tensor] = varlen.varlen_attn  # type: ignore[assignment]
    B, H, T, _ = q.shape
    packed = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # (B · T, H or K, D)
    window = (-1 if pattern.window is None else pattern.window - 1, 0)  # keys before and after a query
    lengths = pattern.lengths
    out = attend_in_rows(*packed, lengths, lengths, T, T, window_size=window, enable_gqa=H != k.shape[1])
    return out.view(B, T, H, -1).transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention as kernel
    else:
        kernel = _compiled_flex()
    out: Tensor = kernel(q, k, v, _capping(pattern), pattern.blocks, enable_gqa=q.shape[1] != k.shape[1])
    return out


def _capping(pattern: AttentionPattern) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """Return how flex_attention changes a score; it gets also the batch, the head, the query and the key."""
    cap = pattern.softcap
    return None if cap is None else lambda score, *place: soft_cap(score, cap)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)  # without compilation it makes all scores (B, H, T, T)

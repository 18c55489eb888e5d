"""The attention of `decoder.py`: rotary positions for a part of each head or none, QK-norm and value embeddings.

Shapes: B batch, T time, C d_model, H heads, K key-value heads, D head width.
"""

import torch
from torch import Tensor, nn

from lmtrain.model.attention import AttentionPattern, attend
from lmtrain.model.llama import rotate


class DecoderAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions.

    It has norms for queries and keys if there is a `norm_eps`, and an embedding for values if there is a `value_vocab`.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        n_kv_head: int,
        norm_eps: float | None,
        value_vocab: int | None,
        has_rope: bool,
    ) -> None:
        super().__init__()
        self.d_head, self.has_rope = d_model // n_head, has_rope
        self.q = nn.Linear(d_model, n_head * self.d_head, bias=False)
        self.k = nn.Linear(d_model, n_kv_head * self.d_head, bias=False)
        self.v = nn.Linear(d_model, n_kv_head * self.d_head, bias=False)
        self.o = nn.Linear(n_head * self.d_head, d_model, bias=False)
        self.q_norm = None if norm_eps is None else nn.RMSNorm(self.d_head, eps=norm_eps)
        self.k_norm = None if norm_eps is None else nn.RMSNorm(self.d_head, eps=norm_eps)
        self.value_embedding = None if value_vocab is None else nn.Embedding(value_vocab, n_kv_head * self.d_head)
        self.value_mix = None if value_vocab is None else nn.Parameter(torch.full((2,), 0.5))

    def forward(self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor, pattern: AttentionPattern) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)  # (B, T, C), (B, T, K · D)
        if self.value_embedding is not None and self.value_mix is not None:
            v = (self.value_mix[0] * v + self.value_mix[1] * self.value_embedding(tokens)).type_as(v)
        q, k, v = (part.unflatten(-1, (-1, self.d_head)).transpose(1, 2) for part in (q, k, v))  # (B, H or K, T, D)
        if self.q_norm is not None and self.k_norm is not None:  # computed in float32 under autocast, as other norms
            gain = self.q_norm.weight
            q, k = self.q_norm(q.type_as(gain)).type_as(v), self.k_norm(k.type_as(gain)).type_as(v)
        if self.has_rope:
            q, k = rotate_part(q, cos, sin), rotate_part(k, cos, sin)
        out: Tensor = self.o(attend(q, k, v, pattern).transpose(1, 2).flatten(2))
        return out


def rotated_width(d_head: int, fraction: float) -> int:
    """Return the width of a head that is rotated."""
    width = int(d_head * fraction)
    if width < 2 or width % 2:
        raise ValueError(
            f"model.rope_fraction={fraction}: rotates {width} of {d_head} dimensions of a head; it must be an even "
            f"number, such as with {2 * round(max(width, 2) / 2) / d_head:g}"
        )
    return width


def rotate_part(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` (B, H, T, D), whose first dimensions are rotated: as many as `cos` and `sin` have."""
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), dim=-1)

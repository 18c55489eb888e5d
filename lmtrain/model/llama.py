"""The Llama architecture (Touvron et al. 2023): pre-norm, RMSNorm, RoPE, SwiGLU, grouped-query attention, no biases.

Shapes: B batch, T time, C d_model, H heads, K key-value heads, D head width, V vocabulary.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lmtrain.model.attention import Attention, AttentionPattern, attend
from lmtrain.model.attention_kind import AttentionKind
from lmtrain.model.cache import CacheUse, places
from lmtrain.model.document_mask import document_opening_id
from lmtrain.model.loss import linear_cross_entropy
from lmtrain.model.recompute import Recompute, RecomputeKind


class Llama(nn.Module):
    """Maps token ids to next-token logits with the Llama architecture.

    Args:
        vocab_size: Number of token ids, at least as many as the data has. In a config, null means as many.
        block_size: Longest sequence, in tokens.
        n_layer: Number of blocks.
        n_head: Query heads; `d_model` must be an even multiple of it.
        n_kv_head: Key-value heads, shared by the query heads; must divide `n_head`. Null means `n_head`.
        d_model: Width of the residual stream.
        d_ff: Width of the MLP's hidden layer.
        dropout: Dropout probability.
        rope_base: Base of the rotary frequencies; larger values turn more slowly, for longer sequences.
        norm_eps: Added inside the square root of RMSNorm.
        tie_embeddings: Use the transposed embedding as the output layer.
        init_std: Standard deviation of the initial weights. It is smaller for layers that add to the residual stream,
            and for the output layer of wide models.
        mask_documents: Keep attention inside a document, and restart positions in each (see
            `lmtrain.model.document_mask`).
        end_of_text: Token id that opens a document, for `mask_documents`. In a config, null means the data's id.
        attention: Kernel of attention; `auto` picks the fastest one for the device, dropout and documents.
        recompute: Parts whose activations the backward computes again, which saves memory: `attention`, or each whole
            `layer`.

    Raises:
        ValueError: the head counts or widths do not divide, or `mask_documents` has no valid `end_of_text`.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        block_size: PositiveInt,
        n_layer: PositiveInt,
        n_head: PositiveInt,
        n_kv_head: PositiveInt | None,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        rope_base: PositiveFloat = 10000.0,
        norm_eps: PositiveFloat = 1e-5,
        tie_embeddings: bool = True,
        init_std: PositiveFloat = 0.02,
        mask_documents: bool = False,
        end_of_text: NonNegativeInt | None = None,
        attention: AttentionKind = "auto",
        recompute: RecomputeKind = "none",
    ) -> None:
        super().__init__()
        n_kv_head = n_kv_head or n_head
        if d_model % n_head or (d_model // n_head) % 2:
            raise ValueError(f"model.d_model={d_model}: must be an even multiple of model.n_head={n_head}, for RoPE")
        if n_head % n_kv_head:
            raise ValueError(f"model.n_kv_head={n_kv_head}: must divide model.n_head={n_head}")
        self.vocab_size, self.block_size, self.n_layer, self.d_model = vocab_size, block_size, n_layer, d_model
        self.end_of_text = document_opening_id(mask_documents, end_of_text, vocab_size)
        self.attention = Attention(attention, d_model // n_head, dropout, documents=self.end_of_text is not None)
        self.recompute = Recompute(recompute, has_dropout=dropout > 0)
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            LlamaBlock(d_model, d_ff, n_head, n_kv_head, dropout, norm_eps, self.recompute) for _ in range(n_layer)
        )
        self.norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.output = None if tie_embeddings else nn.Linear(d_model, vocab_size, bias=False)
        cos, sin = rope_table(block_size, d_model // n_head, rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(init_std)

    def _initialise(self, std: float) -> None:
        for name, param in self.named_parameters():
            if param.ndim < 2:
                continue
            # 2 · n_layer branches add up on the residual stream (GPT-2, section 2.3).
            residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
            nn.init.normal_(param, std=std / math.sqrt(2 * self.n_layer) if residual else std)
        initialise_head(self.embedding, self.output, std)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, cache: CacheUse | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the logits (B, T, V) for token ids (B, T) and None; or, given targets (B, T), None and the mean loss.

        The loss is in nats; targets of -100 do not count. Its logits are never held as a whole. With a cache, the
        logits are those of the last token (B, 1, V).
        """
        T = tokens.shape[1]
        if T > self.block_size:
            raise ValueError(f"{T} tokens are more than model.block_size={self.block_size}")
        if self.end_of_text is None and cache is None:
            starts, cos, sin = None, self.cos[:T], self.sin[:T]  # (T, D)
        else:
            starts, positions = places(tokens, self.end_of_text, cache)  # (B, T)
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)  # (B, 1, T, D)
        x = self.dropout(self.embedding(tokens))  # (B, T, C)
        if cache is None:
            patterns = [self.attention.pattern(x, starts, self.training)] * self.n_layer
        else:
            patterns = cache.patterns(self.attention, x, starts, [None] * self.n_layer)
        for layer, pattern in zip(self.layers, patterns, strict=True):
            x = self.recompute.layer(layer, x, cos, sin, pattern)
        x = x if cache is None else x[:, -1:]  # (B, 1, C)
        x, weight = self.norm(x), self.embedding.weight if self.output is None else self.output.weight
        if targets is None:
            return F.linear(x, weight), None
        return None, linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten())

    def flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs of forward and backward per token, for matrix products only and attention without a mask.

        Source: Chowdhery et al., "PaLM" (2022), appendix B.
        """
        matrices = sum(param.numel() for param in self.parameters() if param.ndim >= 2)
        lookup = 0 if self.output is None else self.embedding.weight.numel()
        return 6 * (matrices - lookup) + 12 * self.n_layer * self.d_model * block_size

    def recomputed_flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs per token that `recompute` adds to the backward."""
        return self.recompute.flops_per_token(self.layers, 4 * self.n_layer * self.d_model * block_size)

    cos: Tensor
    sin: Tensor


class LlamaBlock(nn.Module):
    """Adds attention and an MLP to the residual stream, each computed from the normalised stream."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        n_head: int,
        n_kv_head: int,
        dropout: float,
        norm_eps: float,
        recompute: Recompute,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.attention = LlamaAttention(d_model, n_head, n_kv_head)
        self.mlp_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.mlp = SwiGLU(d_model, d_ff)
        self.dropout = nn.Dropout(dropout)
        self.recompute = recompute

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, pattern: AttentionPattern) -> Tensor:
        x = x + self.dropout(self.recompute.attention(self._attention_branch, x, cos, sin, pattern))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out

    def _attention_branch(self, x: Tensor, cos: Tensor, sin: Tensor, pattern: AttentionPattern) -> Tensor:
        out: Tensor = self.attention(self.attention_norm(x), cos, sin, pattern)
        return out


class LlamaAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(self, d_model: int, n_head: int, n_kv_head: int) -> None:
        super().__init__()
        self.d_head = d_model // n_head
        self.q = nn.Linear(d_model, n_head * self.d_head, bias=False)
        self.k = nn.Linear(d_model, n_kv_head * self.d_head, bias=False)
        self.v = nn.Linear(d_model, n_kv_head * self.d_head, bias=False)
        self.o = nn.Linear(n_head * self.d_head, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, pattern: AttentionPattern) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)  # (B, H, T, D)
        k = self.k(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)  # (B, K, T, D)
        v = self.v(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)  # (B, K, T, D)
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, pattern)
        out: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """The gated MLP of Shazeer, "GLU Variants Improve Transformer" (2020)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def initialise_head(embedding: nn.Embedding, output: nn.Linear | None, std: float) -> None:
    """Initialise the output layer, or the embedding if it is tied, with `std` or less."""
    vocab_size, d_model = embedding.weight.shape
    # The variance of the logits is d_model · std². It is limited so that the initial loss of a wide model is also
    # the loss of a uniform guess, ln(vocab_size).
    std = min(std, 0.35 / math.sqrt(d_model))
    if output is None:
        # With tied embeddings, a token's logit for itself is up to d_model · std, which must not outweigh the other
        # ids of a small vocabulary.
        std = min(std, math.log1p(0.1 * vocab_size) / d_model)
    nn.init.normal_((embedding if output is None else output).weight, std=std)


def rope_table(block_size: int, d_head: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (T, D) in float32, where both halves of D are the same.

    Source: Su et al., "RoFormer" (2021), eq. 34.
    """
    frequency = 1.0 / base ** (torch.arange(0, d_head, 2, dtype=torch.int64).float() / d_head)  # (D / 2,)
    angle = torch.outer(torch.arange(block_size).float(), frequency)  # (T, D / 2)
    angle = torch.cat((angle, angle), dim=-1)  # (T, D)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` (B, H, T, D) rotated by position; dimension i pairs with i + D / 2, as in transformers' Llama."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)

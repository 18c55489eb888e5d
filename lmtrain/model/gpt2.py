"""The GPT-2 architecture (Radford et al. 2019): pre-norm, LayerNorm, GELU, learned positions, tied embeddings.

Shapes: B batch, T time, C d_model, H heads, D head width, V vocabulary.
"""

import math
from typing import Annotated, Literal

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


class GPT2(nn.Module):
    """Maps token ids to next-token logits with the GPT-2 architecture.

    Args:
        vocab_size: Number of token ids, at least as many as the data has. In a config, null means as many.
        block_size: Number of learned positions, and so the longest sequence, in tokens.
        n_layer: Number of blocks.
        n_head: Attention heads; must divide `d_model`.
        d_model: Width of the residual stream.
        d_ff: Width of the MLP's hidden layer; null means 4 * `d_model`.
        dropout: Dropout probability.
        bias: Give linear layers and LayerNorms a bias.
        gelu: `tanh` is GPT-2's approximation; `exact` is nanoGPT's.
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
        ValueError: `n_head` does not divide `d_model`, or `mask_documents` has no valid `end_of_text`.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        block_size: PositiveInt,
        n_layer: PositiveInt,
        n_head: PositiveInt,
        d_model: PositiveInt,
        d_ff: PositiveInt | None = None,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        bias: bool = True,
        gelu: Literal["tanh", "exact"] = "tanh",
        tie_embeddings: bool = True,
        init_std: PositiveFloat = 0.02,
        mask_documents: bool = False,
        end_of_text: NonNegativeInt | None = None,
        attention: AttentionKind = "auto",
        recompute: RecomputeKind = "none",
    ) -> None:
        super().__init__()
        d_ff = d_ff or 4 * d_model
        if d_model % n_head:
            raise ValueError(f"model.d_model={d_model}: must be a multiple of model.n_head={n_head}")
        self.vocab_size, self.block_size, self.n_layer, self.d_model = vocab_size, block_size, n_layer, d_model
        self.end_of_text = document_opening_id(mask_documents, end_of_text, vocab_size)
        self.attention = Attention(attention, d_model // n_head, dropout, documents=self.end_of_text is not None)
        self.recompute = Recompute(recompute, has_dropout=dropout > 0)
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(block_size, d_model)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            GPT2Block(d_model, d_ff, n_head, dropout, bias, gelu, self.recompute) for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(d_model, bias=bias)
        self.output = None if tie_embeddings else nn.Linear(d_model, vocab_size, bias=False)
        self._initialise(init_std)

    def _initialise(self, std: float) -> None:
        for name, param in self.named_parameters():
            if param.ndim >= 2:
                # 2 · n_layer branches add up on the residual stream (GPT-2, section 2.3).
                residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
                nn.init.normal_(param, std=std / math.sqrt(2 * self.n_layer) if residual else std)
            elif name.endswith("bias"):
                nn.init.zeros_(param)
        # The variance of the logits is d_model · std². It is limited so that the initial loss of a wide model is also
        # the loss of a uniform guess, ln(vocab_size).
        head = self.embedding if self.output is None else self.output
        nn.init.normal_(head.weight, std=min(std, 0.35 / math.sqrt(self.d_model)))

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
            starts, positions = None, torch.arange(T, device=tokens.device)  # (T,)
        else:
            starts, positions = places(tokens, self.end_of_text, cache)  # (B, T)
        x = self.dropout(self.embedding(tokens) + self.positions(positions))  # (B, T, C)
        if cache is None:
            patterns = [self.attention.pattern(x, starts, self.training)] * self.n_layer
        else:
            patterns = cache.patterns(self.attention, x, starts, [None] * self.n_layer)
        for layer, pattern in zip(self.layers, patterns, strict=True):
            x = self.recompute.layer(layer, x, pattern)
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
        lookups = self.positions.weight.numel() + (0 if self.output is None else self.embedding.weight.numel())
        return 6 * (matrices - lookups) + 12 * self.n_layer * self.d_model * block_size

    def recomputed_flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs per token that `recompute` adds to the backward."""
        return self.recompute.flops_per_token(self.layers, 4 * self.n_layer * self.d_model * block_size)


class GPT2Block(nn.Module):
    """Adds attention and an MLP to the residual stream, each computed from the normalised stream."""

    def __init__(
        self, d_model: int, d_ff: int, n_head: int, dropout: float, bias: bool, gelu: str, recompute: Recompute
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, bias=bias)
        self.attention = GPT2Attention(d_model, n_head, bias)
        self.mlp_norm = nn.LayerNorm(d_model, bias=bias)
        self.mlp = GPT2MLP(d_model, d_ff, bias, gelu)
        self.dropout = nn.Dropout(dropout)
        self.recompute = recompute

    def forward(self, x: Tensor, pattern: AttentionPattern) -> Tensor:
        x = x + self.dropout(self.recompute.attention(self._attention_branch, x, pattern))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out

    def _attention_branch(self, x: Tensor, pattern: AttentionPattern) -> Tensor:
        out: Tensor = self.attention(self.attention_norm(x), pattern)
        return out


class GPT2Attention(nn.Module):
    """Multi-head attention with one matrix for queries, keys and values."""

    def __init__(self, d_model: int, n_head: int, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.o = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x: Tensor, pattern: AttentionPattern) -> Tensor:
        heads = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        q, k, v = heads  # (B, H, T, D)
        y = attend(q, k, v, pattern)
        out: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return out


class GPT2MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, d_model: int, d_ff: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.approximate = "tanh" if gelu == "tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x), approximate=self.approximate))
        return out

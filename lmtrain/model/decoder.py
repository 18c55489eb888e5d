"""A Llama-style decoder with the options of current practice; without them it computes the same bits as `llama.py`.

Parameters have the names that they have there, so a run can fork from a run of `Llama`.

Shapes: B batch, T time, C d_model, D rotated width of a head, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch.nn.functional as F
from annotated_types import Interval
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lmtrain.model.attention import Attention, AttentionPattern, soft_cap
from lmtrain.model.attention_kind import AttentionKind
from lmtrain.model.cache import CacheUse, places
from lmtrain.model.decoder_attention import DecoderAttention, rotated_width
from lmtrain.model.document_mask import document_opening_id
from lmtrain.model.experts.mixture import Routing, with_routers
from lmtrain.model.flops import matrix_parameters
from lmtrain.model.llama import initialise_head, rope_table
from lmtrain.model.loss import linear_cross_entropy
from lmtrain.model.mlp import MLPKind, make_mlp
from lmtrain.model.recompute import Recompute, RecomputeKind


class Decoder(nn.Module):
    """Maps token ids to next-token logits with a Llama-style decoder whose parts can be chosen.

    Layers are counted from 1 here: every fourth layer is layer 4, 8, and so on.

    Args:
        vocab_size: Number of token ids, at least as many as the data has. In a config, null means as many.
        block_size: Longest sequence, in tokens.
        n_layer: Number of blocks.
        n_head: Query heads; `d_model` must be an even multiple of it.
        n_kv_head: Key-value heads, shared by the query heads; must divide `n_head`. Null means `n_head`.
        d_model: Width of the residual stream.
        d_ff: Width of the MLP's hidden layer.
        dropout: Dropout probability.
        norm_eps: Added inside the square root of RMSNorm.
        init_std: Standard deviation of the initial weights. It is smaller for layers that add to the residual stream,
            and for the output layer of wide models.
        tie_embeddings: Use the transposed embedding as the output layer.
        embedding_scale: Multiply the embedding of a token with the square root of `d_model` (Gemma).
        value_embeddings: Layers that have an embedding of the tokens of their own, which is added to the values of
            attention (modded-nanogpt); -1 is the last layer.
        mlp: `swiglu`, `relu2` (Primer's squared ReLU), or a callable that makes an MLP from `d_model` and `d_ff`, such
            as a mixture of experts.
        dense_layers: First layers that have `swiglu` in spite of `mlp`.
        parallel_blocks: Compute attention and MLP from the same normalised stream (GPT-J, PaLM).
        qk_norm: Normalise the queries and keys of each head (Qwen3).
        rope_base: Base of the rotary frequencies; larger values turn more slowly, for longer sequences.
        rope_fraction: Share of a head's width that is rotated (GPT-NeoX).
        nope_every: Each n-th layer has no rotary positions (SmolLM3); null means none.
        sliding_window: Tokens that a token attends to at most, itself included; null means all before it.
        global_every: Each n-th layer attends to all tokens, in spite of `sliding_window` (Gemma); null means none.
        attention_softcap: Limit of the scores of attention (Gemma 2); null means no limit.
        logit_softcap: Limit of the logits (Gemma 2); null means no limit.
        z_loss: Weight of the squared logarithm of the softmax's normaliser in training (PaLM). It acts on the gradient;
            losses are reported without it.
        mask_documents: Keep attention inside a document, and restart positions in each (see
            `lmtrain.model.document_mask`).
        end_of_text: Token id that opens a document, for `mask_documents`. In a config, null means the data's id.
        attention: Kernel of attention; `auto` picks the fastest one for the device and the options.
        recompute: Parts whose activations the backward computes again, which saves memory: `attention`, or each whole
            `layer`.

    Raises:
        ValueError: the head counts or widths do not divide, `value_embeddings` has a layer that does not exist, or
            `mask_documents` has no valid `end_of_text`.
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
        norm_eps: PositiveFloat = 1e-5,
        init_std: PositiveFloat = 0.02,
        tie_embeddings: bool = True,
        embedding_scale: bool = False,
        value_embeddings: list[int] | None = None,
        mlp: MLPKind | Callable[..., Any] = "swiglu",
        dense_layers: NonNegativeInt = 0,
        parallel_blocks: bool = False,
        qk_norm: bool = False,
        rope_base: PositiveFloat = 10000.0,
        rope_fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0,
        nope_every: PositiveInt | None = None,
        sliding_window: PositiveInt | None = None,
        global_every: PositiveInt | None = None,
        attention_softcap: PositiveFloat | None = None,
        logit_softcap: PositiveFloat | None = None,
        z_loss: NonNegativeFloat = 0.0,
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
        if global_every is not None and sliding_window is None:
            raise ValueError(f"model.global_every={global_every}: needs model.sliding_window, or all layers are global")
        self.vocab_size, self.block_size, self.n_layer, self.d_model = vocab_size, block_size, n_layer, d_model
        self.logit_softcap, self.z_loss = logit_softcap, z_loss
        d_head = d_model // n_head
        self.end_of_text = document_opening_id(mask_documents, end_of_text, vocab_size)
        documents, windows = self.end_of_text is not None, sliding_window is not None
        self.attention = Attention(attention, d_head, dropout, documents, windows, attention_softcap)
        self.recompute = Recompute(recompute, has_dropout=dropout > 0)
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.embedding_scale = math.sqrt(d_model) if embedding_scale else 1.0
        self.dropout = nn.Dropout(dropout)
        self.windows = [None if is_nth(number, global_every) else sliding_window for number in range(n_layer)]
        with_values = layers_of("value_embeddings", value_embeddings or [], n_layer)
        self.layers = nn.ModuleList(
            DecoderBlock(
                d_model,
                DecoderAttention(
                    d_model,
                    n_head,
                    n_kv_head,
                    norm_eps=norm_eps if qk_norm else None,
                    value_vocab=vocab_size if number in with_values else None,
                    has_rope=not is_nth(number, nope_every),
                ),
                make_mlp("swiglu" if number < dense_layers else mlp, d_model, d_ff),
                dropout,
                norm_eps,
                parallel_blocks,
                self.recompute,
            )
            for number in range(n_layer)
        )
        self.norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.output = None if tie_embeddings else nn.Linear(d_model, vocab_size, bias=False)
        cos, sin = rope_table(block_size, rotated_width(d_head, rope_fraction), rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(init_std)

    def _initialise(self, std: float) -> None:
        for name, param in self.named_parameters():
            if param.ndim < 2:
                continue
            # 2 · n_layer branches add up on the residual stream (GPT-2, section 2.3).
            residual = name.endswith(("attention.o.weight", ".down.weight", ".experts.down"))
            # Embedded values are as large as those that a matrix makes of the normalised stream.
            scale = math.sqrt(self.d_model) if name.endswith("value_embedding.weight") else 1.0
            nn.init.normal_(param, std=std / math.sqrt(2 * self.n_layer) if residual else scale * std)
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
        x = self.embedding(tokens)  # (B, T, C)
        x = self.dropout(x if self.embedding_scale == 1 else x * self.embedding_scale)
        if cache is None:
            made = {window: self.attention.pattern(x, starts, self.training, window) for window in {*self.windows}}
            patterns = [made[window] for window in self.windows]
        else:
            patterns = cache.patterns(self.attention, x, starts, self.windows)
        routings: list[Routing | None] = []
        for layer, pattern in zip(self.layers, patterns, strict=True):
            x, routing = self.recompute.layer(layer, x, tokens, cos, sin, pattern)
            routings.append(routing)
        x = x if cache is None else x[:, -1:]  # (B, 1, C)
        x, weight = self.norm(x), self.embedding.weight if self.output is None else self.output.weight
        if targets is None:
            logits = F.linear(x, weight)
            return (logits if self.logit_softcap is None else soft_cap(logits, self.logit_softcap)), None
        options = None, self.logit_softcap, self.z_loss
        loss = linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten(), *options)
        if self.training:
            loss = with_routers(loss, (layer.get_submodule("mlp") for layer in self.layers), routings)
        return None, loss

    def flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs of forward and backward per token, for matrix products only and attention without a mask.

        With a sliding window, a token attends to as many keys as the window has, also at the start of a sequence. The
        source is the same as in `llama.py`.
        """
        head = self.embedding.weight.numel() if self.output is None else 0
        return 6 * (matrix_parameters(self) + head) + 3 * self._attention_flops(block_size)

    def recomputed_flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs per token that `recompute` adds to the backward."""
        return self.recompute.flops_per_token(self.layers, self._attention_flops(block_size))

    def _attention_flops(self, block_size: int) -> int:
        """Return the FLOPs of scores and weighted values in the forward."""
        return 4 * self.d_model * sum(min(window or block_size, block_size) for window in self.windows)

    cos: Tensor
    sin: Tensor


class DecoderBlock(nn.Module):
    """Adds attention and an MLP to the residual stream, one after the other or in parallel."""

    def __init__(
        self,
        d_model: int,
        attention: DecoderAttention,
        mlp: nn.Module,
        dropout: float,
        norm_eps: float,
        parallel: bool,
        recompute: Recompute,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.attention = attention
        self.mlp_norm = None if parallel else nn.RMSNorm(d_model, eps=norm_eps)
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)
        self.recompute = recompute

    def forward(
        self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor, pattern: AttentionPattern
    ) -> tuple[Tensor, Routing | None]:
        """Return the residual stream, and what a mixture of experts did."""
        given = tokens, cos, sin, pattern
        if self.mlp_norm is None:
            normed = self.attention_norm(x)
            attended = self.recompute.attention(self.attention, normed, *given)
            out, routing = self._mlp(normed)
            return x + self.dropout(attended) + self.dropout(out), routing
        x = x + self.dropout(self.recompute.attention(self._attention_branch, x, *given))
        out, routing = self._mlp(self.mlp_norm(x))
        return x + self.dropout(out), routing

    def _mlp(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        out = self.mlp(x)
        return out if isinstance(out, tuple) else (out, None)

    def _attention_branch(self, x: Tensor, *given: Any) -> Tensor:
        out: Tensor = self.attention(self.attention_norm(x), *given)
        return out


def is_nth(number: int, every: int | None) -> bool:
    """Return whether a layer, numbered from 0, is each n-th one."""
    return every is not None and (number + 1) % every == 0


def layers_of(key: str, numbers: list[int], n_layer: int) -> set[int]:
    """Return the numbers of layers from 0; negative ones count from the last layer."""
    for number in numbers:
        if not -n_layer <= number < n_layer:
            raise ValueError(
                f"model.{key}={numbers}: there is no layer {number}; give numbers from {-n_layer} to {n_layer - 1}"
            )
    return {number % n_layer for number in numbers}

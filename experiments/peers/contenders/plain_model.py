"""Llama and GPT-2 as plain PyTorch modules, the way one writes them by hand: whole logits, PyTorch's own attention.

The contenders that bring no model of their own use these. Parameter names are those of `lmtrain.model`.

Shapes: B batch, T time, C width, H heads, D head width, V vocabulary.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build_model(task: SimpleNamespace) -> nn.Module:
    """Return the model of a task with its initial weights."""
    model = {"llama": Llama, "gpt2": GPT2}[task.model["kind"]](task)
    model.load_state_dict(torch.load(task.weights, mmap=True), strict=True)
    return model


class Llama(nn.Module):
    """Maps tokens (B, T) to logits (B, T, V), and to the mean loss if there are targets."""

    def __init__(self, task: SimpleNamespace) -> None:
        super().__init__()
        size = SimpleNamespace(**task.model)
        self.embedding = nn.Embedding(size.vocab_size, size.d_model)
        self.layers = nn.ModuleList(
            LlamaBlock(size.d_model, size.n_head, size.d_ff, size.norm_eps) for _ in range(size.n_layer)
        )
        self.norm = nn.RMSNorm(size.d_model, eps=size.norm_eps)
        frequency = 1.0 / size.rope_base ** (
            torch.arange(0, size.d_model // size.n_head, 2) * size.n_head / size.d_model
        )
        angle = torch.outer(torch.arange(task.block_size), frequency).repeat(1, 2)  # (T, D)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class LlamaBlock(nn.Module):
    def __init__(self, d_model: int, n_head: int, d_ff: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.attention = LlamaAttention(d_model, n_head)
        self.mlp_norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.mlp = SwiGLU(d_model, d_ff)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class LlamaAttention(nn.Module):
    def __init__(self, d_model: int, n_head: int) -> None:
        super().__init__()
        self.d_head = d_model // n_head
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.o = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )  # (B, H, T, D)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension i of a head together with i + D / 2, as in transformers' Llama."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GPT2(nn.Module):
    """Maps tokens (B, T) to logits (B, T, V), and to the mean loss if there are targets."""

    def __init__(self, task: SimpleNamespace) -> None:
        super().__init__()
        size = SimpleNamespace(**task.model)
        self.embedding = nn.Embedding(size.vocab_size, size.d_model)
        self.positions = nn.Embedding(task.block_size, size.d_model)
        self.layers = nn.ModuleList(
            GPT2Block(size.d_model, size.n_head, size.bias, size.gelu) for _ in range(size.n_layer)
        )
        self.norm = nn.LayerNorm(size.d_model, bias=size.bias)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class GPT2Block(nn.Module):
    def __init__(self, d_model: int, n_head: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, bias=bias)
        self.attention = GPT2Attention(d_model, n_head, bias)
        self.mlp_norm = nn.LayerNorm(d_model, bias=bias)
        self.mlp = GPT2MLP(d_model, bias, gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT2Attention(nn.Module):
    def __init__(self, d_model: int, n_head: int, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.o = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(*heads, is_causal=True)  # (B, H, T, D)
        return self.o(y.transpose(1, 2).flatten(2))


class GPT2MLP(nn.Module):
    def __init__(self, d_model: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model, bias=bias)
        self.down = nn.Linear(4 * d_model, d_model, bias=bias)
        self.approximate = "tanh" if gelu == "tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))

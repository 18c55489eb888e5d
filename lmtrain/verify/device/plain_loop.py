"""A training loop and models as in nanoGPT, compiled, to compare the trainer's speed with.

They follow nanoGPT's `model.py` and `train.py` (Karpathy, 2022) and share no code with lmtrain's trainer and models:
whole logits, one `clip_grad_norm_`, fused AdamW, random windows of a memory map in pinned memory. The Llama variant
differs as the architecture does: RMSNorm, rotary positions, SwiGLU, no biases.

Shapes: B batch, T time, C width, H heads, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtrain.system import System


@dataclass(frozen=True)
class PlainSizes:
    """The sizes of a plain model; `is_llama` selects the architecture."""

    is_llama: bool
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    d_model: int
    d_ff: int
    bias: bool = False


class PlainBlock(nn.Module):
    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        C, self.n_head, self.is_llama = sizes.d_model, sizes.n_head, sizes.is_llama
        self.norm1: nn.Module = nn.RMSNorm(C, eps=1e-5) if sizes.is_llama else nn.LayerNorm(C, bias=sizes.bias)
        self.norm2: nn.Module = nn.RMSNorm(C, eps=1e-5) if sizes.is_llama else nn.LayerNorm(C, bias=sizes.bias)
        self.qkv = nn.Linear(C, 3 * C, bias=sizes.bias)
        self.o = nn.Linear(C, C, bias=sizes.bias)
        self.gate = nn.Linear(C, sizes.d_ff, bias=False) if sizes.is_llama else None
        self.up = nn.Linear(C, sizes.d_ff, bias=sizes.bias)
        self.down = nn.Linear(sizes.d_ff, C, bias=sizes.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        if self.is_llama:
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).contiguous().view(B, T, C))
        h = self.norm2(x)
        hidden = F.gelu(self.up(h), approximate="tanh") if self.gate is None else F.silu(self.gate(h)) * self.up(h)
        out: Tensor = x + self.down(hidden)
        return out


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class PlainModel(nn.Module):
    """A GPT-2 or Llama with tied embeddings; returns the mean loss."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: PlainSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.positions = None if sizes.is_llama else nn.Embedding(sizes.block_size, sizes.d_model)
        self.blocks = nn.ModuleList(PlainBlock(sizes) for _ in range(sizes.n_layer))
        self.norm: nn.Module = (
            nn.RMSNorm(sizes.d_model, eps=1e-5) if sizes.is_llama else nn.LayerNorm(sizes.d_model, bias=sizes.bias)
        )
        D = sizes.d_model // sizes.n_head
        angle = torch.outer(torch.arange(sizes.block_size).float(), 10000.0 ** (-torch.arange(0, D, 2) / D))
        self.register_buffer("cos", torch.cat((angle, angle), -1).cos(), persistent=False)  # (T, D)
        self.register_buffer("sin", torch.cat((angle, angle), -1).sin(), persistent=False)
        for param in self.parameters():
            if param.ndim >= 2:
                nn.init.normal_(param, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        T = tokens.shape[1]
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(T, device=tokens.device))
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def plain_step(
    sizes: PlainSizes, tokens: Path, batch_size: int, micro_batches: int, system: System
) -> tuple[Callable[[], None], int]:
    """Return a function that does one optimizer step of the loop, and the number of parameters.

    Of the system it takes the device, the number format, and whether to compile.
    """
    torch.use_deterministic_algorithms(False)
    device = system.device
    model = PlainModel(sizes).to(device)
    params = list(model.parameters())
    groups = [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": 0.1},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    forward: Callable[..., Tensor] = torch.compile(model) if system.compiles else model
    data = np.memmap(tokens, dtype=np.uint16, mode="r")

    def batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - sizes.block_size, (batch_size,)).tolist()
        windows = [torch.from_numpy(data[at : at + sizes.block_size + 1].astype(np.int64)) for at in starts]
        x, y = torch.stack([window[:-1] for window in windows]), torch.stack([window[1:] for window in windows])
        if device.type == "cuda":
            return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
        return x, y

    def step() -> None:
        for _ in range(micro_batches):
            x, y = batch()
            with system.autocast():
                loss = forward(x, y) / micro_batches
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(param.numel() for param in params)

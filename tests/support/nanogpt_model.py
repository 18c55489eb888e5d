"""A GPT with nanoGPT's names, and a training that writes nanoGPT's checkpoint, to import and to compare with."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB_SIZE = 64  # 61 ids, padded
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": VOCAB_SIZE}
CONFIG = {
    "out_dir": "out",
    "device": "cpu",
    "dtype": "float16",  # nanoGPT ignores it on a CPU
    "compile": True,
    "batch_size": 4,
    "block_size": 16,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "max_iters": 20,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "grad_clip": 1.0,
    "decay_lr": True,
    "warmup_iters": 3,
    "lr_decay_iters": 20,
    "min_lr": 1e-3,
    "eval_interval": 5,
    "eval_iters": 2,
    "log_interval": 1,
}


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width, bias=bias)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(width, 3 * width, bias=bias), "c_proj": nn.Linear(width, width, bias=bias)}
        )
        self.ln_2 = nn.LayerNorm(width, bias=bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias=bias), "c_proj": nn.Linear(4 * width, width, bias=bias)}
        )

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).split(C, dim=2)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(C // self.heads)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    def __init__(
        self, *, n_layer: int, n_head: int, n_embd: int, block_size: int, vocab_size: int, bias: bool, dropout: float
    ) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList(Block(n_embd, n_head, bias) for _ in range(n_layer)),
                "ln_f": nn.LayerNorm(n_embd, bias=bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        for param in self.parameters():
            nn.init.normal_(param, std=0.3)  # biases and gains, too, so that a test notices if two are swapped

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](torch.arange(tokens.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class Training:
    """Trains as nanoGPT does: a model, AdamW with two groups, and a count of iterations."""

    def __init__(self, *, bias: bool, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model_args = {**SIZES, "bias": bias, "dropout": 0.0}
        self.model = GPT(**self.model_args)
        decayed = [param for param in self.model.parameters() if param.dim() >= 2]
        others = [param for param in self.model.parameters() if param.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": CONFIG["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
            lr=CONFIG["learning_rate"],
            betas=(CONFIG["beta1"], CONFIG["beta2"]),
        )
        self.iter_num = 0

    def learning_rate(self) -> float:
        lr, least = CONFIG["learning_rate"], CONFIG["min_lr"]
        warmup, end = CONFIG["warmup_iters"], CONFIG["lr_decay_iters"]
        if self.iter_num < warmup:
            return lr * (self.iter_num + 1) / (warmup + 1)
        share = min(1.0, (self.iter_num - warmup) / (end - warmup))
        return least + 0.5 * (1 + math.cos(math.pi * share)) * (lr - least)

    def step(self, micro_batches: list[tuple[Tensor, Tensor]]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        for x, y in micro_batches:
            loss = F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
            (loss / len(micro_batches)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CONFIG["grad_clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iter_num += 1

    def train(self, steps: int, seed: int = 1) -> "Training":
        """Train on random ids, with two different micro-batches per step."""
        generator = np.random.default_rng(seed)
        for _ in range(steps):
            ids = torch.from_numpy(generator.integers(0, 61, (2, 4, 17)))
            self.step([(part[:, :-1], part[:, 1:]) for part in ids])
        return self

    def double(self) -> "Training":
        """Convert the weights and moments to float64."""
        self.model.double()
        for state in self.optimizer.state.values():
            state.update({key: state[key].double() for key in ("exp_avg", "exp_avg_sq")})
        return self

    def content(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model_args": dict(self.model_args),
            "iter_num": self.iter_num,
            "best_val_loss": torch.tensor(3.25),  # a tensor in nanoGPT, too
            "config": dict(CONFIG),
        }

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.content(), path)
        return path


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)

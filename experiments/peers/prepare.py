"""Writes what all contenders share: tokens, initial weights, and a description of the task.

It also prints facts about the machine. `python prepare.py FOLDER OVERRIDE…`, in the environment of lmtrain.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lmtrain.config.compose import compose
from lmtrain.config.preflight import preflight
from lmtrain.parts import build_model, build_system

BATCHES = 256  # different batches; after them, the same come again


def main(folder: Path, overrides: list[str]) -> None:
    vocab_size, T, B = (peek(overrides, key) for key in ("model.vocab_size", "data.block_size", "data.batch_size"))
    write_tokens(folder, vocab_size, BATCHES * B * T + 1)
    overrides = [*overrides, f"data.path={folder}"]
    cfg = preflight(compose(overrides))
    device = build_system(cfg).device.type
    model = build_model(cfg)
    torch.save(model.state_dict(), folder / "weights.pt")
    sizes = {key: value for key, value in cfg.model.items() if key not in ("_target_", "block_size")}
    task = {
        "model": {"kind": type(model).__name__.lower(), **sizes},
        "batch_size": B,
        "block_size": T,
        "blocks": BATCHES * B,
        "lr": cfg.optimizer.lr,
        "betas": list(cfg.optimizer.betas),
        "weight_decay": cfg.optimizer.weight_decay,
        "grad_clip": cfg.trainer.grad_clip,
        "tokens": str(folder / "train.bin"),
        "weights": str(folder / "weights.pt"),
        "device": device,
        "overrides": overrides,
    }
    (folder / "task.json").write_text(json.dumps(task, indent=2) + "\n", encoding="utf-8")
    facts = {
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "bfloat16_speed": product_speed(device, torch.bfloat16) / product_speed(device, torch.float32),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(facts))


def peek(overrides: list[str], key: str) -> int:
    """Return a number of the config before there is data to check it with."""
    value: int = compose(overrides)
    for part in key.split("."):
        value = value[part]
    return value


def write_tokens(folder: Path, vocab_size: int, count: int) -> None:
    """Write random tokens whose frequencies fall with their rank, as in text, so that there is something to learn."""
    share = 1.0 / (np.arange(vocab_size) + 3.0)
    tokens = np.random.default_rng(1).choice(vocab_size, size=count, p=share / share.sum()).astype("<u2")
    tokens.tofile(folder / "train.bin")
    tokens[: max(len(tokens) // 64, 4096)].tofile(folder / "val.bin")


def product_speed(device: str, dtype: torch.dtype) -> float:
    """Return products of two matrices per second: the best of five."""
    a = torch.ones(1024, 1024, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 1 / best


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

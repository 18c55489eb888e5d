"""Small checkpoints, and ways to damage one."""

import os
from pathlib import Path

import torch

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder


def a_checkpoint(value: float, size: int = 4) -> Checkpoint:
    return Checkpoint({"model": {"w": torch.full((size,), value)}}, {"train": {"step": value}})


def value(folder: CheckpointFolder, step: int) -> float:
    w = load_checkpoint(folder.at(step)).tensors["model"]["w"]
    assert (w == w[0]).all()
    return w[0].item()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def zero_the_end(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50))

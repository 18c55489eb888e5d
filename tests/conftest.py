"""What the tests share: small token files, and the command line in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Two threads only get in each other's way with models this small. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lmtrain.data.tokens import Meta, Split, TokenizerFile, write_meta
from lmtrain.durable import sha256_of

VOCAB_SIZE = 61

# A model and a run so small that a step takes milliseconds; everything else as shipped.
TINY = [
    "data=tokens",
    "model=llama_1m",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=32",
    "model.d_ff=64",
    "data.batch_size=4",
    "data.block_size=16",
    "trainer.gradient_accumulation_steps=2",
    "trainer.max_steps=12",
    "trainer.eval_interval=4",
    "trainer.eval_batches=2",
    "trainer.log_interval=1",
    "trainer.checkpoint_interval=4",
    "scheduler.warmup_steps=3",
    "system.device=cpu",
    "logger=[]",
    "sample_tokens=0",
]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def write_tokens(folder: Path, train: int = 4000, val: int = 700, dtype: str = "uint16") -> Path:
    """Token files whose next token depends on the last one, so that there is something to learn."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", train), ("val", val)):
        tokens = np.cumsum(generator.integers(1, 5, count)) % VOCAB_SIZE
        tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{split}.bin")
        splits[split] = Split(
            tokens=count,
            max_id=int(tokens.max()),
            documents=1,
            bytes=3 * count,
            sha256=sha256_of(folder / f"{split}.bin"),
        )
    write_meta(folder, Meta(dtype, VOCAB_SIZE, TokenizerFile("none", "", ""), None, splits, recipe={}))
    return folder


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs `python -m lmtrain …` in tmp_path, as a user would, without the environment's own W&B settings."""

    def run(*arguments: str, timeout: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "lmtrain", *arguments],
            cwd=tmp_path,
            env=clean_environment() | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "LMTRAIN_", "HYDRA_"))}
    return kept | {"PYTHONPATH": ""}

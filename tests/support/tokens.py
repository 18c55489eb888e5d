"""Token files and settings so small that a step takes milliseconds."""

from pathlib import Path

import numpy as np

from lmtrain.data.meta import Meta, Split, TokenizerFile, write_meta
from lmtrain.files.durable import sha256_of

VOCAB_SIZE = 61

# A model and a run so small that a step takes milliseconds. All other settings are the shipped ones.
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


def write_tokens(folder: Path, train: int = 4000, val: int = 700, dtype: str = "uint16") -> Path:
    """Write token files in which the next token depends on the last one, so that a model can learn something."""
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


def write_tiny_experiment(folder: Path, token_folder: Path) -> None:
    """Write TINY as an experiment `tiny`, so that the names of sweep jobs' directories have only the swept keys."""
    lines = ["# @package _global_", "defaults:"]
    lines += [f"  - override /{text.replace('=', ': ')}" for text in TINY if text.startswith(("data=", "model="))]
    lines += ["  - override /logger: []", "seed: 1"]
    nodes: dict[str, list[str]] = {"data": [f"path: {token_folder}"]}
    for text in TINY:
        key, _, value = text.partition("=")
        if "." in key:
            nodes.setdefault(key.partition(".")[0], []).append(f"{key.partition('.')[2]}: {value}")
        elif key == "sample_tokens":
            lines.append(f"{key}: {value}")
    lines += [line for node, values in nodes.items() for line in (f"{node}:", *(f"  {text}" for text in values))]
    (folder / "experiments").mkdir()
    (folder / "experiments" / "tiny.yaml").write_text("\n".join(lines))


FAILING_MODEL = """\
import os
from pathlib import Path
from lmtrain.model.llama import Llama

class Fails(Llama):
    def __init__(self, vocab_size: int, block_size: int):
        super().__init__(vocab_size, block_size, 1, 1, None, 16, 16)
        self.calls = 0

    def forward(self, tokens, targets=None):
        self.calls += 1
        if self.calls > {calls} and {condition}:
            raise {error}
        return super().forward(tokens, targets)
"""


def write_failing_model(folder: Path, error: str, *, calls: int = 9, condition: str = "True") -> str:
    """Write a model into `mine.py`, chosen by `model=fails`, that raises after some calls; return its source."""
    source = FAILING_MODEL.format(calls=calls, condition=condition, error=error)
    (folder / "mine.py").write_text(source)
    (folder / "conf" / "model").mkdir(parents=True)
    node = "_target_: mine.Fails\nvocab_size: null\nblock_size: ${data.block_size}\n"
    (folder / "conf" / "model" / "fails.yaml").write_text(node)
    return source

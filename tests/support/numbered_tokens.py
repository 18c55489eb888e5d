"""Writes folders of token files, and loads them. Tests fill them with tokens that tell their own position."""

from pathlib import Path

import numpy as np

from lmtrain.data.loader import TokenLoader
from lmtrain.data.meta import DTYPES, Meta, Split, TokenizerFile, write_meta


def write(folder: Path, dtype: str | None = None, **splits: np.ndarray) -> Path:
    """Write a folder of token files. Without a dtype it has no meta.json, and tokens are uint16."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, tokens in splits.items():
        tokens.astype(DTYPES[dtype or "uint16"]).tofile(folder / f"{split}.bin")
    if dtype:
        about = {
            split: Split(len(tokens), int(tokens.max()), documents=1, bytes=4 * len(tokens), sha256=f"of {split}")
            for split, tokens in splits.items()
        }
        vocab_size = 1 + max(split.max_id for split in about.values())
        tokenizer = TokenizerFile("bpe", "tokenizer.json", "0")
        write_meta(folder, Meta(dtype, vocab_size, tokenizer, end_of_text=None, splits=about, recipe={}))
    return folder


def loader(folder: Path, batch_size: int = 4, block_size: int = 8, **changes: object) -> TokenLoader:
    rest = {"split": "train", "seed": 1337, "order": "shuffle", **changes}
    return TokenLoader(str(folder), batch_size=batch_size, block_size=block_size, **rest)

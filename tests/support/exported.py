"""Small models with random weights and their tokenizers, as a run would have them, for tests of exports."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.data.tokenizer import BPE, Bytes, tokenizer_of_characters
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.run.reading.loaded import LoadedModel
from lmtrain.system import System
from support.tokenizer_samples import CODE, Texts

PADDED = 3  # ids of a model that its tokenizer does not have
LLAMA = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 64, "d_ff": 96, "rope_base": 5000.0}
GPT_2 = {"block_size": 64, "n_layer": 2, "n_head": 4, "d_model": 64, "d_ff": 96}


def tokenizer(kind: str) -> StoredTokenizer:
    """Return a tokenizer: `bpe`, `bytes` or `characters`."""
    if kind == "characters":
        characters = sorted({*CODE, "é", "狐", "🦊", "\t", "\\"})
        return tokenizer_of_characters({character: number for number, character in enumerate(characters)})
    return {"bpe": BPE(600), "bytes": Bytes()}[kind].fit(Texts(CODE[:200_000]))


def loaded(model: str, kind: str, **options: Any) -> LoadedModel:
    """Return a model, `llama` or `gpt2`, with these options and with weights that matter for every logit."""
    stored = tokenizer(kind)
    own = {**(LLAMA if model == "llama" else GPT_2), "vocab_size": stored.vocab_size + PADDED, **options}
    torch.manual_seed(0)
    made = Llama(**own) if model == "llama" else GPT2(**own)
    for param in made.parameters():
        nn.init.normal_(param, mean=1.0 if param.ndim == 1 else 0.0, std=0.15)
    config = OmegaConf.create({"name": "small", "model": own})
    system = System("cpu", dtype="float32", compile=False)
    return LoadedModel(Path("outputs/small"), config, made.eval(), stored, system, 10)

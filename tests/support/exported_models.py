"""Models of runs with random weights in every tensor, as `Run.load` returns them."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.compose import compose
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.parts import build_model, build_system
from lmtrain.run.reading.loaded import LoadedModel

VOCAB_SIZE = 61
SIZES = ["model.vocab_size=61", "model.n_layer=3", "model.n_head=4", "model.d_model=32", "data.block_size=24"]
LLAMA = ["model=llama_1m", *SIZES, "model.d_ff=48", "model.n_kv_head=2"]
DECODER = ["model=decoder", *SIZES, "model.d_ff=48", "model.n_kv_head=2"]
GPT2 = ["model=gpt2", *SIZES, "model.block_size=24"]
# One for each class of transformers, and for each option that changes its config.
MODELS = {
    "llama": LLAMA,
    "llama untied": [*LLAMA, "model.tie_embeddings=false", "model.rope_base=50000", "model.norm_eps=1e-6"],
    "decoder": [*DECODER, "model.z_loss=1e-4"],
    "mistral": [*DECODER, "model.sliding_window=6"],
    "qwen3": [*DECODER, "model.qk_norm=true", "model.tie_embeddings=false"],
    "qwen3 windows": [*DECODER, "model.qk_norm=true", "model.sliding_window=6", "model.global_every=2"],
    "gpt2": GPT2,
    "gpt2 untied exact": [*GPT2, "model.tie_embeddings=false", "model.gelu=exact", "model.d_ff=80"],
    "gpt2 without biases": [*GPT2, "model.bias=false", "model.dropout=0.1"],
}


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


def config_of(overrides: list[str]) -> DictConfig:
    return compose(["data=tokens", "data.path=none", "logger=[]", "system.device=cpu", *overrides])


def loaded_model(overrides: list[str], tokenizer: StoredTokenizer | None = None) -> LoadedModel:
    """Return a model whose every tensor has random numbers, so that a wrong name or direction shows."""
    cfg = config_of(overrides)
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    directory = Path(tempfile.mkdtemp(dir=_folder().name))
    (directory / "config.yaml").write_text(
        OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8"
    )  # the model card tells about it
    return LoadedModel(directory, cfg, model.eval(), tokenizer, build_system(cfg, compile=False), 3)

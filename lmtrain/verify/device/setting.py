"""What every check of a device gets: the device, the user's overrides, a folder with token files, and trainers."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from lmtrain.config.batch_size import AUTO, GLOBAL, SIZE
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.overrides import quoted
from lmtrain.config.preflight import preflight
from lmtrain.data.prefetch import Prefetcher
from lmtrain.errors import ConfigError
from lmtrain.parts import build_optimizer, build_parts, build_scratch_trainer, build_system
from lmtrain.system import System
from lmtrain.trainer import Trainer
from lmtrain.verify.device.finding import ImpossibleOverridesError

SMALL_VOCABULARY = 128
TOKENS = {"train": 400_000, "val": 20_000}
# Two layers are enough for every operation to depend on another layer, forward and backward. The head width of 32 is
# one that all fused attention kernels of CUDA support.
SMALL_MODELS = {
    "llama": ("model=llama_1m", "model.n_kv_head=1"),
    "gpt2": ("model=gpt2", "model.block_size=64"),
}
SMALL = (
    *("model.vocab_size=128", "model.n_layer=2", "model.n_head=2", "model.d_model=64", "model.d_ff=128"),
    *("data.batch_size=2", "data.block_size=64", "trainer.gradient_accumulation_steps=2"),
    "system.threads=1",  # several threads slow each other down with tensors this small
    *("optimizer.lr=1e-3", "scheduler.warmup_steps=2", "scheduler.min_lr=1e-4", "trainer.max_steps=40"),
)
LONGEST_SUM = 128  # of a small model: the tokens of a micro-batch, the vocabulary, or d_ff


class Setting:
    """Builds the configs, systems and trainers of checks.

    The overrides of a config are those of this class, then the user's, then those of the check, so that the user's
    apply wherever a check does not need a certain value.

    Args:
        folder: For files, which are removed afterwards.
        overrides: The user's overrides.
        seconds: The time that is left for all checks.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = (), seconds: float = 480.0) -> None:
        self.folder = folder
        # Checks name the number of micro-batches, which must not follow from a global batch.
        self.overrides = tuple(text for text in overrides if not text.startswith((f"{GLOBAL}=", f"{SIZE}={AUTO}")))
        self.deadline = time.monotonic() + seconds

    @cached_property
    def device(self) -> torch.device:
        # Not `build_system`, which would seed the generators in the middle of a run.
        system: System = build(compose_system([*self.overrides, "system.compile=false"]).system)
        return system.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def config(self, *overrides: str, vocabulary: int = SMALL_VOCABULARY) -> DictConfig:
        """Return the checked config of a run on token files that are made for it."""
        return preflight(compose([*self.run_overrides(vocabulary), *overrides]))

    def run_overrides(self, vocabulary: int = SMALL_VOCABULARY) -> list[str]:
        """Return overrides with which `python -m lmtrain` trains on token files that are made for it."""
        tokens = write_tokens(self.folder / f"tokens-{vocabulary}", vocabulary)
        return ["data=tokens", f"data.path={quoted(str(tokens))}", "logger=[]", "sample_tokens=0", *self.overrides]

    def system(self, *overrides: str) -> System:
        """Build the system of the user's overrides, and of these, and seed it."""
        return build_system(compose_system([*self.overrides, *overrides]))

    def small(self, model: str, *overrides: str) -> DictConfig:
        """Return the config of a small model, `llama` or `gpt2`."""
        return self.config(*SMALL_MODELS[model], *SMALL, *overrides)

    def check_overrides(self) -> None:
        """Check that the small models can be trained with the user's overrides on this device.

        Raises:
            ImpossibleOverridesError: they cannot, so that no check would say anything about the device.
        """
        try:
            with raising_config_errors():
                for model in SMALL_MODELS:
                    build_parts(self.small(model))
        except ConfigError as error:
            raise ImpossibleOverridesError(str(error)) from error

    def trainer(self, cfg: DictConfig, change: Callable[[nn.Module], nn.Module] | None = None) -> Trainer:
        """Build the trainer of a config; `change` gets the model and returns the one to train."""
        parts = build_parts(cfg)
        if change is not None:
            model = change(parts.model).to(parts.system.device)
            params = dict(model.named_parameters())
            parts = replace(parts, model=model, optimizer=build_optimizer(cfg, params), updated=params)
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        return build_scratch_trainer(cfg, parts, folder)


@contextlib.contextmanager
def fed(trainer: Trainer) -> Iterator[Trainer]:
    """Feed the trainer with batches from its first on, so that `trainer.step()` works."""
    with Prefetcher(trainer.train_loader.batch, 0, trainer.system.device) as trainer.micro_batches:
        yield trainer


def compose_system(overrides: Sequence[str]) -> DictConfig:
    """Return the checked config with only the group `system` resolved and checked."""
    return check(compose(overrides), groups=["system"])


def write_tokens(folder: Path, vocabulary: int) -> Path:
    """Write token files in which the next token depends on the last one, unless they exist; return their folder."""
    if not folder.exists():
        folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        for split, count in TOKENS.items():
            tokens = np.cumsum(generator.integers(1, 5, count)) % vocabulary
            tokens.astype("<u2").tofile(folder / f"{split}.bin")
    return folder

"""A rewind after bad steps, in a real training loop with a gradient scaler, with every choice of optimizer."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from support.tiny_trainer import assert_same_bits, make_trainer, weights
from support.tokens import VOCAB_SIZE
from torch import Tensor

from lmtrain.checkpoint.optimizer_state import optimizer_state
from lmtrain.config.build import build
from lmtrain.data.loader import TokenLoader
from lmtrain.model.llama import Llama
from lmtrain.system import System

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
CHOICES = [path.stem for path in sorted(CONF.glob("*.yaml"))]
POISON = VOCAB_SIZE - 1


class NanWherePoisoned(Llama):
    """Has a loss of NaN if a sequence of the micro-batch is all POISON."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, loss = super().forward(tokens, targets)
        if loss is not None and bool((tokens == POISON).all(dim=1).any()):
            loss = loss * math.nan
        return logits, loss


@pytest.fixture
def poisoned_folder(token_folder: Path) -> Path:
    """Return data whose sequential samples 18 (in step 3) and 43 (in step 6) of 16 tokens each are poison."""
    tokens = np.fromfile(token_folder / "train.bin", "<u2")
    for sample in (18, 43):
        tokens[16 * sample : 16 * sample + 17] = POISON
    tokens.tofile(token_folder / "train.bin")
    return token_folder


def trainer(folder: Path, out: Path, choice: str, policy: str, **changes: Any) -> Any:
    if choice == "library":
        pytest.importorskip("pytorch_optimizer")
    torch.manual_seed(0)
    model = NanWherePoisoned(VOCAB_SIZE, 16, n_layer=1, n_head=2, n_kv_head=1, d_model=16, d_ff=32)
    optimizer = build(OmegaConf.load(CONF / f"{choice}.yaml"), list(model.named_parameters()))
    settings: dict[str, Any] = {"max_steps": 8, "order": "sequential", "checkpoint_interval": 2, "eval_interval": 100}
    made = make_trainer(
        folder,
        out,
        model=model,
        optimizer=optimizer,
        system=System(device="cpu", dtype="float16"),
        on_bad_step=policy,
        **settings | changes,
    )
    assert made.scaler.is_enabled()
    return made


def kept(made: Any) -> list[Tensor]:
    tensors, _ = optimizer_state(made.optimizer, made.model.named_parameters())
    return [*weights(made), *(tensors[name].clone() for name in sorted(tensors))]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_a_rewind_gives_the_bits_of_a_run_without_the_bad_data(
    poisoned_folder: Path, tmp_path: Path, choice: str
) -> None:
    made = trainer(poisoned_folder, tmp_path / "out", choice, "rewind")
    made.fit()  # step 3 is bad: back to step 2, and on with sample 24; later, sample 43 is in step 5: back to step 4
    assert (made.state.step, made.state.bad_steps) == (8, 2)
    by_hand = trainer(poisoned_folder, tmp_path / "by-hand", choice, "stop", checkpoint_interval=100)
    starts = [*range(0, 16, 8), *range(24, 40, 8), *range(48, 80, 8)]
    whole = TokenLoader(str(poisoned_folder), "train", 4, 16, seed=5, order="sequential")
    indices = [start // 4 + micro_step for start in starts for micro_step in (0, 1)]
    by_hand.train_loader.batch = lambda index: whole.batch(indices[index] if index < len(indices) else 0)
    by_hand.fit()
    assert_same_bits(kept(made), kept(by_hand))

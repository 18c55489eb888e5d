"""A trainer so small that a step takes milliseconds, and helpers that compare two of its runs."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.data.loader import TokenLoader
from lmtrain.files.metrics import MEASURED, read_metrics
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import StopRequest
from lmtrain.loop.training_parts import Parts
from lmtrain.model.llama import Llama
from lmtrain.optimizer.adamw import adamw
from lmtrain.scheduler import cosine
from lmtrain.system import System
from lmtrain.trainer import Trainer
from support.tokens import VOCAB_SIZE

DEFAULTS: dict[str, Any] = {
    "max_steps": 8,
    "gradient_accumulation_steps": 2,
    "grad_clip": 1.0,
    "on_bad_step": "stop",
    "spike_zscore": None,
    "spike_window": 128,
    "eval_interval": 4,
    "eval_batches": None,
    "eval_train_batches": 0,
    "log_interval": 1,
    "checkpoint_interval": 4,
    "keep_checkpoints": 2,
    "keep_every": None,
}


def tiny_llama(dropout: float = 0.0, **changes: Any) -> Llama:
    torch.manual_seed(0)
    return Llama(VOCAB_SIZE, 16, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=64, dropout=dropout, **changes)


def make_trainer(
    folder: Path,
    out: Path,
    *,
    model: nn.Module | None = None,
    system: System | None = None,
    batch_size: int = 4,
    loader: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Any = None,
    order: Any = "shuffle",
    stop: StopRequest | None = None,
    **changes: Any,
) -> Trainer:
    out.mkdir(exist_ok=True)
    system = system or System(device="cpu")
    model = model or tiny_llama()
    checkpoints = CheckpointFolder(out / "checkpoints")
    loaded = checkpoints.load_latest()
    state = TrainState(**loaded.state["train"]) if loaded else TrainState()
    loader = loader or TokenLoader(str(folder), "train", batch_size, 16, seed=5, order=order)
    metrics = JsonlLogger(out / "metrics.jsonl")
    parts = Parts(
        system,
        loader,
        TokenLoader(str(folder), "val", batch_size, 16, seed=5),
        model,
        optimizer or adamw(model.named_parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8),
        dict(model.named_parameters()),
        schedule or partial(cosine, lr=1e-2, min_lr=1e-3, warmup_steps=2, max_steps=8),
    )
    recorder = Recorder(
        metrics,
        Saver(checkpoints, before_commit=metrics.sync),
        BadBatches(out / "bad-batches", loader, decode=None),
        stop or StopRequest(),
        identity={"config": {}},
    )
    trainer = Trainer(
        parts,
        recorder,
        state,
        **{**DEFAULTS, **changes},
    )
    if loaded:
        trainer.snapshot.restore(loaded)
        trainer.snapshot.check_batch_size(state.samples)
    metrics.rewind(state.logged_step)
    return trainer


def weights(trainer: Trainer) -> list[Tensor]:
    return [param.detach().clone() for param in trainer.model.parameters()]


def timeless_metrics(run: Path) -> list[dict[str, float]]:
    """Return the logged metrics without those that depend on time or the machine."""
    return [
        {key: value for key, value in line.items() if key not in MEASURED}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


class Prodigal(torch.optim.SGD):
    """Changes values in its parameter groups in every step, as Prodigy and schedule-free optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["d"] = group.get("d", 1e-3) * 1.1
            for param in group["params"]:
                param.data.add_(param.grad, alpha=-group["lr"] * group["d"])

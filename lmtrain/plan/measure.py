"""A few real optimizer steps, for `plan --measure`: their time, and the most memory they take."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.build import build
from lmtrain.data.prefetch import Prefetcher
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import StopRequest
from lmtrain.plan.plan import Measured
from lmtrain.system import System
from lmtrain.trainer import Trainer

STEPS = 5  # at most, after one that is not counted: it allocates and compiles
ENOUGH_S = 20.0


def measure(cfg: Any, system: System, train_loader: Any, val_loader: Any) -> Measured:
    """Runs the trainer's own step on the run's own data; leaves nothing behind."""
    model = build(cfg.model).to(system.device)
    optimizer = build(cfg.optimizer, list(model.named_parameters()))
    with tempfile.TemporaryDirectory() as folder:
        trainer: Trainer = build(
            cfg.trainer,
            model=model,
            optimizer=optimizer,
            schedule=build(cfg.scheduler),
            train_loader=train_loader,
            val_loader=val_loader,
            system=system,
            logger=JsonlLogger(Path(folder) / "metrics.jsonl"),
            saver=Saver(CheckpointFolder(Path(folder))),
            bad_batches=BadBatches(Path(folder), train_loader, decode=None),
            stop=StopRequest(),
            state=TrainState(),
            record={},
        )
        model.train()
        seconds: list[float] = []
        with Prefetcher(train_loader.batch, 0, system.device) as trainer.micro_batches:
            trainer.step()
            while len(seconds) < STEPS and sum(seconds) < ENOUGH_S:
                system.synchronize()
                started = time.perf_counter()
                trainer.step()
                system.synchronize()
                seconds.append(time.perf_counter() - started)
        return Measured(statistics.median(seconds), len(seconds), round(system.memory_gb() * 1e9))

"""Writes `result.json`, which says how a run ended."""

import logging
from dataclasses import asdict, dataclass

from omegaconf import DictConfig

from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.files.numbers import finite_or_none
from lmtrain.run.directory import RunDirectory
from lmtrain.run.identity import config_hash, plain_config

log = logging.getLogger(__name__)


@dataclass
class Result:
    """The content of `result.json`, which is written last; `objective` is the best validation loss."""

    status: str
    objective: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    final_train_loss: float | None = None
    final_val_loss: float | None = None
    steps: int = 0
    tokens: int = 0
    bad_steps: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    config_hash: str = ""
    error: str | None = None


def write_result(
    cfg: DictConfig, directory: RunDirectory, state: TrainState, status: str, error: BaseException | None
) -> None:
    """Write `result.json`; a write error is only logged, so that it does not change how the run ended."""
    result = Result(
        status=status,
        objective=state.best_val_loss,
        best_val_loss=state.best_val_loss,
        best_step=state.best_step,
        final_train_loss=finite_or_none(state.train_loss),
        final_val_loss=finite_or_none(state.val_loss),
        steps=state.step,
        tokens=state.tokens,
        bad_steps=state.bad_steps,
        seconds=round(state.seconds, 3),
        tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
        config_hash=config_hash(plain_config(cfg)),
        error=f"{type(error).__name__}: {error}" if error else None,
    )
    try:
        directory.write_json("result.json", asdict(result))
    except OSError as refused:
        log.error("result.json could not be written: %s", refused)

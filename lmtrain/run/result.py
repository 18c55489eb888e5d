"""How a run ended: the fields of `result.json`."""

from dataclasses import dataclass


@dataclass
class Result:
    """`result.json`, written last; `objective` is the best validation loss."""

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

"""A logger for lmtrain that takes turns: `python -m lmtrain … logger=[turns]` in this folder is a contender."""

import json
from collections.abc import Mapping

from turns import Turns

from lmtrain.logger.base import RunInfo


class TurnsLogger:
    """Reports lmtrain's own log lines to the contest."""

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.turns: Turns | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.turns is None:
            environment = json.loads((self.run.directory / "environment.json").read_text(encoding="utf-8"))
            device = environment["device"]  # for example "cpu (2 threads), bfloat16, compiled"
            self.turns = Turns(
                parameters=environment["model"]["parameters"],
                dtype=next(name for name in ("bfloat16", "float16", "float32") if name in device),
                compiled="compiled" in device,
            )
        self.turns.report(step, [metrics["train/loss"]])

    def close(self, status: str) -> None:
        """Do nothing: the contest ends this process in the middle of the run."""

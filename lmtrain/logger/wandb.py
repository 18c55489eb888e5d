"""Weights & Biases, on a thread of its own: it can be slow, hang or fail without the run noticing."""

import logging
import queue
import threading
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PositiveFloat

from lmtrain.logger.base import RunInfo

log = logging.getLogger(__name__)

STEP = "step"


class WandbLogger:
    """Logs to W&B; all its files lie under `<run directory>/wandb/`.

    Offline (the default) nothing leaves the machine; `wandb sync` uploads later. Online, a server that refuses or
    can't be reached within `init_timeout_s` makes the run an offline one, with a warning. Whatever W&B does,
    `log` returns at once and `close` within the time-outs.
    """

    def __init__(
        self,
        run: RunInfo,
        *,
        project: str,
        mode: Literal["offline", "online", "disabled"] = "offline",
        entity: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        init_timeout_s: PositiveFloat = 30.0,
        finish_timeout_s: PositiveFloat = 60.0,
    ) -> None:
        self.run, self.mode = run, mode
        self.init_timeout_s, self.finish_timeout_s = init_timeout_s, finish_timeout_s
        self.init = {
            "project": project,
            "entity": entity,
            "tags": tags,
            "notes": notes,
            "id": run.id,
            "name": run.name,
            "group": run.group,
            "config": run.config,
            "dir": str(run.directory),
            "resume": "allow",
        }
        self._queue: queue.SimpleQueue[dict[str, Any] | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._queue.put({STEP: step, **metrics})

    def close(self, status: str) -> None:
        self._queue.put(status)
        self._thread.join(timeout=self.init_timeout_s + self.finish_timeout_s)
        if self._thread.is_alive():
            log.warning(
                "W&B did not finish in time; everything is in metrics.jsonl, and `wandb sync %s` uploads what W&B has",
                self.run.directory / "wandb",
            )

    def _work(self) -> None:
        try:
            import wandb  # 0.6 s that the first step need not wait for

            run = self._start(wandb)
            # Our own axis: W&B's step goes on counting across resumes, and drops what comes again.
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            while isinstance(item := self._queue.get(), dict):
                run.log(item)
            run.summary["status"] = item
            run.finish(exit_code=0 if item == "completed" else 1)
        except Exception as error:
            log.warning("W&B failed and is left out from here (metrics.jsonl has everything): %s", _first_line(error))
            log.debug("its traceback", exc_info=True)

    def _start(self, wandb: Any) -> Any:
        def settings() -> Any:  # fresh each time: init keeps state in it
            return wandb.Settings(
                init_timeout=self.init_timeout_s,
                finish_timeout=self.finish_timeout_s,
                silent=True,
                console="off",  # our train.log has it
                x_disable_stats=False,
                disable_git=True,  # environment.json has it
                save_code=False,
            )

        try:
            return wandb.init(mode=self.mode, settings=settings(), **self.init)
        except Exception as error:
            if self.mode != "online":
                raise
            log.warning("W&B is not reachable (%s); logging offline, `wandb sync` uploads it later", _first_line(error))
            return wandb.init(mode="offline", settings=settings(), **self.init)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Times real steps of a run with several micro-batch sizes, in a process of its own.

Run as a module, it reads `{"config": …, "kept": …, "result": FILE}` from a line of its standard input and writes the
result as JSON into the file. When its input ends earlier, it exits: the process that needs the result has ended.
"""

import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.batch_size import possible_sizes, with_batch_size
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.micro_batch.memory import largest_that_fits, usable_memory
from lmtrain.micro_batch.search import TimedSize, search
from lmtrain.parts import build_system, check_model_size
from lmtrain.plan.measure import timed_steps
from lmtrain.system import System

STEPS = 4  # at most, for each size
ENOUGH_S = 2.0
LONGEST_S = 120.0  # no further size is tried after this time
# A timed step has at least so many tokens, if the global batch has them. So the update, which is the same for every
# size, counts about as much as in the run.
STEP_TOKENS = {"cpu": 4096, "cuda": 65536}
NO_MEMORY = ("out of memory", "alloc_failed")  # in errors of CUDA libraries


def trial(cfg: DictConfig, kept: Mapping[str, Any]) -> list[TimedSize]:
    """Return the measured micro-batch sizes of a config whose `data.batch_size` is `auto`.

    `kept` is what `auto` became in the run that is continued, by config key.

    Raises:
        ConfigError: the parts show a mistake when they are built, or not even one sequence fits into the memory.
    """
    with raising_config_errors():
        check_model_size(cfg)
        system = build_system(cfg)
    on_cpu = system.device.type == "cpu"
    usable = usable_memory(system)  # before anything is allocated
    sizes = possible_sizes(cfg)
    with raising_config_errors():
        guess = largest_that_fits(cfg, system, sizes, kept)
    if guess is None and not on_cpu:
        guess = sizes[0]  # a compiled step may need less than the prediction, and a GPU survives the attempt
    timed = [] if guess is None else _search(cfg, system, kept, sizes, guess, usable)
    if not timed:
        raise ConfigError(
            f"data.batch_size=auto: not even one sequence of data.block_size={cfg.data.block_size} fits into the "
            f"memory of {system.device}; use a smaller model or block_size"
        )
    return timed


def _search(
    cfg: DictConfig, system: System, kept: Mapping[str, Any], sizes: Sequence[int], guess: int, usable: int
) -> list[TimedSize]:
    least = STEP_TOKENS[system.device.type] // cfg.data.block_size
    sequences = min(cfg.trainer.global_batch_size, max(guess, least))
    started = time.monotonic()
    return search(
        sizes,
        guess,
        lambda size: time_size(cfg, system, kept, size, sequences),
        may_grow=lambda timed, size: timed.peak_bytes * size / timed.size <= usable,
        has_time=lambda: time.monotonic() - started < LONGEST_S,
    )


def time_size(cfg: DictConfig, system: System, kept: Mapping[str, Any], size: int, sequences: int) -> TimedSize | None:
    """Time steps of about `sequences` sequences in micro-batches of a size; None if there is not enough memory."""
    micro_batches = max(1, sequences // size)
    attempt = with_batch_size(cfg, size)
    attempt.trainer.gradient_accumulation_steps, attempt.trainer.global_batch_size = micro_batches, None
    for key in {"batch_schedule", "length_schedule"} & attempt.trainer.keys():
        attempt.trainer[key] = None  # the timed steps are alike, and as long as most of the run's
    if system.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(system.device)
    try:
        with raising_config_errors():
            seconds, peak_bytes = timed_steps(attempt, system, STEPS, ENOUGH_S, kept=kept, choose_for=cfg)
    except RuntimeError as error:  # with torch.OutOfMemoryError
        if system.device.type != "cuda" or not any(text in str(error).lower() for text in NO_MEMORY):
            raise
        return None
    finally:
        _clean_up(system)
    return TimedSize(size, [step / (micro_batches * size) for step in seconds], peak_bytes)


def _clean_up(system: System) -> None:
    if system.compiles:
        torch.compiler.reset()  # otherwise the next size would be compiled for variable sizes
    gc.collect()
    if system.device.type == "cuda":
        torch.cuda.empty_cache()


def _exit_when_input_ends() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_when_input_ends, daemon=True).start()
    try:
        result: dict[str, Any] = {
            "timed": [dataclasses.asdict(each) for each in trial(OmegaConf.create(request["config"]), request["kept"])]
        }
    except ConfigError as error:
        result = {"mistake": str(error)}
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

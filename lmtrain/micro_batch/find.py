"""Finds the micro-batch size of a run by trial, without a trace in the run.

The trial is a process of its own. So it changes neither weights nor random generators of the run, nor its place in the
data, what its compiler has learned, the peak of its memory, or the state of a user's modules.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.config.batch_size import ACCUMULATION, SIZE, is_auto, part_of_one_process, possible_sizes, with_batch_size
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.micro_batch.search import TimedSize, choose
from lmtrain.terminal.console import console


@dataclass(frozen=True)
class FoundSize:
    """A config with a micro-batch size in numbers.

    Attributes:
        cfg: The config.
        notes: Lines for the user that say how the size was found; none if the config had a number.
        resolved: The size by config key, for `environment.json`; empty if the config had a number.
    """

    cfg: DictConfig
    notes: Sequence[str] = ()
    resolved: dict[str, Any] = field(default_factory=dict)


def found_size(cfg: DictConfig, kept: Mapping[str, Any], processes: int = 1) -> FoundSize:
    """Return a checked config with the size of a micro-batch, which is found by trial if it is `auto`.

    `kept` is what `auto` became in the run that is continued, by config key: the trial computes as the run will. Of a
    run with several processes, it computes the part of one.

    Raises:
        ConfigError: the parts show a mistake when they are built, nothing fits into the memory, or the trial failed.
    """
    if not is_auto(cfg):
        return FoundSize(cfg)
    with console.status("timing micro-batch sizes"):
        timed = _run_trial(part_of_one_process(cfg, processes), kept)
    chosen = choose(timed)
    cfg = with_batch_size(cfg, chosen.size)
    by_size = sorted(timed, key=lambda each: each.size)
    tried = ", ".join(f"{each.size}: {round(cfg.data.block_size / each.best):,}" for each in by_size)
    note = (
        f"{SIZE}=auto: {chosen.size}, and {ACCUMULATION}={cfg.trainer.gradient_accumulation_steps} (tokens/s by size: "
        f"{tried})"
    )
    return FoundSize(cfg, [note], {SIZE: chosen.size})


def expected_size(cfg: DictConfig) -> FoundSize:
    """Return a checked config with the largest size that fits by prediction, if it is `auto`; nothing is run.

    Raises:
        ConfigError: the parts show a mistake when they are built.
    """
    if not is_auto(cfg):
        return FoundSize(cfg)
    from lmtrain.micro_batch.memory import largest_that_fits  # loads what a run does not need
    from lmtrain.parts import build_system

    with raising_config_errors():
        system = build_system(cfg)
        sizes = possible_sizes(cfg)
        size = largest_that_fits(cfg, system, sizes, kept_choices(None, cfg.get("fork"))) or sizes[0]
    note = f"{SIZE}=auto: planned with {size}, the largest that fits by prediction; a run times it and other sizes"
    return FoundSize(with_batch_size(cfg, size), [note], {SIZE: size})


def _run_trial(cfg: DictConfig, kept: Mapping[str, Any]) -> list[TimedSize]:
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder, "result.json"), Path(folder, "output")
        request = {"config": OmegaConf.to_container(cfg), "kept": dict(kept), "result": str(result)}
        # The modules of this process, and no others: a resumed run has made the folder of a stranger the current one.
        command = [sys.executable, "-P", "-m", "lmtrain.micro_batch.trial"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with (
            output.open("wb") as log,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
            ) as process,
        ):
            assert process.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # it has failed already
                    process.stdin.write(json.dumps(request).encode() + b"\n")
                    process.stdin.flush()  # and not closed: its end would stop the trial
                code = process.wait()
            except BaseException:  # a signal
                process.kill()
                process.wait()  # leaving Popen does not wait after a KeyboardInterrupt
                raise
        if not result.is_file():
            lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
            raise ConfigError(
                f"{SIZE}=auto: the trial failed with exit code {code} ({lines[-1] if lines else 'no output'}); give a "
                "number"
            )
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "mistake" in found:
        raise ConfigError(found["mistake"])
    return [TimedSize(**each) for each in found["timed"]]

"""`python -m lmtrain benchmark loops [overrides]`: times training steps against bare training loops.

Each contender is a separate process. They take turns, one round each, so that noise of the machine affects all of them
equally; the ratios within a round are the result.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.table import Table

from lmtrain.benchmark.turns import WARMUP_ROUNDS, median, ratio, take_turns
from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose
from lmtrain.config.preflight import preflight
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted, si

if TYPE_CHECKING:
    from lmtrain.loop.training_parts import Parts

CONTENDERS = {
    "trainer": "lmtrain's Trainer.fit",
    "bare": "a bare loop with the same model, optimizer, batches and system settings",
    "plain": "the bare loop, eager, with the C library's default memory settings",
}
MISTAKE = "mistake: "  # begins the answer of a process that can't build its parts
PLAIN = {"keep_freed_memory": False, "compile": False}


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark loops",
        description="Times the optimizer steps of a config in the trainer and in bare loops, which take turns.",
        epilog="Example: python -m lmtrain benchmark loops experiments=shakespeare_char --steps 50",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--rounds", type=WholeNumber(1), default=11, help="measured rounds (default: 11)")
    parser.add_argument("--steps", type=WholeNumber(1), default=5, help="optimizer steps per round (default: 5)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    cfg = preflight(compose(options.overrides))
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(Contender(name, options.overrides, options.steps)) for name in CONTENDERS
        }
        rounds = take_turns(processes, options.rounds, lambda process, _: process.round(), warmup=WARMUP_ROUNDS)
    step_tokens = cfg.data.batch_size * cfg.data.block_size * cfg.trainer.gradient_accumulation_steps
    table = Table("loop", "ms per step", "tokens/s", "ratio to bare", "ratio to plain")
    for name in CONTENDERS:
        seconds = median(rounds, name)
        table.add_row(
            name,
            f"{1000 * seconds:.1f}",
            si(step_tokens / seconds),
            f"{ratio(rounds, name, 'bare'):.3f}",
            f"{ratio(rounds, name, 'plain'):.3f}",
        )
    console.print(
        f"medians of {counted(options.rounds, 'round')} of {counted(options.steps, 'step')}; "
        "ratios are taken within each round"
    )
    console.print(table)
    for name, meaning in CONTENDERS.items():
        console.print(f"  {name}: {meaning}")
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, steps=options.steps, seconds=rounds)
    return 0


class Contender:
    """A loop in a separate process, which runs a round on request."""

    def __init__(
        self, name: str, overrides: Sequence[str], steps: int, environment: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "lmtrain.benchmark.loops", name, str(steps), *overrides]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def round(self) -> float:
        """Run a round; return the seconds per step."""
        self.begin()
        return self.end()

    def begin(self) -> None:
        """Start a round."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has failed, as `end` reports
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def end(self) -> float:
        """Wait for the end of the round; return the seconds per step, as measured in the process.

        Raises:
            ConfigError: the process found a mistake in the config.
        """
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark's process failed with exit code {self.process.wait()}")
        if answer.startswith(MISTAKE):
            raise ConfigError(answer.removeprefix(MISTAKE).rstrip())
        return float(answer)

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def _contend(name: str, steps: int, overrides: Sequence[str]) -> None:
    """Run a contender in its process: for each line of input it runs a round and prints the seconds per step."""
    from lmtrain.parts import build_parts, build_system

    cfg = preflight(compose(overrides))
    try:
        with raising_config_errors():
            parts = build_parts(cfg, build_system(cfg, **(PLAIN if name == "plain" else {})))
    except ConfigError as error:
        print(MISTAKE + str(error).replace("\n", "; "), flush=True)  # an answer is one line
        return
    if name == "trainer":
        _run_trainer(cfg, steps, parts)
    else:
        _run_bare(cfg, steps, parts)


class _Pacemaker:
    """A logger that prints the trainer's step times and waits for the next turn while its step clock is stopped."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > 1:
            print(metrics["step_time_ms"] / 1000, flush=True)
        _wait_for_turn()

    def rewind(self, step: int) -> None:
        """Do nothing; it is never called, because the parent kills this process."""

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Do nothing; see `rewind`."""

    def close(self, status: str) -> None:
        """Do nothing; see `rewind`."""


def _wait_for_turn() -> None:
    if not sys.stdin.readline():
        sys.exit(0)


def _run_trainer(cfg: DictConfig, steps: int, parts: "Parts") -> None:
    from lmtrain.benchmark.step.training import ONLY_STEPS
    from lmtrain.parts import build_scratch_trainer

    nowhere = Path(tempfile.gettempdir()) / f"lmtrain-benchmark-loops-{os.getpid()}"  # exists only after a bad step
    changes = {**ONLY_STEPS, "log_interval": steps}
    build_scratch_trainer(cfg, parts, nowhere, _Pacemaker(), **changes).fit()


def _run_bare(cfg: DictConfig, steps: int, parts: "Parts") -> None:
    import torch

    system, model, optimizer = parts.system, parts.model, parts.optimizer
    forward = system.compile(model)
    scaler = system.scaler()
    accumulation = cfg.trainer.gradient_accumulation_steps
    step = 0
    while True:
        batches = [parts.train_loader.batch(step * accumulation + i) for i in range(steps * accumulation)]
        on_device = [(x.to(system.device), y.to(system.device)) for x, y in batches]
        _wait_for_turn()
        system.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = parts.schedule(step)
            for _ in range(accumulation):
                x, y = on_device.pop()
                with system.autocast():
                    _, loss = forward(x, y)
                scaler.scale(loss / accumulation).backward()
            scaler.unscale_(optimizer)
            if cfg.trainer.grad_clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        system.synchronize()
        print((time.perf_counter() - started) / steps, flush=True)


if __name__ == "__main__":
    _contend(sys.argv[1], int(sys.argv[2]), sys.argv[3:])

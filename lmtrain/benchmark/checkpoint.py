"""`python -m lmtrain benchmark checkpoint [overrides]`: measures how long a checkpoint stops training."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lmtrain.benchmark.turns import median, ratio, rotated
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import si

if TYPE_CHECKING:
    from lmtrain.checkpoint.files import Checkpoint
    from lmtrain.checkpoint.folder import CheckpointFolder
    from lmtrain.system import System

STEP_TOKENS = 64  # few, so that several steps run during a save
MEASURED = {
    "synchronous": "CheckpointFolder.save, which writes, flushes and hashes while the loop waits",
    "stall": "the time for which Saver.save stops the loop; a thread does the rest",
    "background": "the time until that thread has finished the checkpoint, with nothing else running",
    "copy": "a plain copy of the same tensors into host memory that is already allocated",
    "step": f"a training step of {STEP_TOKENS} random tokens: forward, backward and optimizer",
    "step_meanwhile": "the same step while a checkpoint is written in the background",
}
FIRST = {
    "first": "the first Saver.save, which has to allocate memory for its copies",
    "reserved": "the first Saver.save after Saver.reserve",
}
TARGET = 0.10  # largest stall, as a share of a synchronous save


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark checkpoint",
        description="Times how a config's model and optimizer are saved, in the training loop and in the background.",
        epilog="Example: python -m lmtrain benchmark checkpoint model=llama_10m model.vocab_size=4096. It needs no "
        "data and writes to a temporary folder in the current folder.",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--rounds", type=WholeNumber(1), default=7, help="measured rounds (default: 7)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    cfg = check(compose(options.overrides), groups=["model", "optimizer", "system"])
    if cfg.model.get("vocab_size", 0) is None:
        raise ConfigError("model.vocab_size=null: give a number, because this benchmark reads no data")

    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=Path.cwd()) as place:
        with raising_config_errors():
            contest = _Contest(cfg, Path(place))
        first = contest.first_stalls()
        contenders: dict[str, Callable[[], dict[str, float]]] = {
            "synchronous": contest.synchronous,
            "background": contest.in_background,
            "copy": contest.plain_copy,
            "steps": contest.steps,
        }
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            seconds: dict[str, float] = {}
            for _, measure in rotated(contenders, number):
                seconds |= measure()
            rounds.append(seconds)
    _show(contest, first, rounds)
    if options.json:
        write_json_with_machine(
            options.json,
            overrides=options.overrides,
            device=contest.system.describe(),
            bytes=contest.bytes,
            first_stalls=first,
            seconds=rounds,
        )
    return 0


def _show(contest: "_Contest", first: dict[str, float], rounds: Sequence[dict[str, float]]) -> None:
    synchronous = median(rounds, "synchronous")
    table = Table("", "seconds", "ratio to synchronous", "ratio to copy")
    for name, seconds in first.items():
        table.add_row(f"stall, {name}", f"{seconds:.3f}", f"{seconds / synchronous:.3f}", "")
    for name in MEASURED:
        apart = name.startswith("step")
        table.add_row(
            name,
            f"{median(rounds, name):.3f}",
            "" if apart else f"{ratio(rounds, name, 'synchronous'):.3f}",
            "" if apart else f"{ratio(rounds, name, 'copy'):.2f}",
        )
    console.print(
        f"{si(contest.bytes)}B of model and optimizer on {contest.system.describe()}; medians of {len(rounds)} rounds; "
        "ratios are taken within each round"
    )
    console.print(table)
    console.print(
        f"  target: a stall of at most {TARGET:.2f} times a synchronous save; while a checkpoint is written, a step "
        f"takes {ratio(rounds, 'step_meanwhile', 'step'):.2f} times as long"
    )
    for name, meaning in {**FIRST, **MEASURED}.items():
        console.print(f"  {name}: {meaning}")


class _Contest:
    """A model and optimizer during training, and the ways to save them; each method returns measured seconds."""

    def __init__(self, cfg: Any, place: Path) -> None:
        import torch

        from lmtrain.checkpoint.folder import CheckpointFolder
        from lmtrain.checkpoint.saver import Saver
        from lmtrain.parts import build_model, build_optimizer, build_system

        self.system: System = build_system(cfg, compile=False)
        self.model = build_model(cfg).to(self.system.device)
        self.optimizer = build_optimizer(cfg, dict(self.model.named_parameters()))
        length = min(STEP_TOKENS, cfg.data.block_size)
        ids = torch.randint(cfg.model.vocab_size, (1, length + 1), device=self.system.device)
        self.x, self.y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.saved = 0
        self._step()  # creates the optimizer's state
        self.folder = CheckpointFolder(place / "synchronous")
        self.background = _with_end_time(CheckpointFolder)(place / "background")
        self.saver = Saver(self.background)
        tensors = [tensor for group in self._state().tensors.values() for tensor in group.values()]
        self.bytes = sum(tensor.nbytes for tensor in tensors)
        # Filled with zeros, because the kernel provides memory only when it is first written.
        self.copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).zero_() for tensor in tensors
        ]

    def first_stalls(self) -> dict[str, float]:
        from lmtrain.checkpoint.saver import Saver

        first = self.in_background()["stall"]
        # The earlier saver is kept until the end, so that the new one does not get its memory.
        earlier, self.saver = self.saver, Saver(self.background)
        self.saver.reserve(self._state())
        self.saver.wait()
        reserved = self.in_background()["stall"]
        del earlier
        return {"first": first, "reserved": reserved}

    def synchronous(self) -> dict[str, float]:
        from lmtrain.checkpoint.folder import Retention

        self.saved += 1
        started = self._now()
        self.folder.save(self.saved, self._state(), Retention(newest=1))
        return {"synchronous": time.perf_counter() - started}

    def in_background(self) -> dict[str, float]:
        started = self._now()
        stall = self._start_saving(started)
        self.saver.wait()
        return {"stall": stall, "background": self.background.ended - started}

    def plain_copy(self) -> dict[str, float]:
        tensors = [tensor for group in self._state().tensors.values() for tensor in group.values()]
        started = self._now()
        for copy, tensor in zip(self.copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        return {"copy": self._now() - started}

    def steps(self) -> dict[str, float]:
        """Time as many steps as run during a save, and as many after it."""
        self._start_saving(self._now())
        started, steps = self._now(), 0
        while not self.background.done.is_set():
            self._step()
            steps += 1
        meanwhile = (self._now() - started) / max(steps, 1)
        self.saver.wait()
        started = self._now()
        for _ in range(max(steps, 1)):
            self._step()
        return {"step": (self._now() - started) / max(steps, 1), "step_meanwhile": meanwhile}

    def _start_saving(self, started: float) -> float:
        from lmtrain.checkpoint.folder import Retention

        self.saved += 1
        self.background.done.clear()
        self.saver.save(self.saved, self._state(), Retention(newest=1))
        return time.perf_counter() - started

    def _state(self) -> "Checkpoint":
        from lmtrain.checkpoint.files import Checkpoint
        from lmtrain.checkpoint.optimizer_state import optimizer_state

        tensors, plain = optimizer_state(self.optimizer, self.model.named_parameters())
        return Checkpoint(
            {"model": self.model.state_dict(), "optimizer": tensors, "rng-0": self.system.generator_state()},
            {"optimizer": plain},
        )

    def _step(self) -> None:
        with self.system.autocast():
            _, loss = self.model(self.x, self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.system.synchronize()

    def _now(self) -> float:
        self.system.synchronize()
        return time.perf_counter()


def _with_end_time(folder: type["CheckpointFolder"]) -> Any:
    """Return a subclass that records when its last save ended."""

    class WithEndTime(folder):  # type: ignore[valid-type, misc]
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.done, self.ended = threading.Event(), 0.0

        def save(self, *arguments: Any) -> Path:
            try:
                return Path(super().save(*arguments))
            finally:
                self.ended = time.perf_counter()
                self.done.set()

    return WithEndTime

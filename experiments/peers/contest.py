"""Runs contenders as processes that take turns, as many at a time as the memory holds."""

import dataclasses
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from settings import HERE, Entry

PATIENCE_S = 900  # for a round, or a start with compilation
COMPARED_STEPS = 30  # later, differences of rounding have grown
SPARE = 1 << 30  # bytes of memory left for everything else
CONTENDERS = HERE / "contenders"
ROOT = HERE.parents[1]
FOREVER = 10**9
MAX_STEPS = 10**6  # more than any contest has
LMTRAIN = (  # nothing but training: these only turn off what the other contenders don't do either
    f"trainer.eval_interval={FOREVER}",
    f"trainer.checkpoint_interval={FOREVER}",
    "trainer.eval_tokens=64",
    "sample_tokens=0",
    "logger=[turns]",
)


class ContenderError(RuntimeError):
    """A contender ended or did not answer; the message has the last line that it printed."""


class Contender:
    """One contender: starts its process when it is needed, and remembers what it reported.

    Attributes:
        facts: What it said about itself: parameters, number format, compiled, versions.
        curve: Loss by step; for a tool that logs means, the mean over the steps since the entry before.
        peak_bytes: The most memory it has used.
        held_bytes: Memory it keeps between its turns.
        needed_bytes: Memory that must be free for it; 0 if that is not known yet.
        starts: How many times it was started.
    """

    def __init__(self, name: str, entry: Entry, python: str, task: Mapping[str, Any], folder: Path, steps: int) -> None:
        self.name, self.entry, self.python, self.steps = name, entry, python, steps
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task = {
            **task,
            "dtype": entry.dtype,
            "compile": entry.compile,
            "log_interval": steps,
            "max_steps": MAX_STEPS,
            "overrides": [*task["overrides"], *entry.overrides],
            "folder": str(self.folder),
        }
        self.facts: dict[str, Any] = {}
        self.curve: dict[int, float] = {}
        self.mean = False
        self.peak_bytes = self.held_bytes = self.needed_bytes = self.capacity_bytes = self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Start the process and let it warm up: the first step, and the steps up to the end of the first round."""
        request_read, self._requests = os.pipe()
        self._reports, report_write = os.pipe()
        self.starts += 1
        run_dir = self.folder / f"run-{os.getpid()}-{self.starts}"
        (self.folder / "task.json").write_text(json.dumps(self.task), encoding="utf-8")
        environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "PEERS_PIPES": f"{request_read},{report_write}"}
        if self.entry.script == "lmtrain":
            overrides = [*self.task["overrides"], *LMTRAIN, f"trainer.log_interval={self.steps}"]
            command = ["-m", "lmtrain", *overrides, f"hydra.run.dir={run_dir}"]
        else:
            command = [str(CONTENDERS / self.entry.script), str(self.folder / "task.json")]
        if self.entry.environment is None:
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self.folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                [self.python, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(request_read, report_write),
                cwd=CONTENDERS if self.entry.script == "lmtrain" else self.folder,
                env=environment,
            )
        os.close(request_read)
        os.close(report_write)
        self._buffer, self._step = b"", 0
        first = self.starts == 1
        while self._step < self.steps or (self.steps == 1 and self._step < 2):  # compiled after step 1, warm after 2
            if self._step:
                self._go()
            self._read_report(record=first)

    def round(self) -> float:
        """Train a round; return the seconds per step."""
        self._go()
        return float(self._read_report(record=self.starts == 1)["seconds"])

    def stop(self) -> None:
        """End the process, which gives its memory back."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            os.close(self._requests)
            os.close(self._reports)
            self.process, self.held_bytes = None, 0

    def _go(self) -> None:
        os.write(self._requests, b"go\n")

    def _read_report(self, *, record: bool) -> dict[str, Any]:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))
            read = os.read(self._reports, 1 << 20) if ready else b""
            if not read:
                problem = f"exit code {self.process.wait()}" if ready else f"no answer in {PATIENCE_S} s"
                raise ContenderError(f"{problem}: {self._last_line()}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        report: dict[str, Any] = json.loads(line)
        self.facts |= {key: report[key] for key in ("parameters", "dtype", "compiled", "versions") if key in report}
        self._step, self.mean = report["step"], report["mean"]
        if record:
            losses = report["losses"]
            self.curve |= {self._step - len(losses) + 1 + i: loss for i, loss in enumerate(losses)}
        host_held, host_peak = memory_of(self.process.pid)
        self.held_bytes = report.get("held_bytes", host_held)
        self.peak_bytes = max(self.peak_bytes, report.get("peak_bytes", host_peak))
        self.needed_bytes = max(self.needed_bytes, self.peak_bytes, self.held_bytes)
        self.capacity_bytes = report.get("capacity_bytes", 0)
        return report

    def _last_line(self) -> str:
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"{last} (see {self.folder / 'log.txt'})"


def memory_of(pid: int) -> tuple[int, int]:
    """Return the bytes of RAM that a process uses, and the most that it has used."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    values = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    return 1024 * int(values["VmRSS"]), 1024 * int(values["VmHWM"])


def available_memory() -> int:
    """Return the bytes of RAM that processes can still take."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable"))


@dataclasses.dataclass
class Contest:
    """Contenders that take turns. Those that fail are left out, with the reason.

    Attributes:
        contenders: The contenders that are still in, by name.
        guess_bytes: Memory that a contender may need, until its own peak is known.
        left_out: Reasons by name.
    """

    contenders: dict[str, Contender]
    guess_bytes: int
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.capacity_bytes = available_memory() - SPARE

    def play_round(self, number: int) -> dict[str, float]:
        """Return the seconds per step of each contender; each round starts with another contender."""
        names = list(self.contenders)
        if not names:
            raise SystemExit("no contender is left")
        shift = number % len(names)
        seconds = {}
        for name in names[shift:] + names[:shift]:
            try:
                seconds[name] = self._turn(self.contenders[name])
                print(f"  {name:28} {1000 * seconds[name]:10.1f} ms per step", flush=True)
            except ContenderError as error:
                self._leave_out(name, str(error))
        return seconds

    def close(self) -> None:
        for contender in self.contenders.values():
            contender.stop()

    def _turn(self, contender: Contender) -> float:
        self._make_room(contender)
        if not contender.alive:
            contender.start()
            self.capacity_bytes = contender.capacity_bytes or self.capacity_bytes
        return contender.round()

    def _make_room(self, contender: Contender) -> None:
        """Stop other contenders, the largest first, until the memory is enough for this one."""
        need = contender.needed_bytes or self.guess_bytes
        others = [other for other in self.contenders.values() if other.alive and other is not contender]
        others.sort(key=lambda other: other.held_bytes)
        while others and need + sum(other.held_bytes for other in others) > self.capacity_bytes:
            others.pop().stop()

    def _leave_out(self, name: str, reason: str) -> None:
        print(f"  {name:28} left out: {reason}", flush=True)
        self.left_out[name] = reason
        self.contenders.pop(name).stop()


def curve_difference(curve: Mapping[int, float], mean: bool, base: Mapping[int, float]) -> float:
    """Return the largest relative difference of losses from those of the base at the same steps.

    With `mean`, a loss of the curve is the mean over the steps since the one before.
    """
    differences: list[float] = []
    before = 0
    for step, loss in sorted(curve.items()):
        if step > COMPARED_STEPS:
            break
        steps: Sequence[int] = range(before + 1, step + 1) if mean else [step]
        if all(each in base for each in steps):
            expected = sum(base[each] for each in steps) / len(steps)
            differences.append(abs(loss - expected) / expected)
        before = step
    return max(differences, default=float("nan"))

"""What a benchmark of several processes has found, and how it is printed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lmtrain.benchmark.turns import median
from lmtrain.terminal.console import console
from lmtrain.terminal.units import counted, percent, si, si_unit

TRAIN, WITHOUT_GRADIENTS, SEND = "train", "without gradients", "send"
UNKNOWN = "n/a"
NOISE, FEWEST_ROUNDS = 0.5, 3
ERROR_OF_MEDIAN = 1.253 * 1.483  # of a normal distribution: standard error times √n, per median absolute deviation


@dataclass(frozen=True)
class Scaling:
    """The seconds of steps by round and contender, and the bytes that processes sent.

    Attributes:
        rounds: Seconds per step by the name of a contender, such as `train, 2`.
        sizes: The numbers of processes.
        sent: Bytes of a step that each process sent in each round; nothing where they are not counted.
        theory: Bytes that a process sends in a step by the formulas of `plan`.
        held: Bytes of weights and of the optimizer's state of each process.
        step_tokens: Tokens of a step.
    """

    rounds: Sequence[Mapping[str, float]]
    sizes: Sequence[int]
    sent: Mapping[int, Sequence[float]]
    theory: Mapping[int, float]
    held: Mapping[int, Sequence[Mapping[str, int]]]
    step_tokens: int

    def seconds(self, do: str, size: int) -> float:
        return median(self.rounds, f"{do}, {size}")

    def efficiency(self, size: int) -> float:
        """Return the speed of each process over that of each in the smallest number, as a median over rounds."""
        first = self.sizes[0]
        return statistics.median(
            first * each[f"{TRAIN}, {first}"] / (size * each[f"{TRAIN}, {size}"]) for each in self.rounds
        )

    def hidden(self, size: int) -> tuple[float, float] | None:
        """Return the share of the time of gradients by which a step does not get longer, and its standard error.

        The error comes from the median absolute deviation over rounds. None for one process, and where there are too
        few rounds or too much noise to say anything.
        """
        if size == 1:
            return None
        longer = [each[f"{TRAIN}, {size}"] - each[f"{WITHOUT_GRADIENTS}, {size}"] for each in self.rounds]
        sending, middle = self.seconds(SEND, size), statistics.median(longer)
        deviation = statistics.median(abs(each - middle) for each in longer)
        error = ERROR_OF_MEDIAN * deviation / len(longer) ** 0.5 / sending
        return None if len(longer) < FEWEST_ROUNDS or error > NOISE else (1 - middle / sending, error)

    def sent_bytes(self, size: int) -> float | None:
        """Return the bytes that a process sends in a step, the mean over processes and rounds."""
        return statistics.fmean(self.sent[size]) if self.sent[size] else None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON, with units in the keys."""
        return {
            "processes": [
                {
                    "size": size,
                    "step_seconds": self.seconds(TRAIN, size),
                    "tokens_per_second": self.step_tokens / self.seconds(TRAIN, size),
                    "efficiency": self.efficiency(size),
                    "without_gradients_seconds": None if size == 1 else self.seconds(WITHOUT_GRADIENTS, size),
                    "send_seconds": None if size == 1 else self.seconds(SEND, size),
                    "hidden": hidden[0] if (hidden := self.hidden(size)) else None,
                    "hidden_error": hidden[1] if hidden else None,
                    "sent_bytes_per_step": self.sent_bytes(size),
                    "planned_bytes_per_step": self.theory[size],
                    "held_bytes": list(self.held[size]),
                }
                for size in self.sizes
            ],
            "seconds": self.rounds,
        }


def show(found: Scaling, threads: str) -> None:
    """Print a row for each number of processes."""
    table = Table("processes", "ms per step", "tokens/s", "efficiency", "no gradients", "gradients alone", "hidden")
    for size in found.sizes:
        hidden = found.hidden(size)
        table.add_row(
            str(size),
            f"{1000 * found.seconds(TRAIN, size):.1f}",
            si(found.step_tokens / found.seconds(TRAIN, size)),
            percent(found.efficiency(size)),
            "" if size == 1 else f"{1000 * found.seconds(WITHOUT_GRADIENTS, size):.1f} ms",
            "" if size == 1 else f"{1000 * found.seconds(SEND, size):.1f} ms",
            "" if size == 1 else "noise" if hidden is None else f"{hidden[0]:.0%} ± {hidden[1]:.0%}",
        )
    console.print(table)
    table = Table("processes", "each sends in a step", "plan calculates", "ratio", "weights of a process", "state")
    for size in found.sizes:
        sent, theory = found.sent_bytes(size), found.theory[size]
        table.add_row(
            str(size),
            UNKNOWN if sent is None else si_unit(sent, "B"),
            si_unit(theory, "B"),
            f"{sent / theory:.3f}" if sent is not None and theory else UNKNOWN,
            *(si_unit(max(each[kind] for each in found.held[size]), "B") for kind in ("weights", "optimizer")),
        )
    console.print(table)
    console.print(
        f"  medians of {counted(len(found.rounds), 'round')}; ratios are taken within each round; threads per process: "
        f"{threads}"
    )
    console.print("  efficiency: speed per process, over that of the smallest number of processes")
    console.print("  no gradients: a step in which processes keep their gradients; gradients alone: only sending them")
    console.print(
        "  hidden: share of the time of gradients alone by which a step does not get longer, ± standard error"
    )
    if any(found.hidden(size) is None for size in found.sizes if size > 1):
        console.print(f"  noise: too much to tell; with more --rounds (at least {FEWEST_ROUNDS}) it averages out")
    if any(found.sent_bytes(size) is None for size in found.sizes if size > 1):
        console.print(f"  {UNKNOWN}: NCCL's messages pass no sockets whose bytes are counted")

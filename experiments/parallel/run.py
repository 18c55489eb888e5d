"""Measures whether several processes train as one does: losses, and the price of DDP and FSDP in one process.

    python experiments/parallel/run.py losses overhead --out results.json

`losses` trains 100 steps at 1, 2 and 4 processes with DDP and FSDP. `overhead` times them in one process beside none.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.files.limited import read_json
from lmtrain.files.metrics import read_metrics

MODELS = {
    "llama": ["model=llama_1m", "model.n_layer=2", "model.n_head=2", "model.d_model=64", "model.d_ff=128"],
    "gpt2": ["model=gpt2", "model.n_layer=2", "model.n_head=2", "model.d_model=64", "model.dropout=0.0"],
}
RUN = [
    *("data=tokens", "data.path=tokens", "data.batch_size=4", "data.block_size=64"),
    *("trainer.gradient_accumulation_steps=4", "trainer.log_interval=1", "trainer.eval_interval=20"),
    *("trainer.eval_tokens=2048", "scheduler.warmup_steps=10", "system.device=cpu", "system.dtype=float32"),
    *("system.compile=false", "system.threads=1", "logger=[]", "sample_tokens=0"),
]
COMPARED = ("train/loss", "grad_norm", "val/loss")
ENDS_IN_S = 120


class Ranks:
    """The processes of a run, started as torchrun would start them."""

    def __init__(self, folder: Path, size: int, *arguments: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.processes = []
        for rank in range(size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "lmtrain", *arguments],
                    cwd=folder,
                    env=environment | {name: str(value) for name, value in place.items()},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def wait(self) -> list[int]:
        """Return the exit codes, and check that all end in time."""
        self.outputs = [process.communicate(timeout=ENDS_IN_S)[0] for process in self.processes]
        return [process.returncode for process in self.processes]

    def succeed(self) -> None:
        if any(self.wait()):
            raise SystemExit("\n".join(self.outputs))


def write_tokens(folder: Path) -> None:
    """Write tokens that a model can learn: each depends on the one before, and a tenth is random."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 60_000), ("val", 8_000)):
        tokens = np.zeros(count, np.uint16)
        random_ones, noise = generator.integers(0, 64, count), generator.random(count) < 0.1
        for place in range(1, count):
            tokens[place] = random_ones[place] if noise[place] else (tokens[place - 1] * 5 + 3) % 64
        tokens.tofile(folder / f"{split}.bin")


def metrics(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in line.items() if key in COMPARED} for line in read_metrics(run / "metrics.jsonl")
    ]


def largest_difference(one: Path, other: Path) -> dict[str, float]:
    """Return the largest relative difference of each metric over all steps."""
    first, second = metrics(one), metrics(other)
    assert [line.keys() for line in first] == [line.keys() for line in second]
    return {
        key: max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(first, second, strict=True) if key in a)
        for key in COMPARED
    }


def losses(folder: Path) -> list[dict[str, Any]]:
    """Train 100 steps in one process, and in several."""
    rows = []
    for model, options in MODELS.items():
        run = [*RUN, *options, "model.vocab_size=64", "trainer.max_steps=100"]
        Ranks(folder, 1, *run, f"hydra.run.dir={model}").succeed()
        for parallel in ("ddp", "fsdp"):
            for size in (1, 2, 4):
                name = f"{model}-{parallel}-{size}"
                Ranks(folder, size, *run, f"parallel={parallel}", f"hydra.run.dir={name}").succeed()
                found = largest_difference(folder / model, folder / name)
                rows.append({"model": model, "parallel": parallel, "processes": size, **found})
                print(rows[-1], flush=True)
    return rows


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the time of a step with DDP or FSDP in one process, relative to none; the median of pairs."""
    run = [*RUN, *MODELS["llama"], "model.d_model=256", "model.d_ff=512", "model.vocab_size=64", "data.block_size=256"]
    seconds: dict[str, list[float]] = {"none": [], "ddp": [], "fsdp": []}
    for number in range(rounds):
        for way in random.Random(number).sample(list(seconds), len(seconds)):
            name = f"time-{way}-{number}"
            options = ["trainer.max_steps=60", "trainer.eval_interval=1000", "trainer.eval_tokens=256"]
            Ranks(folder, 1, *run, *options, f"parallel={way}", f"hydra.run.dir={name}").succeed()
            lines = read_metrics(folder / name / "metrics.jsonl")
            times = [after["seconds"] - before["seconds"] for before, after in pairwise(lines[10:-1])]
            seconds[way].append(statistics.median(times))
    found: dict[str, Any] = {"step_ms": {way: 1000 * statistics.median(each) for way, each in seconds.items()}}
    for way in ("ddp", "fsdp"):
        ratios = [other / alone for alone, other in zip(seconds["none"], seconds[way], strict=True)]
        found[f"{way} / none"] = {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("losses", "overhead"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file; parts that it has already stay in it")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    results = read_json(given.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokens(folder / "tokens")
        for part in given.parts:
            results[part] = {
                "losses": lambda: losses(folder),
                "overhead": lambda: overhead(folder, given.rounds),
            }[part]()
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

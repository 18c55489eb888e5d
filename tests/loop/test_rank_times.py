"""A slow process is found by the time that it works, not by the time that it waits."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import Cli
from support.ranks import train_ranks
from support.tokens import TINY, write_tokens
from torch import Tensor

from lmtrain.files.metrics import read_metrics
from lmtrain.loop.rank_times import INTERVALS, RankTimes
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.world import World

CPU = torch.device("cpu")

# A process whose forwards take longer, and whose data come late: what the others wait for.
SLOW_MODEL = """
import os
import time
from lmtrain.model.llama import Llama

class Slow(Llama):
    def forward(self, tokens, targets=None):
        if self.training and os.environ.get("RANK") == "1":
            time.sleep(0.02)
        return super().forward(tokens, targets)
"""


class Gathers(Parallel):
    """Three processes, of which this is one; `others` are the times of the other two."""

    world = World(0, 3)
    others = (10.0, 11.0)

    def every(self, value: Any) -> list[Any]:
        return ["here", "host-1", "host-2"]

    def gathered(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [tensors, *({"ms": torch.tensor([ms], dtype=torch.float64)} for ms in self.others)]


def a_step(times: RankTimes, load_s: float = 0.0, compute_s: float = 0.0, wait_s: float = 0.0) -> None:
    with times.loading():
        time.sleep(load_s)
    times.begin()
    time.sleep(compute_s)
    times.end()
    time.sleep(wait_s)


def test_waiting_for_the_others_does_not_count() -> None:
    times = RankTimes(Gathers(), CPU)
    for _ in range(2):
        a_step(times, load_s=0.02, compute_s=0.03, wait_s=0.2)
    found = times.metrics()
    assert 50 <= found["ranks/slowest_ms"] < 150
    assert (found["ranks/fastest_ms"], found["ranks/slowest"]) == (10.0, 0)
    assert times.metrics() == {}  # there was no step since


def test_where_forwards_wait_for_others_only_loading_counts() -> None:
    parallel = Gathers()
    parallel.shares_model = True
    times = RankTimes(parallel, CPU)
    a_step(times, load_s=0.02, compute_s=0.2)
    assert 20 <= times.metrics()["ranks/slowest_ms"] < 120


def test_one_process_measures_nothing() -> None:
    times = RankTimes(Parallel(), CPU)
    a_step(times)
    assert times.metrics() == {}


@pytest.mark.parametrize(
    ("intervals", "lines"),
    [
        ([(10, 14)] * INTERVALS, ["rank 2 on host-2 is slow"]),
        ([(10, 14)] * (4 * INTERVALS), ["rank 2 on host-2 is slow"]),
        ([(10, 14)] * (INTERVALS - 1) + [(10, 10)] + [(10, 14)] * (INTERVALS - 1), []),
        ([(10, 14), (14, 10)] * INTERVALS, []),
        ([(10, 12)] * (4 * INTERVALS), []),
        ([(10, 14)] * INTERVALS + [(14, 10)] * INTERVALS, ["rank 2 on host-2 is slow", "rank 1 on host-1 is slow"]),
    ],
)
def test_a_rank_that_stays_slow_is_reported_once(
    intervals: list[tuple[float, float]], lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    parallel = Gathers()
    times = RankTimes(parallel, CPU)
    with caplog.at_level(logging.WARNING):
        for parallel.others in intervals:
            times.begin()
            times._seconds = 0.010
            times.metrics()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == lines


@pytest.mark.slow
def test_the_metrics_of_a_run_name_the_slow_process(cli: Cli, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    tiny = [text for text in TINY if not text.startswith("trainer.log_interval")]
    arguments = [*tiny, "data.path=data/tiny", "model._target_=slow.Slow", "trainer.log_interval=3"]
    first, _ = train_ranks(cli, 2, *arguments, "hydra.run.dir=run")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line][1:]
    assert {line["ranks/slowest"] for line in lines} == {1}
    for line in lines:
        assert 20 <= line["ranks/slowest_ms"] <= line["step_time_ms"]
        assert line["ranks/fastest_ms"] < 20
    assert "rank 1 on " in first.stdout + first.stderr
    assert "is slow: it works" in first.stdout + first.stderr

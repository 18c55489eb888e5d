"""Which micro-batch sizes should fit, by a simulated step."""

from typing import Any

import pytest
from support.tokens import TINY, VOCAB_SIZE

from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.micro_batch import memory
from lmtrain.parts import build_system

SIZES = [1, 2, 4, 8]


@pytest.fixture
def cfg() -> Any:
    kept = [text for text in TINY if not text.startswith(("trainer.gradient", "data.batch_size"))]
    more = [f"model.vocab_size={VOCAB_SIZE}", "data.batch_size=auto", "trainer.global_batch_size=8"]
    return check(compose([*kept, "data.path=data/tiny", *more]))


@pytest.mark.parametrize(("usable", "expected"), [(9, None), (10, 1), (16, 2), (79, 4), (80, 8), (10**9, 8)])
def test_the_largest_size_below_the_memory_is_found(
    cfg: Any, monkeypatch: pytest.MonkeyPatch, usable: int, expected: int | None
) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda system: usable)
    monkeypatch.setattr(memory, "needed_memory", lambda cfg, system, size, kept: {1: 10, 2: 16, 4: 40, 8: 80}[size])
    assert memory.largest_that_fits(cfg, build_system(cfg), SIZES, {}) == expected


@pytest.mark.slow
def test_a_larger_micro_batch_needs_more_memory(cfg: Any) -> None:
    system = build_system(cfg)
    small, large = (memory.needed_memory(cfg, system, size, {}) for size in (1, 8))
    logits = 4 * cfg.data.block_size * VOCAB_SIZE  # bytes for one sequence
    assert large > small + 7 * logits


def test_a_model_that_needs_data_starts_with_the_smallest_size(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(cfg: Any) -> Any:
        raise RuntimeError("reads its data")

    monkeypatch.setattr(memory, "build_model", fails)
    assert memory.largest_that_fits(cfg, build_system(cfg), SIZES, {}) == 1


def test_a_job_of_a_sweep_uses_its_share_of_the_memory(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_available", lambda: 1000)
    monkeypatch.setattr(memory, "available_cores", lambda: 8)
    system = build_system(cfg)
    for threads, expected in (("8", 700), ("2", 175), ("16", 700), ("", 700), ("0", 700), ("two", 700)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert memory.usable_memory(system) == expected

"""The training loop that takes turns with a benchmark is the real one: same steps, same bits."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tokens import TINY

from lmtrain.benchmark.step import timeline as timeline_module
from lmtrain.benchmark.step.timeline import PHASES, Timeline, marked
from lmtrain.benchmark.step.training import TrainingInTurns, with_random_tokens
from lmtrain.config.compose import compose
from lmtrain.config.preflight import check_for_plan
from lmtrain.data.loader import TokenLoader
from lmtrain.loop.training_parts import Parts
from lmtrain.model import loss
from lmtrain.parts import build_loaders, build_parts

UNTOUCHED = ["system.deterministic=false", "system.keep_freed_memory=false"]  # other tests share this process


def training_in(folder: Path, token_folder: Path) -> tuple[TrainingInTurns, Parts]:
    cfg, _ = check_for_plan(compose([*TINY, f"data.path={token_folder}", *UNTOUCHED]))
    folder.mkdir()
    parts = build_parts(cfg)
    return TrainingInTurns(cfg, parts, folder), parts


def test_a_step_is_taken_for_each_yield_and_timers_change_no_bits(tmp_path: Path, token_folder: Path) -> None:
    weights = []
    for name, with_timers in (("with", True), ("without", False)):
        training, parts = training_in(tmp_path / name, token_folder)
        timeline = Timeline(torch.device("cpu"))

        def measurement(
            training: TrainingInTurns = training, timeline: Timeline = timeline, with_timers: bool = with_timers
        ) -> Iterator[None]:
            steps = []
            yield
            training.marks = timeline if with_timers else None
            with marked(training.trainer, timeline) if with_timers else contextlib.nullcontext():
                for _ in range(2):
                    yield
                    steps.append(training.trainer.state.step)
            timeline.mark("end")
            training.marks = None
            assert steps == [2, 3]
            training.set_micro_batches(1)
            yield

        training.run(measurement())
        assert training.trainer.state.step == 4
        assert training.trainer.state.samples == 3 * 8 + 4
        seconds = timeline.seconds()
        if with_timers:
            assert seconds.keys() == PHASES.keys() - {"loss"}
            assert min(seconds.values()) > 0
        weights.append(torch.cat([param.detach().flatten() for param in parts.model.parameters()]))
    assert torch.equal(*weights)


def test_a_loss_in_chunks_is_a_phase_of_its_own(
    tmp_path: Path, token_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "WHOLE_LOGITS", 0)
    training, _ = training_in(tmp_path / "run", token_folder)
    training.marks = timeline = Timeline(torch.device("cpu"))

    def measurement() -> Iterator[None]:
        with marked(training.trainer, timeline):
            yield
        yield

    in_chunks = loss.in_chunks
    training.run(measurement())
    assert timeline.seconds().keys() == PHASES.keys()
    assert loss.in_chunks is in_chunks
    with marked(training.trainer, timeline):  # a compiled model calls the same as an operation
        operation = torch.ops.lmtrain.linear_cross_entropy
        operation(torch.ones(3, 4), torch.ones(5, 4), torch.tensor([0, 1, 2]), torch.float32, 2, True, True, None, 0.0)
    timeline.mark("end")
    assert list(timeline.seconds()) == ["loss", "forward"]


def test_the_marks_are_gone_after_their_steps(tmp_path: Path, token_folder: Path) -> None:
    training, _ = training_in(tmp_path / "run", token_folder)
    trainer, timeline = training.trainer, Timeline(torch.device("cpu"))
    forward = trainer.forward

    def measurement() -> Iterator[None]:
        with marked(trainer, timeline):
            yield
        timeline.seconds()
        yield

    training.run(measurement())
    assert timeline.seconds() == {}
    assert trainer.forward is forward
    assert "unscale_" not in vars(trainer.scaler)


def test_a_phase_lasts_until_the_next_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline, clock = Timeline(torch.device("cpu")), iter([1.0, 3.0, 7.0, 8.0, 10.0])
    monkeypatch.setattr(timeline_module.time, "perf_counter", lambda: next(clock))
    for phase in ("data", "forward", "data", "backward", "end"):
        timeline.mark(phase)
    monkeypatch.setattr(timeline_module.time, "perf_counter", time.perf_counter)
    assert timeline.seconds() == {"data": 3.0, "forward": 4.0, "backward": 2.0}
    assert timeline.seconds() == {}


@pytest.mark.parametrize(("vocab_size", "dtype"), [(61, np.uint16), (70_000, np.uint32)])
def test_random_tokens_take_the_place_of_missing_data(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    cfg, missing = check_for_plan(compose([*TINY, "data.path=none", f"model.vocab_size={vocab_size}", *UNTOUCHED]))
    assert missing == ["data.path=none"]
    changed = with_random_tokens(cfg, tmp_path / "tokens")
    loader, _ = build_loaders(changed)
    assert isinstance(loader, TokenLoader)
    x, y = loader.batch(0)
    assert x.shape == y.shape == (4, 16)
    ids = np.fromfile(tmp_path / "tokens" / "train.bin", dtype)
    assert vocab_size - 100 < ids.max() < vocab_size
    assert cfg.data.path == "none"  # the config that is reported is the user's

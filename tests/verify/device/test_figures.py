"""Figures are measured beside a plain loop of a model of the same size."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmtrain.parts import build_model
from lmtrain.verify.device import figures
from lmtrain.verify.device.figures import FIGURES, Goal
from lmtrain.verify.device.finding import MEASURED, NOT_APPLICABLE, NOT_RUN
from lmtrain.verify.device.plain_loop import PlainModel
from lmtrain.verify.device.setting import SMALL, SMALL_MODELS, Setting


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_plain_model_has_the_same_parameters(tmp_path: Path, name: str) -> None:
    cfg = Setting(tmp_path, ["system.device=cpu"]).config(*SMALL_MODELS[name], *SMALL)
    cfg.model.pop("n_kv_head", None)
    if name == "llama":
        cfg.model.n_kv_head = None
    ours, plain = (
        sorted(tuple(param.shape) for param in model.parameters())
        for model in (build_model(cfg), PlainModel(figures.plain_sizes(cfg)))
    )
    assert sum(a * (b or 1) for a, b in map(two, ours)) == sum(a * (b or 1) for a, b in map(two, plain))


def two(shape: tuple[int, ...]) -> tuple[int, int]:
    return (*shape, 0)[:2]


@pytest.mark.slow
def test_a_small_figure_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "ROUND_S", 0.01)
    setting = Setting(tmp_path, ["system.device=cpu"])
    ours, plain = figures.gpt2(setting)
    assert (ours.status, plain.status) == (MEASURED, MEASURED)
    assert ours.values["tokens_per_second"] == pytest.approx(8 * 128 / ours.values["step_ms"] * 1000)
    assert ours.values["waits"] is False
    assert ours.values["parameters"] == plain.values["parameters"]
    assert plain.values["ours_over_plain"] > 0
    assert "times as fast" in plain.result
    setting.deadline = 0.0
    assert [each.status for each in figures.gpt2(setting)] == [MEASURED, NOT_RUN]


@pytest.mark.slow
def test_a_step_that_waits_for_the_device_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def waits(device: Any) -> Iterator[None]:
        yield
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(figures, "ROUND_S", 0.01)
    monkeypatch.setattr(figures, "waiting_is_an_error", waits)
    ours = next(figures.gpt2(Setting(tmp_path, ["system.device=cpu"])))
    assert ours.values["waits"] is True
    assert "the step WAITS for the device" in ours.result


@pytest.mark.slow
def test_the_speed_of_steps_that_change_nothing_is_no_figure(tmp_path: Path) -> None:
    diverging = ["optimizer.lr=1e38", "scheduler.min_lr=1e38", "scheduler.warmup_steps=0"]
    with pytest.raises(RuntimeError, match="step"):
        next(figures.gpt2(Setting(tmp_path, ["system.device=cpu", *diverging])))


def test_large_models_are_left_out_on_a_cpu(tmp_path: Path) -> None:
    setting = Setting(tmp_path, ["system.device=cpu"])
    checks = (figures.production, figures.llama_350m, figures.llama_1b, figures.gpt2_deterministic)
    assert [each.status for check in checks for each in check(setting)] == [NOT_APPLICABLE] * 4


@pytest.mark.parametrize("name", list(FIGURES))
def test_the_configs_of_the_figures_are_valid(tmp_path: Path, name: str) -> None:
    figure = FIGURES[name]
    cfg = Setting(tmp_path, ["system.device=cpu"]).config(*figure.model, vocabulary=50304)
    assert cfg.model.n_layer >= 12


def test_goals() -> None:
    fast, quick = Goal("tokens_per_second", 100, "≥ 100 tokens/s"), Goal("step_ms", 20, "≤ 20 ms")
    assert fast.verdict({"tokens_per_second": 101}) == "; goal ≥ 100 tokens/s: reached"
    assert "MISSED" in fast.verdict({"tokens_per_second": 99})
    assert "MISSED" in quick.verdict({"step_ms": 21})
    assert quick.verdict({"step_ms": None}) == ""

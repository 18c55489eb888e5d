"""Garbage in reference cycles goes after each step, and Python's own setting returns after training."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_trainer import make_trainer, tiny_llama
from torch import Tensor, nn

from lmtrain.loop.garbage import FULL_EVERY, GarbageCollection


class Cycle:
    """An object that only the garbage collector frees, and that holds a tensor as a graph of autograd would be held."""

    def __init__(self, tensor: Tensor) -> None:
        self.itself, self.tensor = self, tensor


class MakesCycles(nn.Module):
    """A model that leaves a cycle in each call; it counts how many are alive at once while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_llama()
        self.vocab_size = self.inner.vocab_size
        self.alive: weakref.WeakSet[Cycle] = weakref.WeakSet()
        self.most = 0

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        self.alive.add(Cycle(tokens))
        if self.training:
            self.most = max(self.most, len(self.alive))
        return self.inner(tokens, targets)


@pytest.fixture(params=[True, False], ids=["on", "off"])
def setting(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Python's automatic collection, switched on or off before training."""
    gc.enable() if request.param else gc.disable()
    yield request.param
    gc.enable()


def test_cycles_do_not_pile_up_and_the_setting_returns(setting: bool, token_folder: Path, tmp_path: Path) -> None:
    frozen = gc.get_freeze_count()
    model = MakesCycles()
    trainer = make_trainer(token_folder, tmp_path / "run", model=model, max_steps=30, eval_interval=30)
    trainer.fit()
    assert gc.isenabled() == setting
    assert gc.get_freeze_count() == frozen == 0
    per_step = trainer.schedules.micro_batches(0)
    # The cycles of the first step, which may be old by the time it ends, and those of the step at hand.
    assert model.most <= 2 * per_step


def test_while_it_trains_python_collects_only_in_evaluations(token_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []
    model = tiny_llama()
    model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, gc.isenabled())))
    make_trainer(token_folder, tmp_path / "run", model=model, max_steps=4, eval_interval=2).fit()
    steps = [enabled for training, enabled in seen if training]
    assert steps == [True, True, *[False] * 6]
    assert all(enabled for training, enabled in seen if not training)


def interrupted(steps: int) -> None:
    """Train for some steps, and fail in the evaluation after them."""
    with GarbageCollection() as collection:
        for _ in range(steps):
            collection.after_step()
        with collection.as_usual():
            raise KeyError


@pytest.mark.parametrize("steps", [0, 1, FULL_EVERY + 2])
def test_an_exception_restores_the_setting(setting: bool, steps: int) -> None:
    with pytest.raises(KeyError):
        interrupted(steps)
    assert (gc.isenabled(), gc.get_freeze_count()) == (setting, 0)

"""The memory of evaluating and saving with other weights than those of training counts, to the byte."""

from collections.abc import Callable

import pytest
import torch
from support.step_memory import most_allocated, real_step
from torch import nn

from lmtrain.checkpoint.optimizer_state import optimizer_state
from lmtrain.loop.evaluation_weights import EMA, OF_OPTIMIZER, averages_weights, evaluation_weights
from lmtrain.model.llama import Llama
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.schedule_free import schedule_free
from lmtrain.plan.memory import StepCost, StepSettings, simulate

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def make_model() -> nn.Module:
    return Llama(vocab_size=300, block_size=16, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_ff=160)


def free(model: nn.Module) -> torch.optim.Optimizer:
    return schedule_free(model.named_parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(list(model.named_parameters()), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


class InPlace(torch.optim.SGD):
    """Has weights for evaluation, and no copies in its update."""

    def eval(self) -> None: ...

    def train(self) -> None: ...


def in_place(model: nn.Module) -> torch.optim.Optimizer:
    return InPlace(model.parameters(), lr=1e-2, foreach=False)


def measured(make_optimizer: MakeOptimizer, numbers: StepSettings) -> tuple[int, int]:
    """Return the most bytes of tensors after a real step, while the model is saved and while it is evaluated."""
    model = make_model()
    optimizer = make_optimizer(model)
    real_step(model, optimizer, numbers)
    averaged = evaluation_weights(dict(model.named_parameters()), optimizer, numbers.ema_decay)
    held = [*model.parameters(), *model.buffers(), *optimizer_state(optimizer, model.named_parameters())[0].values()]
    if not averages_weights(optimizer):
        held += averaged.values().values()
    tokens = torch.zeros((numbers.batch_size, numbers.block_size), dtype=torch.int64)

    def evaluate() -> None:
        with averaged.in_use(), torch.no_grad():
            model.eval()(tokens, tokens)

    base = sum(tensor.nbytes for tensor in held) + tokens.nbytes
    return base + most_allocated(averaged.values), base + most_allocated(evaluate)


def planned(make_optimizer: MakeOptimizer, numbers: StepSettings) -> StepCost:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make_model()
        return model, make_optimizer(model)

    return simulate(build, numbers)


@pytest.mark.parametrize("tokens", [(1, 8), (4, 16)], ids=["few-tokens", "many-tokens"])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", [EMA, OF_OPTIMIZER])
def test_the_memory_of_evaluating_and_saving_is_planned_to_the_byte(
    kind: str, micro_batches: int, tokens: tuple[int, int]
) -> None:
    numbers = StepSettings("cpu", torch.float32, micro_batches, *tokens, ema_decay=0.9 if kind == EMA else None)
    cost = planned(adam if kind == EMA else free, numbers)
    saving, evaluating = measured(adam if kind == EMA else free, numbers)
    assert cost.evaluation_bytes == max(saving, evaluating)
    weights = sum(param.nbytes for param in make_model().parameters())
    assert cost.evaluation["evaluation"] == (1 if evaluating > saving else 2) * weights
    assert cost.evaluation["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    assert "gradients" not in cost.evaluation  # they were freed after the update
    assert cost.peak_bytes == max(cost.step_bytes, cost.evaluation_bytes)


def test_an_evaluation_may_need_more_than_a_step() -> None:
    cost = planned(in_place, StepSettings("cpu", torch.float32, 1, 1, 8))
    assert cost.peak_bytes == cost.evaluation_bytes > cost.step_bytes


def test_without_an_average_only_the_step_counts() -> None:
    cost = planned(adam, StepSettings("cpu", torch.float32, 1, 1, 8))
    assert not cost.evaluation
    assert cost.peak_bytes == cost.step_bytes

"""The floor runs the recorded products and attention on real tensors of the same layouts."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from support.tiny_trainer import make_trainer, tiny_llama
from torch import nn

from lmtrain.benchmark.step.floor import Floor, product_size, tensor_of
from lmtrain.benchmark.step.recording import record_micro_batch
from lmtrain.data.prefetch import Prefetcher
from lmtrain.optimizer.adamw import adamw
from lmtrain.plan.calls import Call, CallLog, Integers, TensorLayout
from lmtrain.plan.memory import StepSettings, simulate
from lmtrain.system import System

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
B, H, T, D = 1, 2, 8, 4


@pytest.fixture
def system() -> System:
    return System(device="cpu", deterministic=False, keep_freed_memory=False)


def recorded_calls() -> list[Call]:
    """Return a linear layer, attention and their gradients, as `plan` records them."""
    log, aten = CallLog(), torch.ops.aten
    x, weight, total = torch.zeros(6, 8), torch.zeros(4, 8), torch.zeros(4, 8)
    for _ in range(3):
        log.add(aten.mm.default, (x, weight.T), {}, x @ weight.T, 2 * 6 * 8 * 4)
    log.add(aten.addmm.out, (total, (x @ weight.T).T, x), {"out": total}, total, 2 * 4 * 6 * 8)
    log.add(aten.bmm.default, (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)), {}, torch.zeros(2, 3, 5), 2 * 2 * 3 * 4 * 5)
    q = torch.zeros(B, T, H, D).transpose(1, 2)
    out, lse = ATTENTION(q, q, q, 0.0, True)
    log.add(ATTENTION.default, (q, q, q, 0.0, True), {}, (out, lse), 0)
    gradients = BACKWARD(out, q, q, q, out, lse, 0.0, True)
    log.add(BACKWARD.default, (torch.zeros_like(q), q, q, q, out, lse, 0.0, True), {}, gradients, 0)
    return log.calls


def test_all_calls_run_and_take_time(system: System) -> None:
    floor = Floor(recorded_calls(), system)
    seconds = floor.seconds(micro_batches=2)
    assert seconds.keys() == {"products", "attention"}
    assert min(seconds.values()) > 0
    assert floor.has_attention
    assert floor.product_flops == 3 * 2 * 6 * 8 * 4 + 2 * 4 * 6 * 8 + 2 * 2 * 3 * 4 * 5


def test_attention_gets_the_layouts_and_results_of_the_real_one(system: System) -> None:
    floor = Floor(recorded_calls(), system)
    forward, backward = floor.attention.calls
    out, lse = floor.attention.run_call(forward)
    assert out.shape == (B, H, T, D)
    assert torch.isfinite(lse).all()
    assert all(gradient.shape == (B, H, T, D) for gradient in floor.attention.run_call(backward))


def test_a_product_is_added_to_one_tensor(system: System) -> None:
    floor = Floor(recorded_calls(), system)
    (addmm,) = (call for call in floor.products.calls if call.name == "addmm")
    before = floor.products.run_call(addmm).clone()
    assert not torch.equal(floor.products.run_call(addmm), before)


def test_rates_name_shapes_and_numbers(system: System) -> None:
    rates = {rate.operation: rate for rate in Floor(recorded_calls(), system).rates()}
    mm, addmm, bmm = rates["mm"], rates["addmm"], rates["bmm"]
    assert (mm.rows, mm.inner, mm.columns, mm.batch, mm.times, mm.operands) == (6, 8, 4, 1, 3, "A Bᵀ")
    assert (addmm.rows, addmm.inner, addmm.columns, addmm.times, addmm.operands) == (4, 6, 8, 1, "Aᵀ B")
    assert (bmm.rows, bmm.inner, bmm.columns, bmm.batch, bmm.operands) == (3, 4, 5, 2, "A B")
    assert mm.flops_per_second == mm.flops / mm.seconds > 0


def test_a_real_micro_batch_has_the_calls_of_the_plan(tmp_path: Path, token_folder: Path) -> None:
    trainer = make_trainer(token_folder, tmp_path / "run")
    with Prefetcher(trainer.train_loader.batch, 0, trainer.system.device) as trainer.micro_batches:
        calls = record_micro_batch(trainer)
    assert all(param.grad is None for param in trainer.model.parameters())

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = tiny_llama()
        return model, adamw(list(model.named_parameters()), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)

    planned = simulate(build, StepSettings("cpu", torch.float32, 1, 4, 16)).micro_batch_calls
    assert Counter(calls) == Counter(planned)
    assert Floor(calls, trainer.system).seconds(1)["attention"] > 0


def test_the_values_of_integers_are_those_of_the_real_call(system: System) -> None:
    log, q = CallLog(keep_integers=True), torch.zeros(1, 1, 4, 8)
    lengths = torch.tensor([[0, 2], [2, 4]])
    log.add(ATTENTION.default, (q, q, q, lengths), {}, ATTENTION(q, q, q), 0)
    (call,) = log.calls
    assert call.args[3] == Integers((0, 2, 2, 4), TensorLayout((2, 2), (2, 1), torch.int64))
    layout = TensorLayout((3,), (1,), torch.int64)
    counted = Call(torch.ops.aten.bincount.default, (Integers((1, 3, 3), layout),), (), 0.0)
    assert Floor([counted], system).products.run_call(counted).tolist() == [0, 1, 0, 2]


def test_a_model_without_products_has_an_empty_floor(system: System) -> None:
    floor = Floor([], system)
    assert floor.rates() == []
    assert not floor.has_attention
    assert floor.product_flops == 0


@pytest.mark.parametrize(
    "layout",
    [
        TensorLayout((3, 4), (1, 3), torch.float32),
        TensorLayout((2, 3, 4), (12, 0, 1), torch.bfloat16),  # expanded
        TensorLayout((2, 3), (8, 2), torch.float16),  # with gaps
        TensorLayout((0, 3), (3, 1), torch.float32),
        TensorLayout((), (), torch.float32),
        TensorLayout((4,), (1,), torch.float8_e4m3fn),
        TensorLayout((4,), (1,), torch.bool),
        TensorLayout((4,), (1,), torch.int64),
    ],
    ids=str,
)
def test_a_tensor_has_its_layout(layout: TensorLayout) -> None:
    tensor = tensor_of(layout, torch.device("cpu"))
    assert (tuple(tensor.shape), tensor.stride(), tensor.dtype) == (layout.shape, layout.stride, layout.dtype)
    if layout.dtype == torch.bool:
        assert tensor.all()


def test_the_size_of_an_unknown_product_is_zero() -> None:
    odd = TensorLayout((2, 2, 2, 2), (8, 4, 2, 1), torch.float32)
    assert product_size(Call(torch.ops.aten.mm.default, (odd, odd), (), 1.0)) == (0, 0, 0, 0)

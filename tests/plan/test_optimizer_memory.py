"""The simulated memory of every optimizer is that of real steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.step_memory import measured_on_the_cpu, real_step
from torch import nn

from lmtrain.checkpoint.optimizer_state import optimizer_state
from lmtrain.config.build import build
from lmtrain.loop.evaluation_weights import evaluation_weights
from lmtrain.model.llama import Llama
from lmtrain.plan.memory import StepSettings, simulate

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
LIBRARY = ("soap", "shampoo", "ademamix")
CHOICES = [(path.stem, {}) for path in sorted(CONF.glob("*.yaml")) if path.stem != "library"]
CHOICES += [("library", {"name": name}) for name in LIBRARY]
IDS = ["-".join([choice, *changes.values()]) for choice, changes in CHOICES]
STEP = StepSettings("cpu", torch.float32, 1, 2, 16)  # a small batch, so that the update needs most memory


def make_model() -> Llama:
    return Llama(vocab_size=300, block_size=16, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_ff=160)


def maker(choice: str, changes: dict[str, str]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    if choice == "library":
        pytest.importorskip("pytorch_optimizer")
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{choice}.yaml"), changes)
    return lambda model: build(node, list(model.named_parameters()))


def simulated(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Any:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make_model()
        return model, make_optimizer(model)

    return simulate(parts, STEP)


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "changes"), CHOICES, ids=IDS)
def test_the_simulated_memory_is_that_of_real_steps(choice: str, changes: dict[str, str]) -> None:
    make_optimizer = maker(choice, changes)
    planned = simulated(make_optimizer)
    assert planned.peak_bytes == pytest.approx(measured_on_the_cpu(make_model, make_optimizer, STEP), rel=0.03)
    model = make_model()
    optimizer = make_optimizer(model)
    for _ in range(2):
        real_step(model, optimizer, STEP)
    state, _ = optimizer_state(optimizer, model.named_parameters())
    saved = model.state_dict(), state, evaluation_weights(dict(model.named_parameters()), optimizer, None).values()
    assert planned.checkpoint_bytes == sum(tensor.nbytes for each in saved for tensor in each.values())


def test_an_optimizer_that_reads_numbers_cannot_be_simulated() -> None:
    with pytest.raises(RuntimeError, match="local_scalar_dense"):
        simulated(maker("library", {"name": "prodigy"}))

"""Checks that bad steps change nothing, neither parameters nor optimizer state, and that they are reported."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.trainer import Trainer
from lmtrain.verify.bit_comparison import tensor_differences
from lmtrain.verify.device.finding import Finding, judged
from lmtrain.verify.device.numbers.precision import FORMATS, missing_format
from lmtrain.verify.device.setting import Setting, fed

GOOD_STEPS = 20  # more than the window needs before it can call a step a spike
ZSCORE = 20.0
CASES = {  # (factor of the loss, addition to a gradient)
    "the loss is NaN": (math.nan, 0.0),
    "a gradient is infinite": (1.0, math.inf),
    "a gradient is NaN": (1.0, math.nan),
    "the loss is a spike": (8.0, 0.0),  # not more: float16 gradients would overflow, which lowers the scale
}


class Poisoned(nn.Module):
    """A model whose loss is multiplied by `factor`, and to one of whose gradients `addition` is added.

    Both are on the device, so that changing them does not make the host wait.
    """

    factor: Tensor
    addition: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("factor", torch.ones(()), persistent=False)
        self.register_buffer("addition", torch.zeros(()), persistent=False)
        next(model.parameters()).register_hook(lambda gradient: gradient + self.addition)  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        logits, loss = self.model(tokens, targets)
        return logits, None if loss is None else loss * self.factor

    def poison(self, factor: float, addition: float) -> None:
        self.factor.fill_(factor)
        self.addition.fill_(addition)


def change_nothing(setting: Setting) -> Iterator[Finding]:
    for number_format in FORMATS:
        if number_format.name == "TensorFloat-32" or missing_format(number_format, setting.device):
            continue
        cfg = setting.small("llama", *number_format.overrides, "system.compile=false", f"trainer.spike_zscore={ZSCORE}")
        with fed(setting.trainer(cfg, change=Poisoned)) as trainer:
            yield after_bad_steps(trainer, number_format.name)


def after_bad_steps(trainer: Trainer, what: str) -> Finding:
    """Compare the state before and after bad steps, with good steps between them."""
    wrong: list[str] = []
    model: Any = trainer.model
    for _ in range(GOOD_STEPS):
        trainer.step()
    list(trainer.monitor.bad_steps(newest=True))  # the first float16 steps overflow
    for case, (factor, addition) in CASES.items():
        before, scale = state_of(trainer), trainer.scaler.get_scale()
        model.poison(factor, addition)
        trainer.step()
        model.poison(1.0, 0.0)
        reported = list(trainer.monitor.bad_steps(newest=True))
        if changed := tensor_differences(before, state_of(trainer)):
            wrong.append(f"{case}: {changed}")
        handled_by_scaler = trainer.scaler.is_enabled() and math.isfinite(factor) and not math.isfinite(addition)
        if not handled_by_scaler and [bad.step for bad in reported] != [trainer.state.step]:
            wrong.append(f"{case}: it was not reported")
        if math.isfinite(factor * addition) and trainer.scaler.get_scale() < scale:
            wrong.append(f"{case}: it lowered the gradient scale")
        trainer.step()
        if list(trainer.monitor.bad_steps(newest=True)):
            wrong.append(f"{case}: the good step after it was skipped, too")
        if not tensor_differences(before, state_of(trainer)):
            wrong.append(f"{case}: the good step after it changed nothing")
    return judged(
        not wrong, wrong[0] if wrong else f"{len(CASES)} kinds of bad steps changed no bit", what, wrong=wrong
    )


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return copies of the parameters and the optimizer's state, on the CPU."""
    state = {name: param.detach() for name, param in trainer.model.named_parameters()}
    for number, param in enumerate(trainer.params):
        for name, value in trainer.optimizer.state[param].items():
            state[f"{name} of parameter {number}"] = value
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

"""Checks the shipped models on the device against float64 on the CPU: logits, loss, gradients and training steps."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.config.build import build
from lmtrain.hardware.compilation import missing_to_compile
from lmtrain.parts import build_loaders, build_model, build_system
from lmtrain.scheduler import Schedule
from lmtrain.system import System
from lmtrain.verify.device.finding import NOT_APPLICABLE, Finding, judged
from lmtrain.verify.device.numbers.adamw import Adamw
from lmtrain.verify.device.numbers.rounding import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    MARGIN,
    TENSOR_FLOAT32,
    Context,
    expected_error,
    typical_errors,
)
from lmtrain.verify.device.setting import LONGEST_SUM, SMALL_MODELS, Setting, fed

STEPS = 20
SMALL_ERROR = 2.0**-20  # at which errors are sampled; they are proportional to it
SCALE = 1024.0  # of the loss in float16, so that gradients do not vanish, as the gradient scaler has it


@dataclass(frozen=True)
class NumberFormat:
    """A number format: its name, the overrides that select it, and the relative error of the values computed in it."""

    name: str
    overrides: tuple[str, ...]
    relative_error: float


FORMATS = (
    NumberFormat("float32", ("system.dtype=float32", "system.tf32=false"), expected_error(LONGEST_SUM, FLOAT32)),
    NumberFormat("TensorFloat-32", ("system.dtype=float32", "system.tf32=true"), expected_error(3, TENSOR_FLOAT32)),
    NumberFormat("bfloat16", ("system.dtype=bfloat16",), expected_error(3, BFLOAT16)),
    NumberFormat("float16", ("system.dtype=float16",), expected_error(3, FLOAT16)),
)


def missing_format(number_format: NumberFormat, device: torch.device) -> str | None:
    """Return why the device has no such format, or None if it has it."""
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if number_format.name == "TensorFloat-32" and not is_new:
        return "only GPUs from Ampere on have it"
    if number_format.name == "bfloat16" and device.type == "cuda" and not is_new:
        return "only GPUs from Ampere on have it"
    return None


class Reference:
    """A small model in float64 on the CPU, its exact results, and how far rounding may move them.

    Args:
        cfg: The config of the model, the data and the training.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.loader = build_loaders(cfg)[0]
        self.x, self.y = self.loader.batch(0)

    def model(self) -> nn.Module:
        """Return the model with the initial weights that a run of the config has."""
        System(device="cpu", compile=False, threads=1, deterministic=False).seed(self.cfg.seed)
        return build_model(self.cfg).double()

    @cached_property
    def names(self) -> list[str]:
        gradients = (f"the gradient of {name}" for name, _ in self.model().named_parameters())
        return ["the logits", "the loss", *gradients]

    @cached_property
    def exact(self) -> list[Tensor]:
        return self._pass(contextlib.nullcontext())

    @cached_property
    def typical(self) -> list[float]:
        return [error / SMALL_ERROR for error in typical_errors(self._pass, SMALL_ERROR)]

    @cached_property
    def typical_losses(self) -> float:
        """How far the losses of a training move, as a norm, relative to the error of each value."""
        return typical_errors(lambda context: [self.losses((), context)], SMALL_ERROR, samples=2)[0] / SMALL_ERROR

    def _pass(self, context: Context) -> list[Tensor]:
        model = self.model()
        logits, loss = backward(model, self.x, self.y, context)
        return [logits, loss, *(param.grad for param in model.parameters() if param.grad is not None)]

    def losses(self, skipped: tuple[int, ...] = (), context: Context | None = None) -> Tensor:
        """Return the losses of a loop written by hand; the updates of the `skipped` steps (from 0) are left out."""
        model, cfg = self.model(), self.cfg
        optimizer = Adamw(model.parameters(), cfg.optimizer.weight_decay, cfg.optimizer.betas, cfg.optimizer.eps)
        schedule: Schedule = build(cfg.scheduler)
        micro_batches = cfg.trainer.gradient_accumulation_steps
        losses = []
        for step in range(STEPS):
            total = torch.zeros((), dtype=torch.float64)
            for number in range(micro_batches):
                x, y = self.loader.batch(step * micro_batches + number)
                total += backward(model, x, y, context or contextlib.nullcontext(), 1 / micro_batches)[1]
            gradients = [param.grad for param in model.parameters() if param.grad is not None]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
            for gradient in gradients:
                gradient *= min(1.0, cfg.trainer.grad_clip / (norm + 1e-6))
            if step not in skipped:
                optimizer.step(schedule(step))
            model.zero_grad(set_to_none=True)
            losses.append(total)
        return torch.stack(losses)


def backward(model: nn.Module, x: Tensor, y: Tensor, context: Context, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Add the gradients of the scaled mean loss; return the logits and the scaled loss.

    The model computes inside the context, and the loss outside, because a 16-bit run computes it in float32, too.
    """
    with context:
        logits = model(x)[0]
    leaf = logits.detach().requires_grad_()
    loss = scale * nn.functional.cross_entropy(leaf.flatten(0, 1), y.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    with context:
        logits.backward(leaf.grad)
    return logits.detach(), loss.detach()


def forward_and_backward(
    model: nn.Module,
    forward: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    context: Context | None = None,
    scale: float = 1,
) -> list[Tensor]:
    """Return the logits, the loss and all gradients in float64 on the CPU."""
    model.zero_grad(set_to_none=True)
    context = context or contextlib.nullcontext()
    with context, torch.no_grad():
        logits = model(x)[0]  # never compiled: training does not need it
    with context:  # entered again, because autocast may keep the weights that it has converted without gradients
        loss = forward(x, y)[1]
    (loss * scale).backward()
    gradients = [param.grad / scale for param in model.parameters() if param.grad is not None]
    return [tensor.detach().to("cpu", torch.float64) for tensor in (logits, loss, *gradients)]


def in_each_dtype(setting: Setting) -> Iterator[Finding]:
    """Compare each model in each number format with float64."""
    for name in SMALL_MODELS:
        reference = Reference(setting.small(name))
        for number_format in FORMATS:
            what = f"{name}, {number_format.name}"
            if reason := missing_format(number_format, setting.device):
                if number_format.name != "TensorFloat-32" or setting.is_cuda:
                    yield Finding(NOT_APPLICABLE, reason, what)
                continue
            cfg = setting.small(name, *number_format.overrides, "system.compile=false")
            yield compare_pass(reference, cfg, number_format, f"{what}: one pass")
            yield compare_training(reference, setting, cfg, number_format, f"{what}: {STEPS} steps")


def compiled(setting: Setting) -> Iterator[Finding]:
    """Compare each compiled model with float64, as the eager ones: so both have the same loss to rounding."""
    if missing := missing_to_compile(setting.device.type):
        yield Finding(NOT_APPLICABLE, missing)
        return
    # On a CPU, one model is enough: compiling takes most of the time, and the compiler is the same.
    number_format = FORMATS[2] if setting.is_cuda and not missing_format(FORMATS[2], setting.device) else FORMATS[0]
    for name in SMALL_MODELS if setting.is_cuda else ("llama",):
        cfg = setting.small(name, *number_format.overrides, "system.compile=true")
        yield compare_pass(Reference(setting.small(name)), cfg, number_format, f"{name}, {number_format.name}")
    if setting.is_cuda:
        cfg = setting.small("llama", *number_format.overrides, "system.compile=reduce-overhead")
        reference = Reference(setting.small("llama"))
        yield compare_training(reference, setting, cfg, number_format, f"llama, CUDA graphs: {STEPS} steps")


def compare_pass(reference: Reference, cfg: Any, number_format: NumberFormat, what: str) -> Finding:
    """Compare the logits, the loss and the gradients of one batch with the exact ones."""
    system = build_system(cfg)
    model = build_model(cfg).to(system.device)
    x, y = reference.x.to(system.device), reference.y.to(system.device)
    scale = SCALE if system.dtype == torch.float16 else 1.0
    got = forward_and_backward(model, system.compile(model), x, y, system.autocast(), scale)
    errors = [(one - other).norm().item() for one, other in zip(got, reference.exact, strict=True)]
    bounds = [bound_of(typical, number_format) for typical in reference.typical]
    bounds[1] += loss_rounding(reference.exact[1])
    shares = {name: share_of(*pair) for name, *pair in zip(reference.names, errors, bounds, strict=True)}
    worst = max(shares, key=lambda name: shares[name])
    return judged(
        shares[worst] <= 1,
        f"largest error: {shares[worst]:.2g} of the bound ({worst})",
        what,
        share_of_bound=shares,
    )


def compare_training(
    reference: Reference, setting: Setting, cfg: Any, number_format: NumberFormat, what: str
) -> Finding:
    """Compare the losses of the trainer's first steps with the exact ones."""
    losses, skipped = [], []
    with fed(setting.trainer(cfg)) as trainer:
        for step in range(STEPS):
            before = trainer.scaler.get_scale()
            losses.append(trainer.step()[0])
            if trainer.scaler.get_scale() < before:  # the scaler's first scales are too large on purpose
                skipped.append(step)
    got = torch.stack(losses).to("cpu", torch.float64)
    exact = reference.losses(tuple(skipped))
    error = (got - exact).norm().item()
    bound = bound_of(reference.typical_losses, number_format) + loss_rounding(exact)
    share = share_of(error, bound)
    return judged(
        share <= 1 and len(skipped) < STEPS / 2,
        f"{share:.2g} of the bound; the last loss is {got[-1]:.4f}, in float64 {exact[-1]:.4f}",
        what,
        share_of_bound=share,
        losses=got.tolist(),
        exact_losses=exact.tolist(),
        skipped_steps=skipped,
    )


def bound_of(typical: float, number_format: NumberFormat) -> float:
    """Return the largest error of a correct computation in a format."""
    return MARGIN * typical * number_format.relative_error


def loss_rounding(losses: Tensor) -> float:
    """Return the largest error, as a norm, that computing these losses from exact logits in float32 may make."""
    return MARGIN * 4 * FLOAT32 * float(losses.norm())  # the logarithm, the logit, their difference, the mean


def share_of(error: float, bound: float) -> float:
    """Return the error as a share of its bound; NaN counts as infinitely wrong."""
    if math.isnan(error) or math.isnan(bound):
        return math.inf
    if bound == 0:
        return math.inf if error else 0.0
    return error / bound

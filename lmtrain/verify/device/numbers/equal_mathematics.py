"""Checks what saves memory or time with equal mathematics: the loss in chunks, and recomputed activations."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmtrain.hardware.compilation import missing_to_compile
from lmtrain.model.loss import linear_cross_entropy
from lmtrain.parts import build_loaders, build_model, build_system
from lmtrain.verify.bit_comparison import tensor_differences
from lmtrain.verify.device.finding import NOT_APPLICABLE, Finding, judged
from lmtrain.verify.device.numbers.precision import (
    FORMATS,
    SCALE,
    SMALL_ERROR,
    NumberFormat,
    backward,
    bound_of,
    forward_and_backward,
    loss_rounding,
    missing_format,
    share_of,
)
from lmtrain.verify.device.numbers.rounding import Context, typical_errors
from lmtrain.verify.device.overlap import waiting_is_an_error
from lmtrain.verify.device.setting import SMALL_MODELS, Setting

# More than the loss computes as whole logits, in one full chunk of rows and a part of another.
ROWS, WIDTH, VOCABULARY = 1100, 64, 4096


class Head(nn.Module):
    """An output layer and its input, both of which get gradients."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden = nn.Parameter(torch.randn(ROWS, WIDTH, generator=generator))
        self.weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        return F.linear(self.hidden, self.weight).unsqueeze(0), None


def loss_in_chunks(setting: Setting) -> Iterator[Finding]:
    """Compare the loss in chunks and its gradients with whole logits in float64."""
    targets = torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(1))
    targets[::7] = -100
    exact_head = Head().double()

    def compute(context: Context) -> list[Tensor]:
        exact_head.zero_grad()
        loss = backward(exact_head, targets, targets, context)[1]
        return [loss, *(param.grad.clone() for param in exact_head.parameters() if param.grad is not None)]

    exact = compute(torch.enable_grad())
    typical = [error / SMALL_ERROR for error in typical_errors(compute, SMALL_ERROR)]
    for number_format in FORMATS:
        if number_format.name == "TensorFloat-32" or missing_format(number_format, setting.device):
            continue
        system = setting.system(*number_format.overrides, "system.compile=false")
        head, y = Head().to(system.device), targets.to(system.device)
        yield compare_loss(linear_cross_entropy, head, y, system, number_format, exact, typical)
    if setting.is_cuda and not missing_to_compile("cuda"):
        head, y = Head().to(setting.device), targets.to(setting.device)
        system = setting.system(*FORMATS[0].overrides, "system.compile=true")
        compiled: Any = torch.compile(linear_cross_entropy)
        yield compare_loss(compiled, head, y, system, FORMATS[0], exact, typical, ", compiled")


def compare_loss(
    function: Callable[..., Any],
    head: Head,
    targets: Tensor,
    system: Any,
    number_format: NumberFormat,
    exact: list[Tensor],
    typical: list[float],
    how: str = "",
) -> Finding:
    scale = SCALE if system.dtype == torch.float16 else 1.0
    with system.autocast():
        loss = function(head.hidden, head.weight, targets)
    (loss * scale).backward()
    got = [loss, *(param.grad / scale for param in head.parameters() if param.grad is not None)]
    try:
        with waiting_is_an_error(targets.device), system.autocast():  # again, since the first call may compile
            function(head.hidden, head.weight, targets)
    except RuntimeError as error:
        return judged(False, f"the host waits for the device: {error}", number_format.name + how)
    bounds = [bound_of(each, number_format) for each in typical]
    bounds[0] += loss_rounding(exact[0])
    shares = [
        share_of((one.detach().cpu().double() - other).norm().item(), bound)
        for one, other, bound in zip(got, exact, bounds, strict=True)
    ]
    return judged(
        max(shares) <= 1,
        f"largest error: {max(shares):.2g} of the bound",
        number_format.name + how,
        share_of_bound=dict(zip(("loss", "gradient of the input", "gradient of the weight"), shares, strict=True)),
    )


def recomputation(setting: Setting) -> Iterator[Finding]:
    """Compare the bits of losses and gradients with and without recomputation, with dropout."""
    for name in SMALL_MODELS:
        plain = results(setting, name)
        if plain is None:
            yield Finding(NOT_APPLICABLE, "the model has no model.recompute")
            return
        for what in ("attention", "layer"):
            again = results(setting, name, f"model.recompute={what}")
            assert again is not None
            different = tensor_differences(plain, again)
            yield judged(different is None, different or "the same bits", f"{name}, model.recompute={what}")


def results(setting: Setting, name: str, *overrides: str) -> dict[str, Tensor] | None:
    """Return the loss and the gradients of one batch; None if the model cannot recompute."""
    cfg = setting.small(name, "system.compile=false", "model.dropout=0.1", "system.deterministic=true", *overrides)
    if "recompute" not in cfg.model:
        return None
    system = build_system(cfg)
    model = build_model(cfg).to(system.device)
    x, y = (tensor.to(system.device) for tensor in build_loaders(cfg)[0].batch(0))
    system.seed(cfg.seed)
    _, *got = forward_and_backward(model, model, x, y, system.autocast())
    return dict(zip(["the loss", *(name for name, _ in model.named_parameters())], got, strict=True))

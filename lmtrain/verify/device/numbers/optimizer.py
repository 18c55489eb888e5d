"""Checks the optimizer and the clipping of gradients against float64."""

from collections.abc import Iterator

import torch
from torch import nn

from lmtrain.optimizer.adamw import adamw
from lmtrain.trainer import Trainer
from lmtrain.verify.device.finding import Finding, judged
from lmtrain.verify.device.numbers.adamw import Adamw
from lmtrain.verify.device.numbers.rounding import FLOAT32, MARGIN, expected_error
from lmtrain.verify.device.setting import Setting, fed

STEPS = 10
SHAPES = ((1000, 37), (129,), (64, 64, 3), (3,), (1, 1))  # also sizes that no vector or block of threads divides
LR, WEIGHT_DECAY, BETAS, EPS = 1e-2, 0.1, (0.9, 0.95), 1e-8


def against_float64(setting: Setting) -> Iterator[Finding]:
    yield compare_updates(setting.device)
    yield compare_clipping(setting)


def compare_updates(device: torch.device) -> Finding:
    """Compare the fused AdamW with one written by hand, for the same float32 gradients of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [nn.Parameter(start.to(device, copy=True)) for start in starts]
    exact = [nn.Parameter(start.double()) for start in starts]
    optimizer = adamw(
        [(str(number), param) for number, param in enumerate(params)],
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        betas=BETAS,
        eps=EPS,
    )
    reference = Adamw(exact, WEIGHT_DECAY, BETAS, EPS)
    for step in range(STEPS):
        for param, other in zip(params, exact, strict=True):
            gradient = torch.randn(other.shape, generator=generator) * 10.0 ** (step % 4 - 4)
            param.grad, other.grad = gradient.to(device), gradient.double()
        lr = LR / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        reference.step(lr)
    shares = [
        ((param.detach().cpu().double() - other).abs() / largest_error(other)).max().item()
        for param, other in zip(params, exact, strict=True)
    ]
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return judged(
        max(shares) <= 1,
        f"largest error: {max(shares):.2g} of the bound; {'fused' if fused else 'not fused'}",
        "AdamW",
        share_of_bound=max(shares),
        fused=fused,
    )


def largest_error(params: torch.Tensor) -> torch.Tensor:
    """Return the largest error of each parameter after STEPS updates in float32.

    A step rounds the parameter twice, after the decay and after the update. The update is at most lr / √(1 - β₂) in
    size. Its relative error is that of the two running means, to which each step adds three roundings, and of about ten
    further operations. The parameters move so little that their last values stand for all.
    """
    size = LR / (1 - BETAS[1]) ** 0.5
    of_params = 2 * (params.detach().abs() + STEPS * size)
    largest: torch.Tensor = STEPS * FLOAT32 * (of_params + (3 * STEPS + 10) * size)
    return largest


def compare_clipping(setting: Setting) -> Finding:
    """Compare a step with clipping with the same step without it, by the first running mean of AdamW.

    After the first step this mean is (1 - β₁) times the gradient that the optimizer has seen.
    """
    unclipped, norm = first_step(setting, "0")
    exact_norm = torch.linalg.vector_norm(unclipped).item()
    limit = exact_norm / 7
    clipped, _ = first_step(setting, repr(limit))
    allowed = MARGIN * expected_error(unclipped.numel(), FLOAT32)  # the norm is a sum of as many squares
    errors = {
        "norm": abs(norm / exact_norm - 1),
        "clipped gradient": (clipped - unclipped / 7).norm().item() / limit,
    }
    allowed_clipped = 2 * allowed + 1e-6 / exact_norm  # torch divides by the norm + 1e-6
    return judged(
        errors["norm"] <= allowed and errors["clipped gradient"] <= allowed_clipped,
        f"relative error of the norm {errors['norm']:.1g}, of the clipped gradient {errors['clipped gradient']:.1g}; "
        f"allowed {allowed:.1g}",
        "clipping",
        errors=errors,
        allowed=allowed,
    )


def first_step(setting: Setting, grad_clip: str) -> tuple[torch.Tensor, float]:
    """Return the gradient that the optimizer saw in the first step, and the norm that the trainer reported."""
    cfg = setting.small("llama", "system.dtype=float32", "system.compile=false", f"trainer.grad_clip={grad_clip}")
    with fed(setting.trainer(cfg)) as trainer:
        norm = trainer.step()[1].item()
        return seen_gradient(trainer, cfg.optimizer.betas[0]), norm


def seen_gradient(trainer: Trainer, beta1: float) -> torch.Tensor:
    means = [trainer.optimizer.state[param]["exp_avg"].flatten() for param in trainer.params]
    seen: torch.Tensor = torch.cat(means).cpu().double() / (1 - beta1)
    return seen

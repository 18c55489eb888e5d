"""The optimizer's update, which is skipped in a bad step."""

from collections.abc import Iterable
from typing import Any

import torch

from lmtrain.parallel.base import Parallel


def updated_modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules that change after each update: those with methods `after_update(skipped)` and `metrics()`."""
    return [module for module in model.modules() if hasattr(module, "after_update") and hasattr(module, "metrics")]


def decides_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer itself skips a bad step, so that the host need not know whether it is bad."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def unscale(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, parallel: Parallel) -> None:
    """Divide the gradients by the scale of an enabled scaler, and let all processes know of an overflow."""
    scaler.unscale_(optimizer)
    if scaler.is_enabled():
        parallel.share_overflows(scaler._found_inf_per_device(optimizer).values())


def update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, bad: torch.Tensor, modules: Iterable[Any] = ()
) -> torch.Tensor:
    """Update the parameters, unless `bad` (a bool scalar on the device) is true; return whether that was skipped.

    A fused optimizer makes that decision on the device. For any other optimizer the host decides and has to wait for
    the device. An enabled scaler must already have unscaled the gradients; it skips gradients that are not finite by
    itself, and lowers its scale. Then `after_update(skipped)` of each of the `modules` runs.
    """
    skipped = bad
    if scaler.is_enabled():
        overflows = scaler._found_inf_per_device(optimizer)
        found = {device: overflow.clone() for device, overflow in overflows.items()}
        for overflow in overflows.values():
            overflow.copy_(torch.maximum(overflow, bad.float()))
        scaler.step(optimizer)
        for device, overflow in overflows.items():
            overflow.copy_(found[device])  # a spike must not lower the scale
            skipped = skipped | found[device].bool().to(bad.device)
        scaler.update()
    elif decides_on_device(optimizer):
        # torch.amp.GradScaler sets the same attributes; the kernel changes nothing where found_inf is 1.
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    elif not bad:
        optimizer.step()
    for module in modules:
        module.after_update(skipped)
    return skipped

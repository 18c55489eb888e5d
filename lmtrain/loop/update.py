"""The optimizer's update, which leaves out a bad step."""

import torch


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, bad: torch.Tensor) -> None:
    """Do one optimizer step, or leave it out if `bad` (a scalar on the device, bool) is true.

    A fused optimizer decides that on the device. Any other has to be told by the host, which waits for the device. An
    enabled scaler, which has unscaled the gradients, leaves out by itself what is not finite, and lowers its scale.
    """
    if scaler.is_enabled():
        overflows = scaler._found_inf_per_device(optimizer)
        found = {device: overflow.clone() for device, overflow in overflows.items()}
        for overflow in overflows.values():
            overflow.copy_(torch.maximum(overflow, bad.float()))
        scaler.step(optimizer)
        for device, overflow in overflows.items():
            overflow.copy_(found[device])  # a spike is no reason for a lower scale
        scaler.update()
    elif getattr(optimizer, "_step_supports_amp_scaling", False):
        # What torch.amp.GradScaler itself sets: the kernel looks at it and changes nothing where it is 1.
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    elif not bad:
        optimizer.step()

"""Chooses the number format of matrix products, and says why a device cannot use one."""

import torch

from lmtrain.hardware.cpu_speed import CpuSpeed
from lmtrain.hardware.work import Work
from lmtrain.machine import is_installed

# How autocast computes; with float8, the products of Linear layers are in 8 bits and everything else in bfloat16.
FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.bfloat16,
}
KEPT = ("float32", "bfloat16")  # what `auto` can become

# bfloat16 must be faster in a product by at least this factor, so that measuring again gives the same choice.
MIN_GAIN = 1.5
# A larger gain counts as this one: the time for casts is then what remains.
MAX_GAIN = 2.5
# Work per cast from which a whole step is faster in bfloat16. Measured on a Xeon with AMX (gain 4 to 10), eager, on one
# thread, by `products_per_cast`: 77 (quickstart) 1.1 times the time of float32, 85 (shakespeare_char) 1.4, 87 (smoke)
# 0.9, 143 (width 256) 0.73, 200 (width 384) 0.6. Between 87 and 143, times the share of time that a gain of 2.5 saves:
MIN_SAVING = 67.0


def choose_on_cpu(work: Work, speed: CpuSpeed) -> str:
    """Return the faster format for the work on a CPU of this speed."""
    gain = min(speed.bfloat16_gain, MAX_GAIN)
    saves = gain >= MIN_GAIN and work.products_per_cast * (1 - 1 / gain) >= MIN_SAVING
    return "bfloat16" if saves else "float32"


def may_gain(work: Work) -> bool:
    """Return whether the work is faster in bfloat16 on some CPU; if not, there is no need to measure this one."""
    return work.products_per_cast * (1 - 1 / MAX_GAIN) >= MIN_SAVING


def choose_on_cuda(device: torch.device) -> str:
    """Return the format that a GPU computes fastest in without a gradient scaler."""
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"


def lacks_hardware(device: torch.device, dtype: str) -> str | None:
    """Return the reason, and the way out, why a device cannot compute in a format; None if it can."""
    if dtype == "float8":
        if device.type != "cuda":
            return "needs a GPU; use bfloat16 or auto"
        if torch.cuda.get_device_capability(device) < (8, 9):
            return "this GPU has no 8-bit products (an H100, L4 or RTX 4090 has); use bfloat16 or auto"
        if not is_installed("torchao"):
            return "needs torchao; install it with pip install 'lmtrain[float8]', or use bfloat16"
    if dtype == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU has no bfloat16; use float16 or auto"
    return None

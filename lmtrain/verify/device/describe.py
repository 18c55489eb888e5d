"""Describes the device that is checked; the first check, since nothing works if this does not."""

import math
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmtrain.machine import available_cores, cpu_name, find_gpu
from lmtrain.plan.hardware import memory_available
from lmtrain.terminal.units import si
from lmtrain.verify.device.finding import Finding, judged
from lmtrain.verify.device.setting import Setting

DRIVER = Path("/proc/driver/nvidia/version")


def the_device(setting: Setting) -> Iterator[Finding]:
    setting.check_overrides()
    system = setting.system()
    values: dict[str, Any] = {
        "kind": system.device.type,
        "name": cpu_name(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "by_default": system.describe(),
    }
    memory = memory_available()
    if system.device.type == "cuda":
        properties = torch.cuda.get_device_properties(system.device)
        memory = properties.total_memory
        gpu = find_gpu(properties.name)
        values |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": driver_version(),
            "peak_flops": gpu.peak_flops if gpu else None,
        }
    values["memory_bytes"] = memory
    known = "" if values.get("peak_flops", 1) else "; its peak speed is unknown, so there is no MFU"
    yield judged(True, f"{system.describe()}, {si(memory or math.nan)}B, torch {torch.__version__}{known}", **values)


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, or None if the kernel does not report it."""
    try:
        found = re.search(r"Kernel Module\D+([\d.]+)", DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None

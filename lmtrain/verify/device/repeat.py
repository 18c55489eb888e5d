"""Checks that a config gives the same bits twice, and measures what that costs."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from lmtrain.hardware.compilation import missing_to_compile
from lmtrain.parts import build_system
from lmtrain.verify.bit_comparison import tensor_differences
from lmtrain.verify.device.finding import MEASURED, Finding, judged
from lmtrain.verify.device.numbers.bad_steps import state_of
from lmtrain.verify.device.setting import SMALL_MODELS, Setting, fed

STEPS = 6
# Wide and long enough that a GPU is busy with attention and products, and not with starting kernels.
CUDA_SIZES = (
    *("model=gpt2", "model.vocab_size=8192", "model.n_layer=4", "data.batch_size=8", "data.block_size=1024"),
    "trainer.gradient_accumulation_steps=1",
)
CPU_SIZES = ("model=gpt2", "model.vocab_size=128", "model.n_layer=2", "model.n_head=4", "model.d_model=128")
ROUNDS, STEPS_PER_ROUND = 7, 4


def same_bits_twice(setting: Setting) -> Iterator[Finding]:
    """Train each model twice with the same seed, with dropout and all of the device's own choices."""
    for name in SMALL_MODELS:
        # A CPU would compile for minutes; `compile` checks that once.
        own = () if setting.is_cuda and not missing_to_compile("cuda") else ("system.compile=false",)
        threads = "system.threads=null"  # all, since the number of threads could change the bits
        cfg = setting.small(name, *own, threads, "system.deterministic=true", "model.dropout=0.1")
        yield compare(setting, cfg, f"{name}, {build_system(cfg).describe()}")
    yield price(setting)


def compare(setting: Setting, cfg: Any, what: str) -> Finding:
    runs = []
    for _ in range(2):
        with fed(setting.trainer(cfg)) as trainer:
            losses = [trainer.step()[0] for _ in range(STEPS)]
            runs.append({"the losses": torch.stack(losses).cpu(), **state_of(trainer)})
    different = tensor_differences(*runs)
    return judged(different is None, different or f"two runs of {STEPS} steps have the same bits", what)


def price(setting: Setting) -> Finding:
    """Measure the time of a step with system.deterministic=true, relative to false, in turns."""
    sizes = CUDA_SIZES if setting.is_cuda else (*CPU_SIZES, "data.batch_size=4", "data.block_size=128")
    cfg = setting.config(*sizes, "system.compile=false", vocabulary=128)
    ratios = []
    with fed(setting.trainer(cfg)) as trainer:
        for number in range(ROUNDS + 1):
            seconds = {}
            for deterministic in (True, False) if number % 2 else (False, True):
                set_deterministic(deterministic)
                trainer.system.synchronize()
                started = time.perf_counter()
                for _ in range(STEPS_PER_ROUND):
                    trainer.step()
                trainer.system.synchronize()
                seconds[deterministic] = time.perf_counter() - started
            ratios.append(seconds[True] / seconds[False])
    set_deterministic(True)
    ratio = statistics.median(ratios[1:])  # the first round allocates
    return Finding(
        MEASURED,
        f"a step takes {ratio:.2f} times as long as with false",
        "the price of system.deterministic=true, eager",
        {"ratios": ratios},
    )


def set_deterministic(on: bool) -> None:
    """Switch as `System` does for a run that is not compiled."""
    torch.set_deterministic_debug_mode("error" if on else "default")

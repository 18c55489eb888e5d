"""Time, money and room on machines."""

from pathlib import Path

import pytest

from lmtrain.machine import GPUS, find_gpu
from lmtrain.plan.hardware import KERNEL_S, USABLE, disk_free, gpu_estimates, memory_available


def test_a_large_run_takes_the_time_of_its_flops() -> None:
    found = {estimate.gpu.name: estimate for estimate in gpu_estimates(1e20, 1000, int(30e9), mfu=0.4)}
    h100 = found["H100"]
    assert h100.seconds == pytest.approx(1e20 / (0.4 * 989e12))
    assert h100.gpu.dollars_per_hour is not None
    assert h100.dollars == pytest.approx(h100.seconds / 3600 * h100.gpu.dollars_per_hour)
    assert (h100.fits, found["L4"].fits) == (True, False)


def test_a_small_one_that_of_its_kernels() -> None:
    assert {estimate.seconds for estimate in gpu_estimates(1.0, 5000, None, mfu=0.4)} == {5000 * KERNEL_S}


def test_a_price_of_ones_own_and_memory_to_the_edge() -> None:
    for estimate in gpu_estimates(1e18, 1, int(0.99 * USABLE * 24e9), mfu=0.5, dollars_per_hour=2.5):
        assert estimate.dollars == pytest.approx(estimate.seconds / 3600 * 2.5)
        assert estimate.fits == (estimate.gpu.memory_gb >= 24)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla T4", 65e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_gpus_by_the_drivers_name(name: str, peak: float) -> None:
    gpu = find_gpu(name)
    assert gpu is not None
    assert gpu.peak_flops == peak


@pytest.mark.parametrize(
    "name",
    ["GeForce GTX 480", "NVIDIA L40", "NVIDIA T400 4GB", "NVIDIA RTX A1000", "NVIDIA GeForce RTX 4090 Laptop GPU"],
)
def test_unfind_gpus_are_not_guessed(name: str) -> None:
    assert find_gpu(name) is None


def test_no_gpu_is_there_twice() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)


def test_room_on_this_machine(tmp_path: Path) -> None:
    available = memory_available()
    assert available is not None
    assert 10**7 < available < 10**14
    assert disk_free(tmp_path / "not" / "yet") == pytest.approx(disk_free(tmp_path), rel=0.2)

"""A trace is summarized by what its operations and kernels do; the traces here are made by hand."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lmtrain.benchmark.step.trace_summary import (
    ATTENTION,
    COPIES,
    DATA,
    FUSED,
    IDLE,
    OPTIMIZER,
    OTHER,
    PRODUCTS,
    category_of,
    read_trace,
    summarize,
)


def event(name: str, start: float, duration: float, category: str = "cpu_op", thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": duration, "cat": category, "tid": thread}


def phase(name: str, start: float, duration: float, category: str = "user_annotation") -> dict[str, Any]:
    return event(f"step: {name}", start, duration, category)


ON_THE_HOST = [
    phase("data", 1000, 10),
    phase("forward", 1010, 100),
    event("Torch-Compiled Region: 0/0", 1010, 90),
    event("## Call CompiledFxGraph f0123456789 ##", 1015, 80, "user_annotation"),
    event("aten::mm", 1020, 30),
    event("aten::copy_", 1050, 10),
    phase("backward", 1110, 200),
    event("autograd::engine::evaluate_function: MmBackward0", 1115, 150),
    event("aten::mm", 1120, 40),
    event("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 1160, 50),
    event("aten::mul", 1210, 20),
    phase("clip", 1310, 20),
    event("aten::mul_", 1312, 8),
    event("Optimizer.step#AdamW.step", 1325, 60, "user_annotation"),  # begins in clip, ends in the phase after it
    phase("optimizer", 1330, 70),
    event("aten::_fused_adamw_", 1340, 40),
    phase("logging", 1400, 10),
    event("aten::mm", 1020, 5, thread=2),  # another thread
    {"ph": "i", "name": "an instant", "ts": 1},
]


def test_operations_on_the_host_count_without_those_inside_them() -> None:
    summary = summarize(ON_THE_HOST)
    assert summary.steps == 1
    assert summary.seconds == pytest.approx(410e-6)
    microseconds = {name: round(1e6 * seconds, 6) for name, seconds in summary.categories.items()}
    assert microseconds == {
        PRODUCTS: 70,
        ATTENTION: 50,
        FUSED: 40,  # 80 without the product and the copy
        OTHER: 20,
        OPTIMIZER: 90,  # clip and optimizer as a whole
        COPIES: 10,
        DATA: 10,
        IDLE: 120,
    }
    assert sum(summary.categories.values()) == pytest.approx(summary.seconds)
    assert summary.not_compute == pytest.approx((10 + 10 + 120) / 410)
    assert summary.operations[0] == ("aten::mm", PRODUCTS, pytest.approx(70e-6), 2)
    assert "compiled graph f0123456" in [name for name, *_ in summary.operations]


def test_times_are_per_step() -> None:
    second = [{**each, "ts": each["ts"] + 500} for each in ON_THE_HOST]
    summary = summarize([*ON_THE_HOST, *second])
    assert summary.steps == 2
    assert summary.categories[PRODUCTS] == pytest.approx(70e-6)
    assert summary.seconds == pytest.approx(910e-6 / 2)  # with the pause between them


ON_THE_DEVICE = [
    phase("data", 0, 10),
    phase("forward", 10, 20),
    phase("optimizer", 30, 5),
    event("aten::mm", 11, 5),
    phase("data", 5, 10, "gpu_user_annotation"),
    event("Memcpy HtoD (Pinned -> Device)", 5, 10, "gpu_memcpy"),
    phase("forward", 20, 80, "gpu_user_annotation"),
    event("nvjet_tst_128x64", 20, 40, "kernel"),
    event("triton_poi_fused__scaled_dot_product_flash_attention_add_3", 60, 10, "kernel"),
    event("void pytorch_flash::flash_fwd_kernel<...>", 65, 25, "kernel"),  # begins while the last one runs
    phase("optimizer", 100, 50, "gpu_user_annotation"),
    event("void at::native::multi_tensor_apply_kernel<...>", 110, 40, "kernel"),
]


def test_on_a_device_kernels_count_and_the_time_between_them_is_idle() -> None:
    summary = summarize(ON_THE_DEVICE)
    microseconds = {name: round(1e6 * seconds, 6) for name, seconds in summary.categories.items()}
    assert microseconds == {PRODUCTS: 40, FUSED: 10, ATTENTION: 20, OPTIMIZER: 40, COPIES: 10, IDLE: 30}
    assert summary.seconds == pytest.approx(150e-6)  # until the last kernel ends, long after the host


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("aten::addmm_", PRODUCTS),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", PRODUCTS),
        ("triton_tem_fused_mm_0", PRODUCTS),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", ATTENTION),
        ("triton_red_fused_rms_norm_1", FUSED),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", OTHER),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", COPIES),
        ("Memset (Device)", COPIES),
        ("aten::embedding", OTHER),
        ("autograd::engine::evaluate_function: ScaledDotProductFlashAttentionForCpuBackward0", IDLE),
        ("TorchDynamo Cache Lookup", IDLE),
    ],
)
def test_categories_of_names(name: str, category: str) -> None:
    assert category_of(name) == category


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="has no step"):
        summarize([event("aten::mm", 0, 1)])


def test_a_trace_file_may_be_compressed(tmp_path: Path) -> None:
    text = json.dumps({"traceEvents": ON_THE_HOST}).encode()
    (tmp_path / "plain.json").write_bytes(text)
    (tmp_path / "small.json.gz").write_bytes(gzip.compress(text))
    assert read_trace(tmp_path / "plain.json") == read_trace(tmp_path / "small.json.gz") == ON_THE_HOST

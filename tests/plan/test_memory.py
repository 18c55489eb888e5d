"""The memory and FLOPs of a simulated step agree with those of a real one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.step_memory import measured_on_the_cpu, real_step
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model.decoder import Decoder
from lmtrain.model.flops import count_flops
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.model.loss import chunk_rows
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.schedule_free import schedule_free
from lmtrain.plan.memory import CUDA_WORKSPACE, StepSettings, simulate

Make = Callable[[], nn.Module]


def llama(**changes: Any) -> Make:
    sizes = {"vocab_size": 2048, "block_size": 128, "n_layer": 2, "n_head": 4, "n_kv_head": None, "d_model": 128}
    return lambda: Llama(**{**sizes, "d_ff": 384, **changes})


def decoder(**changes: Any) -> Make:
    sizes = {"vocab_size": 512, "block_size": 512, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 128}
    return lambda: Decoder(**{**sizes, "d_ff": 384, **changes})


def gpt2(**changes: Any) -> Make:
    sizes = {"vocab_size": 1024, "block_size": 128, "n_layer": 2, "n_head": 4, "d_model": 128}
    return lambda: GPT2(**{**sizes, **changes})


# (model, dtype, batch size, block size, micro-batches); 16 bits are slow on most CPUs
SHAPES = [
    pytest.param(llama(), torch.float32, 4, 64, 2, id="llama"),
    pytest.param(
        llama(n_kv_head=2, tie_embeddings=False, dropout=0.1), torch.float32, 4, 96, 1, id="llama-gqa-untied-dropout"
    ),
    pytest.param(
        llama(mask_documents=True, end_of_text=0, vocab_size=512), torch.float32, 8, 128, 2, id="llama-masked"
    ),
    pytest.param(llama(n_layer=4, recompute="layer", dropout=0.1), torch.float32, 4, 64, 1, id="recomputed-layers"),
    pytest.param(
        gpt2(n_layer=4, recompute="attention", mask_documents=True, end_of_text=0),
        torch.float32,
        4,
        64,
        1,
        id="recomputed-attention",
    ),
    pytest.param(
        decoder(qk_norm=True, sliding_window=99, value_embeddings=[0]), torch.float32, 1, 512, 1, id="windows"
    ),
    pytest.param(decoder(attention_softcap=20.0, mlp="relu2"), torch.float32, 2, 64, 1, id="soft-caps"),
    pytest.param(gpt2(dropout=0.1, n_layer=1), torch.bfloat16, 2, 64, 1, id="gpt2-bfloat16"),
    pytest.param(gpt2(vocab_size=8192, d_model=256), torch.float32, 2, 64, 2, id="gpt2-wide"),
]
ARGUMENTS = ("make", "dtype", "batch_size", "block_size", "micro_batches")


def adamw_of(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(list(model.named_parameters()), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def simulated(make: Make, numbers: StepSettings) -> Any:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make()
        return model, adamw_of(model)

    return simulate(build, numbers)


@pytest.mark.slow
@pytest.mark.parametrize(ARGUMENTS, SHAPES)
def test_the_peak_agrees_with_a_real_step(
    make: Make, dtype: torch.dtype, batch_size: int, block_size: int, micro_batches: int
) -> None:
    numbers = StepSettings("cpu", dtype, micro_batches, batch_size, block_size)
    step = simulated(make, numbers)
    assert step.peak_bytes == pytest.approx(measured_on_the_cpu(make, adamw_of, numbers), rel=0.03)
    params = sum(param.nbytes for param in make().parameters())
    assert step.peak["weights"] >= params
    assert step.peak["optimizer"] == pytest.approx(2 * params, rel=0.01)
    if micro_batches > 1:
        assert step.peak["gradients"] >= params
    assert ("casts" in step.peak) <= (dtype == torch.bfloat16)
    saved = make().state_dict().values()
    assert step.checkpoint_bytes == pytest.approx(sum(tensor.nbytes for tensor in saved) + 2 * params, rel=0.01)


def test_weights_for_evaluation_count() -> None:
    numbers, make = StepSettings("cpu", torch.float32, 1, 2, 32), llama()
    params = sum(param.nbytes for param in make().parameters())
    plain, averaged = simulated(make, numbers), simulated(make, replace(numbers, ema_decay=0.9))
    assert (plain.peak.get("average", 0), averaged.peak["average"]) == (0, params)
    assert averaged.checkpoint_bytes == plain.checkpoint_bytes + params

    def schedule_free_parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make()
        named = model.named_parameters()
        return model, schedule_free(named, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)

    free = simulate(schedule_free_parts, numbers)
    assert "average" not in free.peak  # it computes them when they are needed
    assert free.checkpoint_bytes == pytest.approx(4 * params, rel=0.01)  # weights, two states, weights to use


@pytest.mark.slow
def test_the_peak_agrees_with_a_real_step_whose_logits_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtrain.model.loss.WHOLE_LOGITS", 0)
    monkeypatch.setattr("lmtrain.model.loss.CHUNK_ROWS", 128)
    numbers, make = StepSettings("cpu", torch.float32, 1, 8, 64), llama(vocab_size=8192)
    step = simulated(make, numbers)
    assert step.peak_bytes == pytest.approx(measured_on_the_cpu(make, adamw_of, numbers), rel=0.03)
    whole = 8 * 64 * 8192 * 4
    assert 0 < step.peak["logits"] <= whole / 2
    monkeypatch.setattr("lmtrain.model.loss.WHOLE_LOGITS", 2**62)
    assert simulated(make, numbers).peak["logits"] >= whole


@pytest.mark.parametrize(
    ("make", "batch_size", "block_size"),
    [
        pytest.param(llama(n_kv_head=2, tie_embeddings=False), 1, 64, id="llama-gqa-untied"),
        pytest.param(llama(n_kv_head=1, mask_documents=True, end_of_text=0), 2, 32, id="llama-masked"),
        pytest.param(gpt2(tie_embeddings=False, bias=False, d_ff=100), 1, 96, id="gpt2-untied"),
    ],
)
def test_the_models_flops_agree_with_torchs_count(make: Make, batch_size: int, block_size: int) -> None:
    model: Any = make()
    tokens = torch.zeros((batch_size, block_size), dtype=torch.int64)
    # torch does not count the CPU's fused attention, but it counts plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens)[1].backward()
    by_torch = counter.get_total_flops() / tokens.numel()
    assert model.flops_per_token(block_size) == pytest.approx(by_torch, rel=0.01)
    assert count_flops(make, 1, block_size) == pytest.approx(by_torch, rel=0.01)


@pytest.mark.slow
def test_attention_on_cuda_keeps_no_scores_and_computes_them_twice() -> None:
    make = llama(n_head=8, vocab_size=256)
    on_cuda = simulated(make, StepSettings("cuda", torch.bfloat16, 1, 4, 128))
    tokens = 4 * 128
    assert on_cuda.peak["workspace"] == CUDA_WORKSPACE
    model: Any = make()
    scores_again = 2 * 128 * 128 * tokens * 2  # 2 · d_model · T FLOPs per token in each of two layers
    assert on_cuda.micro_batch_flops == model.flops_per_token(128) * tokens + scores_again
    # Documents are masked without scores (B, H, T, T).
    documents = {"n_kv_head": 4, "mask_documents": True, "end_of_text": 0}
    masked = simulated(llama(n_head=8, vocab_size=256, **documents), StepSettings("cuda", torch.bfloat16, 1, 4, 128))
    assert masked.peak["activations"] < 1.05 * on_cuda.peak["activations"]
    # The products of the `math` kind keep them: 2 layers, of which each keeps the weights in 16 bits at least.
    plain = simulated(
        llama(n_head=8, vocab_size=256, attention="math", **documents),
        StepSettings("cuda", torch.bfloat16, 1, 4, 128),
    )
    assert plain.peak["activations"] - masked.peak["activations"] > 2 * 2 * 4 * 8 * 128 * 128


@pytest.mark.slow
def test_windows_on_cuda_keep_no_scores_and_save_products() -> None:
    plain, windows, capped = (
        simulated(decoder(**options), StepSettings("cuda", torch.bfloat16, 1, 2, 512))
        for options in ({}, {"sliding_window": 64}, {"attention_softcap": 20.0})
    )
    assert windows.peak["activations"] == pytest.approx(plain.peak["activations"], rel=0.05)
    assert capped.peak["activations"] == pytest.approx(plain.peak["activations"], rel=0.05)
    saved = plain.micro_batch_flops - windows.micro_batch_flops
    assert saved == 14 * 2 * 128 * (512 - 64) * 2 * 512  # 14 FLOPs a key, with the scores that the backward repeats


@pytest.fixture
def any_kernel() -> Iterator[None]:
    """Allow kernels that are not deterministic, which a run before may have forbidden."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.mark.slow
@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize("kind", ["auto", "math", "efficient", "flash", "cudnn", "flex", "varlen"])
def test_recomputed_layers_need_less_memory_on_cuda(kind: str) -> None:
    settings = StepSettings("cuda", torch.bfloat16, 1, 4, 128)
    plain, attention, layer = (
        simulated(llama(n_layer=6, vocab_size=256, attention=kind, recompute=recompute), settings)
        for recompute in ("none", "attention", "layer")
    )
    assert layer.peak["activations"] < 0.5 * plain.peak["activations"]
    assert layer.peak["activations"] < attention.peak["activations"] < plain.peak["activations"]
    assert plain.micro_batch_flops < attention.micro_batch_flops < layer.micro_batch_flops


@pytest.mark.slow
def test_a_larger_batch_needs_more_memory_only_for_activations_and_logits() -> None:
    numbers = [StepSettings("cpu", torch.float32, 2, batch_size, 64) for batch_size in (2, 4)]
    small, large = (simulated(llama(), each).peak for each in numbers)
    assert large["activations"] == pytest.approx(2 * small["activations"], rel=0.15)
    assert large["logits"] == 2 * small["logits"]
    assert large["weights"] == small["weights"]
    assert large["optimizer"] == small["optimizer"]


def test_a_model_that_reads_its_data_cannot_be_simulated() -> None:
    class ReadsData(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 7)

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> Any:
            logits = self.table(tokens)
            return logits, logits.mean() if tokens.sum().item() else None

    with pytest.raises(Exception, match="local_scalar_dense"):
        simulated(ReadsData, StepSettings("cpu", torch.float32, 1, 2, 4))


def test_the_simulation_does_not_change_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    simulated(llama(n_layer=1, dropout=0.1), StepSettings("cpu", torch.float32, 1, 2, 16))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("device", "bytes_per_logit"), [("cpu", 2), ("cuda", 2 + 4)])
def test_a_chunk_of_logits_is_as_large_as_on_the_device(device: str, bytes_per_logit: int) -> None:
    """A CPU takes the exponentials of a few rows at a time in float32; CUDA takes those of the whole chunk."""
    make = llama(vocab_size=4096, block_size=512, n_layer=1, n_head=2, d_model=32, d_ff=32)
    step = simulated(make, StepSettings(device, torch.bfloat16, 1, 6, 512))
    assert step.peak["logits"] == chunk_rows(torch.bfloat16) * 4096 * bytes_per_logit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("sizes", "batch_size", "block_size"),
    [
        ({"vocab_size": 32000, "n_layer": 16, "n_head": 6, "d_model": 384, "d_ff": 1536}, 16, 512),
        ({"vocab_size": 32000, "n_head": 8, "n_kv_head": 2, "d_model": 512, "d_ff": 1536}, 8, 1024),
        ({"vocab_size": 8192, "n_layer": 8, "n_head": 8, "d_model": 512, "dropout": 0.1}, 16, 512),
        ({"vocab_size": 50257, "n_layer": 12, "n_head": 12, "d_model": 768, "bias": True}, 8, 1024),
        (
            {"vocab_size": 8192, "n_layer": 8, "n_head": 8, "d_model": 512, "mask_documents": True, "end_of_text": 0},
            16,
            512,
        ),
        ({"vocab_size": 8192, "n_layer": 8, "n_head": 8, "d_model": 512, "attention": "math"}, 16, 512),
        ({"vocab_size": 8192, "n_layer": 8, "n_head": 8, "d_model": 512, "recompute": "attention"}, 16, 512),
        ({"vocab_size": 8192, "n_layer": 8, "n_head": 8, "d_model": 512, "recompute": "layer"}, 16, 512),
    ],
    ids=["llama_50m", "gqa", "dropout", "gpt2", "documents", "math", "recomputed-attention", "recomputed-layers"],
)
def test_the_peak_agrees_with_a_real_step_on_cuda(
    sizes: dict[str, Any], batch_size: int, block_size: int, dtype: torch.dtype
) -> None:
    make = (gpt2 if "bias" in sizes else llama)(block_size=block_size, **sizes)
    numbers = StepSettings("cuda", dtype, 2, batch_size, block_size)
    step = simulated(make, numbers)
    torch.cuda.empty_cache()
    model = make().cuda()
    optimizer = adamw_of(model)
    real_step(model, optimizer, numbers)
    torch.cuda.reset_peak_memory_stats()
    real_step(model, optimizer, numbers)
    measured = torch.cuda.max_memory_allocated()
    print(f"planned {step.peak_bytes / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB")
    assert step.peak_bytes == pytest.approx(measured, rel=0.1)

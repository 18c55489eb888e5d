"""`auto` takes the fastest kind that can do the task, and a wanted kind that cannot is refused in one line."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from lmtrain.model.attention_kind import AttentionDevice, AttentionKind, AttentionTask, choose_kind, obstacle

CPU = AttentionDevice("cpu")
TURING = AttentionDevice("cuda", (7, 5), compiles=True, varlen=True)
A100 = AttentionDevice("cuda", (8, 0), compiles=True, varlen=True)
RTX_4090 = AttentionDevice("cuda", (8, 9), compiles=True, varlen=True)
H100 = AttentionDevice("cuda", (9, 0), compiles=True, varlen=True)
B200 = AttentionDevice("cuda", (10, 0), compiles=True, varlen=True)
BARE_H100 = AttentionDevice("cuda", (9, 0))  # neither Triton nor a new torch


def task(device: AttentionDevice, **changes: Any) -> AttentionTask:
    plain = AttentionTask(device, torch.bfloat16, 64, documents=False, dropout=False, deterministic=True)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (task(CPU), "flash"),
        (task(CPU, dtype=torch.float64), "flash"),
        (task(CPU, documents=True), "flash"),
        (task(CPU, dropout=True), "math"),
        (task(CPU, documents=True, dropout=True), "math"),
        (task(TURING), "efficient"),
        (task(A100), "flash"),
        (task(A100, deterministic=False), "flash"),
        (task(A100, dtype=torch.float32), "efficient"),
        (task(A100, dtype=torch.float64), "math"),
        (task(RTX_4090, d_head=256), "efficient"),
        (task(A100, d_head=256), "flash"),
        (task(A100, d_head=20), "flash"),
        (task(A100, d_head=20, dtype=torch.float32), "efficient"),
        (task(A100, d_head=18, dtype=torch.float32), "math"),
        (task(A100, d_head=20, documents=True), "flex"),
        (task(A100, d_head=12, documents=True), "math"),
        (task(TURING, d_head=20, dtype=torch.float16), "math"),
        (task(H100), "flash"),
        (task(H100, deterministic=False), "cudnn"),
        (task(B200, deterministic=False), "cudnn"),
        (task(H100, deterministic=False, dropout=True), "flash"),
        (task(H100, deterministic=False, dtype=torch.float32), "efficient"),
        (task(H100, deterministic=False, d_head=192), "flash"),
        (task(H100, documents=True), "flex"),
        (task(H100, documents=True, deterministic=False), "flex"),
        (task(H100, documents=True, dtype=torch.float32), "flex"),
        (task(H100, documents=True, dropout=True), "efficient"),
        (task(H100, documents=True, dtype=torch.float64), "math"),
        (task(BARE_H100, documents=True), "efficient"),
        (task(replace(BARE_H100, varlen=True), documents=True), "varlen"),
        (task(TURING, documents=True), "efficient"),
        (task(H100, deterministic=False, any_length=True), "flash"),
        (task(H100, documents=True, any_length=True), "varlen"),
        (task(BARE_H100, documents=True, any_length=True), "efficient"),
        (task(CPU, windows=True), "flash"),
        (task(CPU, softcap=True), "math"),
        (task(H100, windows=True, deterministic=False), "flex"),
        (task(H100, windows=True, any_length=True), "varlen"),
        (task(H100, windows=True, dropout=True), "efficient"),
        (task(H100, softcap=True), "flex"),
        (task(H100, softcap=True, any_length=True), "math"),
        (task(BARE_H100, softcap=True), "math"),
    ],
)
def test_auto_takes_the_fastest_kind_that_can_do_the_task(given: AttentionTask, chosen: str) -> None:
    assert choose_kind("auto", given) == chosen


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("cudnn", task(CPU), "needs a CUDA device; on a CPU use model.attention=flash or math"),
        ("flex", task(CPU), "needs a CUDA device"),
        ("flash", task(CPU, dropout=True), "has no dropout on a CPU; use model.dropout=0 or model.attention=math"),
        ("cudnn", task(H100), "has no deterministic backward; use system.deterministic=false or model.attention=flash"),
        ("cudnn", task(H100, dropout=True), "has no dropout; use model.dropout=0"),
        ("flash", task(H100, documents=True), "does not mask documents; use model.mask_documents=false or model.att"),
        ("flash", task(H100, dtype=torch.float32), "computes in 16 bits only; use system.dtype=bfloat16"),
        ("flash", task(TURING), "needs a GPU of capability 8.0, this one has 7.5; use efficient or math"),
        ("flash", task(RTX_4090, d_head=256), "needs heads of at most 192, not 256"),
        ("varlen", task(H100, d_head=20), "needs heads of a multiple of 8, not 20"),
        ("efficient", task(H100, d_head=20), "needs heads of a multiple of 8, not 20; use math"),
        ("efficient", task(H100, d_head=6, dtype=torch.float32), "needs heads of a multiple of 4, not 6"),
        ("flex", task(BARE_H100), "is compiled with Triton, which is not installed"),
        ("flex", task(H100, d_head=8), "heads of at least 16, not 8"),
        ("varlen", task(BARE_H100), "does not have it; install torch 2.12 or use model.attention=flex"),
        (
            "flash",
            task(CPU, softcap=True),
            "does not limit the scores; use model.attention_softcap=null or model.attention=m",
        ),
        ("flex", task(CPU, softcap=True), "needs a CUDA device; on a CPU use model.attention=math"),
        (
            "varlen",
            task(H100, softcap=True),
            "does not limit the scores; use model.attention_softcap=null or model.att",
        ),
        ("cudnn", task(H100, windows=True), "has no sliding windows; use model.sliding_window=null or model.attention"),
        ("efficient", task(H100, dtype=torch.float64), "does not compute in float64; use model.attention=math"),
    ],
)
def test_a_kind_that_cannot_do_the_task_is_refused(kind: AttentionKind, given: AttentionTask, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.attention={kind}: ") as refused:
        choose_kind(kind, given)
    assert message in str(refused.value)
    assert str(refused.value).endswith("or model.attention=auto")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind in get_args(AttentionKind) if kind != "auto"])
def test_a_kind_that_can_do_the_task_is_taken(kind: AttentionKind) -> None:
    given = task(H100, deterministic=False)
    assert obstacle(kind, given) is None
    assert choose_kind(kind, given) == kind

"""Chooses the kernel of attention from what it must do and where; a pure function of a small description."""

from dataclasses import dataclass
from typing import Literal

import torch

AttentionKind = Literal["auto", "math", "efficient", "flash", "cudnn", "flex", "varlen"]

HOPPER = (9, 0)  # from here on, cuDNN's kernel is 1.7 to 2.3 times as fast as flash; on an A100 it is slower
AMPERE = (8, 0)
SMALL_SHARED_MEMORY = ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1))  # flash has no backward there for wide heads


@dataclass(frozen=True)
class AttentionDevice:
    """What a device offers for attention.

    Attributes:
        type: `cpu` or `cuda`.
        capability: The CUDA capability; (0, 0) on a CPU.
        compiles: Triton is installed, with which `flex_attention` is compiled.
        varlen: This version of torch has `varlen_attn` with sliding windows and grouped heads.
    """

    type: str
    capability: tuple[int, int] = (0, 0)
    compiles: bool = False
    varlen: bool = False


@dataclass(frozen=True)
class AttentionTask:
    """What attention must do: its device, number format and head width, and what else limits the kernels.

    `documents` and `dropout` say whether documents are masked and weights dropped, `deterministic` whether the bits of
    the backward must repeat, and `any_length` whether the length of the sequences changes from call to call. `windows`
    and `softcap` say whether some layers have sliding windows, and whether scores are limited.
    """

    device: AttentionDevice
    dtype: torch.dtype
    d_head: int
    documents: bool
    dropout: bool
    deterministic: bool
    any_length: bool = False
    windows: bool = False
    softcap: bool = False


def choose_kind(wanted: AttentionKind, task: AttentionTask) -> AttentionKind:
    """Return the kind of attention to use; `auto` takes the fastest one that can do the task.

    Raises:
        ValueError: the wanted kind cannot do the task.
    """
    if wanted == "auto":
        return next(kind for kind in _by_speed(task) if obstacle(kind, task) is None)
    if (problem := obstacle(wanted, task)) is not None:
        raise ValueError(f"model.attention={wanted}: {problem}, or model.attention=auto")
    return wanted


def _by_speed(task: AttentionTask) -> tuple[AttentionKind, ...]:
    if task.device.type != "cuda":
        return ("flash", "math")
    if task.documents or task.windows or task.softcap:
        return ("flex", "varlen", "efficient", "math")  # see `cumulative_lengths` for the memory that varlen needs
    if task.device.capability >= HOPPER:
        return ("cudnn", "flash", "efficient", "math")
    return ("flash", "efficient", "math")


def _capping_kind(task: AttentionTask) -> str:
    return "flex" if task.device.type == "cuda" else "math"


def obstacle(kind: AttentionKind, task: AttentionTask) -> str | None:
    """Return why a kind cannot do the task, and the way out; None if it can."""
    if kind == "math":
        return None
    if task.softcap and kind != "flex":
        return f"does not limit the scores; use model.attention_softcap=null or model.attention={_capping_kind(task)}"
    if task.device.type != "cuda":
        if kind != "flash":
            ours = "math" if task.softcap else "flash or math"
            return f"needs a CUDA device; on a CPU use model.attention={ours}"
        return "has no dropout on a CPU; use model.dropout=0 or model.attention=math" if task.dropout else None
    in_16_bits = task.dtype in (torch.bfloat16, torch.float16)
    capability, d_head = task.device.capability, task.d_head
    if kind == "efficient":
        if task.dtype == torch.float64:
            return "does not compute in float64; use model.attention=math"
        multiple = 8 if in_16_bits else 4
        return f"needs heads of a multiple of {multiple}, not {d_head}; use math" if d_head % multiple else None
    if capability < AMPERE:
        return f"needs a GPU of capability 8.0, this one has {capability[0]}.{capability[1]}; use efficient or math"
    if kind != "flex" and not in_16_bits:
        return "computes in 16 bits only; use system.dtype=bfloat16 or model.attention=efficient"
    if kind != "flash" and task.dropout:
        return "has no dropout; use model.dropout=0 or model.attention=efficient"
    if kind in ("flash", "varlen"):
        widest = 192 if capability in SMALL_SHARED_MEMORY else 256
        if d_head > widest:
            return f"needs heads of at most {widest}, not {d_head}; use model.attention=efficient"
        if kind == "varlen" and d_head % 8:  # for flash, torch pads the heads
            return f"needs heads of a multiple of 8, not {d_head}; use model.attention=math"
    if kind == "cudnn" and (d_head > 128 or d_head % 8):
        return f"needs heads of a multiple of 8 up to 128, not {d_head}; use model.attention=flash or efficient"
    if kind in ("flex", "cudnn") and task.any_length:
        return "prepares a kernel for each length of the sequence; use model.attention=efficient"
    if kind in ("flash", "cudnn") and task.documents:
        return "does not mask documents; use model.mask_documents=false or model.attention=flex"
    if kind in ("flash", "cudnn") and task.windows:
        return "has no sliding windows; use model.sliding_window=null or model.attention=flex"
    if kind == "cudnn" and task.deterministic:
        return "has no deterministic backward; use system.deterministic=false or model.attention=flash"
    if kind == "flex":
        if not task.device.compiles:
            return "is compiled with Triton, which is not installed; install triton or use model.attention=efficient"
        if d_head < 16 or task.dtype == torch.float64:
            return f"needs at most 32 bits and heads of at least 16, not {d_head}; use model.attention=efficient"
    if kind == "varlen" and not task.device.varlen:
        return f"torch {torch.__version__} does not have it; install torch 2.12 or use model.attention=flex"
    return None

"""Reads a trace of torch.profiler, and says on what the time of a step is spent."""

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASE = "step: "  # prefix of the annotations for the phases of a step
PRODUCTS, ATTENTION, FUSED = "matrix products", "attention", "compiled kernels"
OTHER, OPTIMIZER = "other operations", "optimizer and clipping"
COPIES, DATA, IDLE = "copies, casts and fills", "data", "idle, Python and launches"
CATEGORIES = {
    PRODUCTS: "the products of the model",
    ATTENTION: "fused attention",
    FUSED: "what the compiler has made of the model beside products: elementwise operations, norms, softmax, sums",
    OTHER: "operations that are not compiled: elementwise, norms, softmax, sums, embedding",
    OPTIMIZER: "everything in the phases clip and optimizer",
    COPIES: "memory that is copied, converted to another number format, or filled",
    DATA: "waiting for a micro-batch",
    IDLE: "time in which no operation runs: Python, the dispatcher, autograd, and on CUDA an idle device",
}
NOT_COMPUTE = (COPIES, DATA, IDLE)
# In this order; the first pattern that is found in a name counts. Kernels of CUDA have other names than operations.
PATTERNS = (
    (FUSED, r"^triton_(?!tem_)"),  # named after all operations that it joins, so its name may contain "attention"
    (ATTENTION, r"attention|flash|fmha|sdpa|flex"),
    (
        PRODUCTS,
        r"^aten::(mm|addmm|bmm|baddbmm|linear|matmul|_scaled_mm)_?$|^mkldnn::|gemm|xmma|nvjet|cutlass|splitK|^triton_tem_",
    ),
    (COPIES, r"^aten::(copy_|_to_copy|to|clone|contiguous|cat|stack|fill_|zero_|zeros)$|^Mem(cpy|set)"),
    (COPIES, r"direct_copy|FillFunctor|CatArrayBatchedCopy"),
    (FUSED, r"^## Call CompiledFxGraph|cpp_fused_"),
    (OTHER, r"^aten::|^lmtrain::|<|kernel|Kernel"),
)
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
MICROSECOND = 1e-6


@dataclass(frozen=True)
class TraceSummary:
    """The time of a step by category.

    Attributes:
        seconds: The time of a step, with the profiler.
        steps: The number of steps in the trace.
        categories: The seconds of a step on each category; they add up to `seconds`.
        operations: The operations that take most time: name, category, seconds in a step, calls in a step.
    """

    seconds: float
    steps: int
    categories: Mapping[str, float]
    operations: Sequence[tuple[str, str, float, float]]

    @property
    def not_compute(self) -> float:
        """The share of the step in which nothing is computed."""
        return sum(self.categories.get(name, 0.0) for name in NOT_COMPUTE) / self.seconds


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Return the events of a trace file, which may be compressed by gzip."""
    data = path.read_bytes()
    text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    return events


def summarize(events: Sequence[Mapping[str, Any]], operations: int = 8) -> TraceSummary:
    """Summarize the events of whole steps, which the benchmark has annotated with their phases.

    Raises:
        ValueError: the trace has no annotated step.
    """
    complete = [event for event in events if event.get("ph") == "X" and "dur" in event]
    phases = sorted(
        (event for event in complete if _is(event, "user_annotation") and event["name"].startswith(PHASE)),
        key=lambda event: event["ts"],
    )
    if not phases:
        raise ValueError("the trace has no step: no annotation begins with " + repr(PHASE))
    start, end = phases[0]["ts"], max(_end(event) for event in phases)
    steps = max(1, sum(event["name"] == f"{PHASE}optimizer" for event in phases))
    kernels = [event for event in complete if event.get("cat") in ON_DEVICE]
    if kernels:
        on_device = [event for event in complete if _is(event, "gpu_user_annotation")]
        end = max(end, max(map(_end, kernels)))  # the last kernels may end after the host has gone on
        spent = _device_time(kernels, on_device, start, end)
    else:
        spent = _host_time(complete, phases[0].get("tid"), start, end)
    total: defaultdict[str, float] = defaultdict(float)
    by_name: defaultdict[tuple[str, str], float] = defaultdict(float)
    calls: Counter[tuple[str, str]] = Counter()
    for name, category, seconds in spent:
        total[category] += seconds
        by_name[name, category] += seconds
        calls[name, category] += 1
    seconds = (end - start) * MICROSECOND / steps
    shares = {name: total[name] / steps for name in CATEGORIES if total[name]}
    shares[IDLE] = max(0.0, seconds - sum(time for name, time in shares.items() if name != IDLE))
    largest = sorted((key for key in by_name if key[1] != IDLE), key=lambda key: -by_name[key])[:operations]
    rows = [(*key, by_name[key] / steps, calls[key] / steps) for key in largest]
    return TraceSummary(seconds, steps, shares, rows)


def category_of(name: str, phase: str | None = None) -> str:
    """Return the category of an operation or kernel in a phase of the step."""
    if phase in ("clip", "optimizer"):
        return OPTIMIZER
    if phase == "data":
        return DATA
    return next((category for category, pattern in PATTERNS if re.search(pattern, name)), IDLE)


def _host_time(
    events: Iterable[Mapping[str, Any]], thread: object, start: float, end: float
) -> Iterable[tuple[str, str, float]]:
    """Yield the operations of the training thread with the seconds that they themselves take, without nested ones."""
    inside = [event for event in events if event.get("tid") == thread and start <= event["ts"] < end]
    inside.sort(key=lambda event: (event["ts"], -event["dur"]))
    stack: list[tuple[Mapping[str, Any], str | None]] = []
    nested: defaultdict[int, float] = defaultdict(float)
    found: list[tuple[Mapping[str, Any], str | None]] = []
    for event in inside:
        if not (_is(event, "cpu_op") or _is(event, "user_annotation")):
            continue
        while stack and _end(stack[-1][0]) <= event["ts"]:
            stack.pop()
        phase = stack[-1][1] if stack else None
        if event["name"].startswith(PHASE):
            phase = event["name"].removeprefix(PHASE)
        if stack:
            # An annotation may last longer than the one in which it begins.
            nested[id(stack[-1][0])] += min(_end(event), _end(stack[-1][0])) - event["ts"]
        stack.append((event, phase))
        found.append((event, phase))
    for event, phase in found:
        own = (event["dur"] - nested[id(event)]) * MICROSECOND
        name = re.sub(r"^## Call CompiledFxGraph (\w{8})\w* ##$", r"compiled graph \1", event["name"])
        yield name, category_of(event["name"], phase), own


def _device_time(
    kernels: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], start: float, end: float
) -> Iterable[tuple[str, str, float]]:
    """Yield the kernels with their seconds; time in which two run at once counts for the one that began first."""
    phases = sorted((event for event in annotations if event["name"].startswith(PHASE)), key=lambda event: event["ts"])
    free_from, at = start, 0
    for kernel in sorted(kernels, key=lambda event: event["ts"]):
        begun, ended = max(kernel["ts"], free_from), min(_end(kernel), end)
        while at + 1 < len(phases) and phases[at + 1]["ts"] <= kernel["ts"]:
            at += 1
        inside = bool(phases) and phases[at]["ts"] <= kernel["ts"] < _end(phases[at])
        phase = phases[at]["name"].removeprefix(PHASE) if inside else None
        # A copy to the device belongs to the copies, even if it is started in the phase of the data.
        category = category_of(kernel["name"], phase if phase != "data" else None)
        yield kernel["name"], category, max(0.0, ended - begun) * MICROSECOND
        free_from = max(free_from, ended)


def _is(event: Mapping[str, Any], category: str) -> bool:
    return bool(event.get("cat") == category)


def _end(event: Mapping[str, Any]) -> float:
    return float(event["ts"] + event["dur"])

"""Detects steps that would harm the model, on the device and before the update, without making the host wait."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("loss", "gradient norm")
MIN_STEPS = 16  # steps that the window must contain before any step is called a spike
MAD_TO_STD = 1.4826  # standard deviation of a normal distribution, divided by its median absolute deviation
LEAST_SPREAD = 0.01  # relative to the median, so that tiny changes of a flat loss are not spikes


class Verdict(NamedTuple):
    """Holds the verdict on a step, on the device: `bad` (a bool scalar) and its robust z-scores (2,)."""

    bad: Tensor
    scores: Tensor


class SpikeDetector:
    """Compares the loss and gradient norm of a step with those of recent good steps.

    A step is bad if either is not finite, or is more than `zscore` robust standard deviations above the median of the
    last `window` good steps. With `zscore` None, only values that are not finite are bad. The robust standard deviation
    is computed from the median absolute deviation, which a few spikes in the window hardly change. With `ignore_norm`,
    a gradient norm that is not finite is accepted, because under float16 the gradient scaler handles it.

    Source: Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993).
    """

    def __init__(self, zscore: float | None, window: int, device: torch.device, *, ignore_norm: bool = False) -> None:
        self.zscore, self._ignore_norm = zscore, ignore_norm
        self.window = torch.full((window if zscore else 0, len(NAMES)), math.nan, device=device)  # NaN = still empty

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Verdict:
        """Judge a step by two scalars on the device, without waiting for it. A good step joins the window."""
        values = torch.stack([loss.float(), grad_norm.float()])
        finite = values.isfinite()
        if self._ignore_norm:
            finite[1] = True
        bad = ~finite.all()
        scores = torch.zeros_like(values)
        if self.zscore is not None:
            scores = self._scores(values)
            bad = bad | (scores > self.zscore).any()
            keep = bad | ~values.isfinite().all()
            self.window = torch.where(keep, self.window, torch.cat([self.window[1:], values[None]]))
        return Verdict(bad, scores)

    def _scores(self, values: Tensor) -> Tensor:
        filled = (~self.window.isnan()).sum(dim=0)  # (2,)
        median = _median(self.window, filled)
        spread = MAD_TO_STD * _median((self.window - median).abs(), filled)
        scores = (values - median) / torch.maximum(spread, LEAST_SPREAD * median.abs())
        judged = (filled >= min(MIN_STEPS, len(self.window))) & values.isfinite()
        return torch.where(judged, scores, 0.0)


def _median(values: Tensor, filled: Tensor) -> Tensor:
    """Return the lower median of each column of (W, 2), of its `filled` numbers only. NaN sorts after numbers."""
    # torch.median has no deterministic version on CUDA.
    ordered = values.sort(dim=0, stable=True).values
    return ordered.gather(0, ((filled - 1).clamp(min=0) // 2)[None])[0]


@dataclass(frozen=True)
class BadStep:
    """Describes a bad step on the host; `first_sample` is the number of its first sample in the data order."""

    step: int
    first_sample: int
    loss: float
    grad_norm: float
    scores: Sequence[float]
    zscore: float | None
    micro_batch_losses: Sequence[float]

    def __str__(self) -> str:
        measured = list(zip(NAMES, (self.loss, self.grad_norm), self.scores, strict=True))
        name, value, score = max(measured, key=lambda each: each[2])
        if self.zscore is not None and score > self.zscore:
            return f"the {name} of step {self.step} is {value:.4g}, {score:.1f} robust standard deviations too high"
        name, value, _ = next(each for each in measured if not math.isfinite(each[1]))
        return f"the {name} of step {self.step} is {value}"


class BadStepMonitor:
    """Reports bad steps to the host. Each is reported during the next step, so that the device never idles."""

    def __init__(self, zscore: float | None) -> None:
        self.zscore = zscore
        self._pending: deque[tuple[int, int, Tensor, torch.cuda.Event | None]] = deque()

    def record(
        self, step: int, first_sample: int, loss: Tensor, grad_norm: Tensor, verdict: Verdict, losses: Sequence[Tensor]
    ) -> None:
        """Start copying a step's numbers to the host."""
        parts = [verdict.bad, loss, grad_norm, *verdict.scores, *losses]
        values = torch.stack([part.detach().double() for part in parts])
        ready = None
        if values.is_cuda:
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._pending.append((step, first_sample, values, ready))

    def bad_steps(self, *, newest: bool) -> Iterator[BadStep]:
        """Yield the bad steps among those not checked yet. The last step is checked only if `newest`."""
        while len(self._pending) > (0 if newest else 1):
            step, first_sample, values, ready = self._pending.popleft()
            if ready is not None:
                ready.synchronize()
            bad, loss, grad_norm, *rest = values.tolist()
            if bad:
                scores, losses = rest[: len(NAMES)], rest[len(NAMES) :]
                yield BadStep(step, first_sample, loss, grad_norm, scores, self.zscore, losses)

"""Steps that would harm the model: noticed on the device before the update, reported to the host without a wait."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("loss", "gradient norm")
MIN_STEPS = 16  # in the window before anything is called a spike
MAD_TO_STD = 1.4826  # the standard deviation of a normal distribution in its median absolute deviations
LEAST_SPREAD = 0.01  # of the median: a loss that hardly moves has no spikes


class Verdict(NamedTuple):
    """The judgement of a step, on the device: whether it is bad (a scalar, bool), and its robust z-scores (2,)."""

    bad: Tensor
    scores: Tensor


class SpikeDetector:
    """Judges the loss and gradient norm of a step against those of the good steps in a window before it.

    A step is bad if either is not finite, or stands more than `zscore` robust standard deviations above the median
    of the last `window` good steps (None: only what is not finite is bad). Robust means from the median and the median
    absolute deviation, which spikes among the window hardly move; source: Iglewicz and Hoaglin, "How to Detect and
    Handle Outliers" (1993). With `ignore_norm`, a gradient norm that is not finite is none of its business: under
    float16 the gradient scaler deals with that.
    """

    def __init__(self, zscore: float | None, window: int, device: torch.device, *, ignore_norm: bool = False) -> None:
        self.zscore, self._ignore_norm = zscore, ignore_norm
        self.window = torch.full((window if zscore else 0, len(NAMES)), math.nan, device=device)  # NaN = still empty

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Verdict:
        """Judge a step by scalars on the device, without waiting for it. A good step becomes part of the window."""
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
    """Return the lower median of each column of (W, 2), among its `filled` numbers, which sort before NaN."""
    # Not torch.median: on CUDA it has no deterministic form.
    ordered = values.sort(dim=0, stable=True).values
    return ordered.gather(0, ((filled - 1).clamp(min=0) // 2)[None])[0]


@dataclass(frozen=True)
class BadStep:
    """What the host knows of a bad step: it is step number `step`, and its samples begin at `first_sample`."""

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
    """Reports bad steps to the host, each when the next step is under way, so that the device never stands still."""

    def __init__(self, zscore: float | None) -> None:
        self.zscore = zscore
        self._pending: deque[tuple[int, int, Tensor, torch.cuda.Event | None]] = deque()

    def record(
        self, step: int, first_sample: int, loss: Tensor, grad_norm: Tensor, verdict: Verdict, losses: Sequence[Tensor]
    ) -> None:
        """Start the copy of a step's numbers to the host."""
        parts = [verdict.bad, loss, grad_norm, *verdict.scores, *losses]
        values = torch.stack([part.detach().double() for part in parts])
        ready = None
        if values.is_cuda:
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._pending.append((step, first_sample, values, ready))

    def bad_steps(self, *, newest: bool) -> Iterator[BadStep]:
        """Yield the bad ones of the recorded steps that were not looked at yet; the last step only if `newest`."""
        while len(self._pending) > (0 if newest else 1):
            step, first_sample, values, ready = self._pending.popleft()
            if ready is not None:
                ready.synchronize()
            bad, loss, grad_norm, *rest = values.tolist()
            if bad:
                scores, losses = rest[: len(NAMES)], rest[len(NAMES) :]
                yield BadStep(step, first_sample, loss, grad_norm, scores, self.zscore, losses)

"""Stops a challenger's run that is further behind the baseline's than any pair of the campaign has made up for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.comparison.runs import ComparedRun
from lmtrain.decide.idea import Idea
from lmtrain.decide.pairs import Question, shared_values
from lmtrain.files.metrics import read_metrics
from lmtrain.loop.stop_request import PRUNE_FILE, ask_to_prune
from lmtrain.sweep.job import Job

FEWEST_PAIRS = 5  # completed pairs with the same baseline; with fewer, nothing is known about what they make up for
SAFETY = 2  # a run may make up for twice as much as any pair has
BEHIND_SDS = 6  # and must then still be behind by this many standard deviations of a pair's gain
VALUES = ("at-step", "final", "best")  # at equal tokens or seconds, equal steps say little


@dataclass(frozen=True)
class Curve:
    """How far the challenger was ahead at each shared evaluation of a completed pair, and which idea it was."""

    idea: str
    steps: np.ndarray
    gains: np.ndarray


def curve_of(idea: str, runs: tuple[ComparedRun, ComparedRun], question: Question) -> Curve:
    steps, ours, theirs = shared_values(runs, question.metric)
    return Curve(idea, steps, (theirs - ours) * (1 if question.higher else -1))


def noise_of(curves: Sequence[Curve]) -> float | None:
    """Return the standard deviation of the last gains, pooled over ideas; None without two pairs of any idea."""
    last: dict[str, list[float]] = {}
    for curve in curves:
        if len(curve.gains):
            last.setdefault(curve.idea, []).append(float(curve.gains[-1]))
    groups = [np.asarray(values) for values in last.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    return (
        float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in groups) / freedom)) if freedom else None
    )


def hope(step: int, gain: float, curves: Sequence[Curve]) -> float | None:
    """Return the gain that a run with this gain at this step may end with; None if too few pairs have this step."""
    made_up = [
        float(curve.gains[-1] - curve.gains[at[0]])
        for curve in curves
        if len(at := np.flatnonzero(curve.steps == step)) and curve.steps[-1] > step
    ]
    return gain + SAFETY * max(0.0, *made_up) if len(made_up) >= FEWEST_PAIRS else None


def reason_to_stop(step: int, gain: float, curves: Sequence[Curve]) -> str | None:
    """Return why a run is stopped, or None. Being stopped only ever means that the challenger is dropped."""
    hoped, noise = hope(step, gain, curves), noise_of(curves)
    if hoped is None or noise is None or hoped >= -BEHIND_SDS * noise:
        return None
    return (
        f"decide stopped it at step {step}: {-gain:.4g} behind the baseline, and {-hoped:.4g} even after twice what "
        f"any pair has made up for; the noise of a pair is {noise:.2g}"
    )


def may_stop(idea: Idea, question: Question) -> bool:
    """Return whether runs of a challenger may be stopped: not if it decays differently, and so catches up late."""
    ours, theirs = (_schedule(side.config) for side in (idea.baseline, idea.challenger))
    return question.value in VALUES and ours == theirs


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    schedule = {key: value for key, value in config.get("scheduler", {}).items() if key != "lr"}
    return schedule | {"max_steps": config.get("trainer", {}).get("max_steps")}


class Watcher:
    """Watches the challenger's runs, and asks those that lag behind to stop, as a search asks the trials it prunes."""

    def __init__(self, question: Question, curves: Sequence[Curve]) -> None:
        self.question, self.curves = question, list(curves)
        self._sizes: dict[Path, int] = {}
        self._reasons: dict[Path, str] = {}

    def look(self, baseline: Job, challenger: Job) -> None:
        """Look at a running job of the challenger; the run of the baseline with the same seed may run or have ended."""
        folder = challenger.directory
        metrics = folder / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        if folder not in self._reasons and size and size != self._sizes.get(folder):
            self._sizes[folder] = size
            ours, theirs = (self._values(job.directory) for job in (baseline, challenger))
            for step in sorted(ours.keys() & theirs.keys())[-1:]:
                gain = (theirs[step] - ours[step]) * (1 if self.question.higher else -1)
                if reason := reason_to_stop(step, gain, self.curves):
                    self._reasons[folder] = reason
        # The file is written again if it is gone: a run that starts or resumes removes an old one.
        if folder in self._reasons and not (folder / PRUNE_FILE).exists():
            ask_to_prune(folder, self._reasons[folder])

    def _values(self, folder: Path) -> dict[int, float]:
        try:
            lines = read_metrics(folder / "metrics.jsonl")
        except FileNotFoundError:
            return {}
        metric = self.question.metric
        return {int(line["step"]): line[metric] for line in lines if np.isfinite(line.get(metric, np.nan))}

"""Simulates campaigns that try one idea after another: how many false ideas are kept, true ones found, and the cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lmtrain.benchmark.verdicts.case import Case, Row
from lmtrain.comparison.looking.futility import FEWEST_PAIRS, reachable
from lmtrain.comparison.statistics.online_fdr import FDR_LEVEL, next_level
from lmtrain.comparison.statistics.sequential import running_log_e_values

NULLS = 200
TRUE_GAINS = tuple(np.linspace(0.5, 2, 20).tolist())  # in standard deviations of the difference of a pair
BUDGET = 20  # pairs for each idea
NAIVE_SEEDS = 3
PROMISED = "decide"

# Gets the differences of the pairs of one idea, (campaign, pair), and the level of the idea in each campaign; returns
# which campaigns keep it, and after how many pairs.
Strategy = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def decide_each(differences: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep an idea when its evidence reaches 1/level, and drop it when it hardly can: the rule of `decide`."""
    n = np.arange(1, differences.shape[1] + 1)
    needed = -np.log(level)[:, None]
    kept = running_log_e_values(differences) >= needed
    mean = np.cumsum(differences, axis=1) / n
    squares = np.cumsum(differences**2, axis=1) - n * mean**2
    first = FEWEST_PAIRS - 1
    sd = np.sqrt(squares[:, first:] / (n[first:] - 1))
    hopeless = np.zeros_like(kept)
    hopeless[:, first:] = reachable(mean[:, first:], sd, n[first:], len(n)) < needed
    hopeless[:, -1] = True
    pairs = np.argmax(kept | hopeless, axis=1)
    return np.take_along_axis(kept, pairs[:, None], axis=1)[:, 0], pairs + 1


def keep_better_mean(differences: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run a few seeds of each idea, and keep it if its mean is better: the usual loop."""
    return np.asarray(differences[:, :NAIVE_SEEDS].mean(axis=1) > 0), np.full(len(differences), NAIVE_SEEDS)


def keep_at_first_significance(differences: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Do a t-test after each seed from the third on, and keep the idea at the first p < 0.05 in its favour."""
    n = np.arange(1, differences.shape[1] + 1)
    mean = np.cumsum(differences, axis=1) / n
    squares = np.cumsum(differences**2, axis=1) - n * mean**2
    found = np.zeros(differences.shape, dtype=bool)
    first = NAIVE_SEEDS - 1
    t = mean[:, first:] * np.sqrt(n[first:] * (n[first:] - 1) / squares[:, first:])
    found[:, first:] = 2 * stats.t.sf(t, n[first:] - 1) < 0.05
    kept = np.asarray(found.any(axis=1))
    return kept, np.where(kept, np.argmax(found, axis=1) + 1, len(n))


STRATEGIES: Mapping[str, Strategy] = {
    "decide": decide_each,
    "three seeds, better mean": keep_better_mean,
    "t-test after each seed": keep_at_first_significance,
}


@dataclass(frozen=True)
class CampaignResult:
    """What simulated campaigns did, on average.

    Attributes:
        fdr: The share of false ideas among those that a campaign kept (0 if it kept none): the false-discovery rate.
        fdr_error: The Monte Carlo standard error of `fdr`.
        true_kept: The number of true ideas kept.
        large_kept: The same, of those whose gain is at least the noise of a pair.
        true_ideas: The number of true ideas.
        large_ideas: The number of those whose gain is at least the noise of a pair.
        pairs: The number of pairs run for all ideas.
    """

    fdr: float
    fdr_error: float
    true_kept: float
    large_kept: float
    true_ideas: int
    large_ideas: int
    pairs: float


def simulate_campaigns(
    strategy: str = "decide",
    *,
    campaigns: int = 200,
    nulls: int = NULLS,
    gains: tuple[float, ...] = TRUE_GAINS,
    budget: int = BUDGET,
    level: float = FDR_LEVEL,
    seed: int = 0,
) -> CampaignResult:
    """Simulate campaigns in which all ideas of a campaign are compared with the same runs of the baseline.

    So the differences of two ideas are correlated by a half. Null and true ideas come in random order.

    Args:
        strategy: A key of `STRATEGIES`.
        campaigns: The number of campaigns.
        nulls: The number of ideas without any effect.
        gains: The gain of each true idea, in standard deviations of the difference of a pair.
        budget: The largest number of pairs for an idea.
        level: The false-discovery rate that the campaign asks for.
        seed: Equal seeds give equal noise, whatever the strategy.
    """
    generator = np.random.default_rng(seed)
    gain = np.array([generator.permutation([*gains, *[0.0] * nulls]) for _ in range(campaigns)])
    baseline = generator.standard_normal((campaigns, budget))
    kept = np.zeros(gain.shape, dtype=bool)
    pairs = np.zeros(campaigns)
    for idea in range(gain.shape[1]):
        differences = (baseline - generator.standard_normal(baseline.shape)) / np.sqrt(2) + gain[:, idea, None]
        levels = np.array([next_level(idea + 1, int(count), level=level) for count in kept[:, :idea].sum(axis=1)])
        kept[:, idea], used = STRATEGIES[strategy](differences, levels)
        pairs += used
    false = (kept & (gain == 0)).sum(axis=1)
    share = false / np.maximum(kept.sum(axis=1), 1)
    return CampaignResult(
        fdr=float(share.mean()),
        fdr_error=float(share.std() / np.sqrt(campaigns)),
        true_kept=float((kept & (gain > 0)).sum(axis=1).mean()),
        large_kept=float((kept & (gain >= 1)).sum(axis=1).mean()),
        true_ideas=len(gains),
        large_ideas=sum(1 for one in gains if one >= 1),
        pairs=float(pairs.mean()),
    )


@dataclass(frozen=True)
class Campaign:
    """Simulates campaigns that are led by one rule."""

    strategy: str

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        found = simulate_campaigns(self.strategy, campaigns=tables, seed=int(generator.integers(2**31)))
        limit = FDR_LEVEL if self.strategy == PROMISED else None
        return [
            Row("false-discovery rate", found.fdr, found.fdr_error, limit),
            Row(f"of {found.true_ideas} true ideas kept", found.true_kept, 0.0),
            Row(f"of {found.large_ideas} true ideas of 1 SD or more kept", found.large_kept, 0.0),
            Row("pairs of runs", found.pairs, 0.0),
        ]


def cases() -> list[Case]:
    return [Case(f"200 null and 20 true ideas, {rule}", Campaign(rule), 0.1, typical=True) for rule in STRATEGIES]

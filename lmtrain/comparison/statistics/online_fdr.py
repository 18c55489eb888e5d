"""Gives each test of a campaign its level, so that few of the ideas that the campaign keeps are false (online FDR)."""

import math

FDR_LEVEL = 0.05
PLANNED_IDEAS = 100  # the power changes little between 50 and 200, also for a campaign of 20 or 220 ideas


def level_share(number: int, planned: int = PLANNED_IDEAS) -> float:
    """Return the share of the campaign's level that its `number`-th idea gets, counted from 1.

    The shares of all ideas, however many, sum to 1. The first `planned` ideas get half of it.
    """
    return planned / ((planned + number - 1) * (planned + number))


def next_level(number: int, kept: int, *, level: float = FDR_LEVEL, planned: int = PLANNED_IDEAS) -> float:
    """Return the level of the idea that starts as the `number`-th of a campaign.

    This is e-LOND (Xu & Ramdas, *Online multiple testing with e-values*, AISTATS 2024), whose levels are those of LOND
    (Javanmard & Montanari, 2015): level × share × (kept + 1). An idea is kept only when its e-value reaches 1 / its
    level. Then the expected share of false ideas among the kept ones is at most `level`, if each idea is judged once by
    e-values that depend on each other in any way, or if the largest e-values of the null ideas depend on each other
    positively (PRDS; Zrnic, Ramdas & Jordan, *Asynchronous online testing of multiple hypotheses*, JMLR 2021, for
    LOND). Ideas that are judged after every pair and share the baseline's runs need the second. Ideas may run at the
    same time, because every idea counted in `kept` is kept in the end.

    Args:
        number: The number of ideas that have started before, plus 1.
        kept: The number of ideas that were kept before this one starts.
        level: The false-discovery rate of the campaign.
        planned: The number of ideas that the campaign expects; more may follow.

    Raises:
        ValueError: a number is outside its range.
    """
    if not (number >= 1 and 0 <= kept < number and planned >= 1 and 0 < level < 1):
        raise ValueError(f"no level for idea {number} after {kept} kept ones, of {planned} planned, at {level}")
    return level * level_share(number, planned) * (kept + 1)


def needed_log_evidence(level: float) -> float:
    """Return the natural logarithm of the e-value that a test at this level needs."""
    return -math.log(level)

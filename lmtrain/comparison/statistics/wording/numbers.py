"""Writes numbers of statistical tests as people read them."""

import math

from lmtrain.comparison.statistics.significance import ALPHA
from lmtrain.terminal.units import counted

LEAST_P = 0.0001  # smaller values are shown as "< 0.0001"
MOST_DIGITS = 15


def plus_minus(value: float, half_width: float, *, least_digits: int = 0) -> str:
    """Return a text such as `0.021 ± 0.006`, rounded to the precision of the interval.

    At least `least_digits` significant digits of the value are kept. The rounded interval leaves out 0 exactly where
    the interval does.
    """
    if not half_width or not math.isfinite(half_width):
        return f"{value:.4g}"
    first = half_width * 10.0 ** (digits := max(0, -math.floor(math.log10(half_width))))
    digits += first < 4  # 0.012, but 0.06
    if value and least_digits:
        digits = max(digits, least_digits - 1 - math.floor(math.log10(abs(value))), 0)
    while digits < MOST_DIGITS and (round(abs(value), digits) > round(half_width, digits)) != (abs(value) > half_width):
        digits += 1
    return f"{value:.{digits}f} ± {half_width:.{digits}f}"


def p_text(p: float) -> str:
    """Return a p-value with two digits, and with more where fewer would show `ALPHA` for another value."""
    digits = 2
    while p != ALPHA and digits < MOST_DIGITS and float(f"{p:.{digits}g}") == ALPHA:
        digits += 1
    return f"{p:.{digits}g}"


def p_in_table(p: float) -> str:
    """Return a p-value as `0.012` or `<0.0001`; a dash if there is none."""
    if math.isnan(p):
        return "–"
    return p_text(p) if p >= LEAST_P else f"<{LEAST_P}"


def p_in_words(p: float) -> str:
    """Return a p-value as `p = 0.012` or `p < 0.0001`."""
    return f"p = {p_text(p)}" if p >= LEAST_P else f"p < {LEAST_P}"


def degrees(df: float) -> str:
    return f"{counted(df, 'degree')} of freedom"


def listed(names: list[str], most: int) -> str:
    """Return `a`, `a and b` or `a, b and c`; of more than `most` names, the first ones and the number of the others."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

"""Functions that format numbers for people."""

import math


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1: `1 job`, `1,234 jobs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def significant(number: float) -> str:
    """Return a number with four significant digits, or three from a million on."""
    return f"{number:.4g}" if number < 1e6 else f"{number:.2e}"


def loss_text(loss: float | None) -> str:
    """Return a loss with four decimals, the format of every table and message, or – if there is none."""
    if loss is None:
        return "–"
    return f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.3e}"


def percent(share: float) -> str:
    """Return a share in percent with at least two significant digits, so that a small share is not shown as 0%."""
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.2g}%"


def si(number: float) -> str:
    """Return a number with an SI prefix: 1234567 → 1.23M."""
    if not math.isfinite(number):
        return str(number)
    for scale, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * scale:  # 999.5k and more rounds to 1000k, so it is shown as 1M
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def si_unit(number: float, unit: str) -> str:
    """Return a number with an SI prefix before its unit: 1234567, B → 1.23 MB."""
    text = si(number)
    digits = text.rstrip("kMGTP")
    return f"{digits} {text[len(digits) :]}{unit}"


def duration(seconds: float) -> str:
    """Return seconds in the two largest units: 75 → 1m15s."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // part:02d}{part_name}"
    return f"{whole}s"

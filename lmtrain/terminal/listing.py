"""Lists as a person reads them."""

from collections.abc import Iterable


def first_few(items: Iterable[object], most: int = 3) -> str:
    """Return the first items, and how many more there are: `a, b, c and 1,234 more`."""
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")

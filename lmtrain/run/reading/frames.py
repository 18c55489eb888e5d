"""Makes data frames of pandas or polars from rows; both are optional."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed

if TYPE_CHECKING:
    import pandas
    import polars

    Frame: TypeAlias = pandas.DataFrame | polars.DataFrame

FrameLibrary: TypeAlias = Literal["pandas", "polars"]
LIBRARIES: tuple[FrameLibrary, ...] = ("pandas", "polars")


def frame_of(rows: Sequence[Mapping[str, Any]], library: FrameLibrary | None = None) -> "Frame":
    """Return rows as a data frame, with a column for each key of any row, in the order in which the keys appear.

    Args:
        rows: The rows. A key that a row lacks is missing there (NaN in pandas, null in polars).
        library: `pandas` or `polars`; None means pandas if it is installed, else polars.

    Raises:
        ConfigError: The library is not installed, or there is no such library.
    """
    if library not in (*LIBRARIES, None):
        raise ConfigError(f"library={library!r}: must be 'pandas' or 'polars'")
    installed = [name for name in LIBRARIES if is_installed(name)]
    chosen = library if library is not None else [*installed, "pandas"][0]
    if chosen not in installed:
        raise ConfigError(f"a data frame needs {chosen}, which is not installed: pip install {chosen}")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [row.get(key) for row in rows] for key in keys}
    if chosen == "pandas":
        import pandas

        return pandas.DataFrame(columns)
    import polars

    return polars.DataFrame(columns, strict=False)

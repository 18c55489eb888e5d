"""Tests of data frames from rows."""

import math

import pytest

from lmtrain.errors import ConfigError
from lmtrain.run.reading import frames
from lmtrain.run.reading.frames import frame_of

ROWS = [{"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": 2.0, "val/loss": 2.25}]


def test_rows_with_other_keys_become_columns_in_the_order_of_the_keys() -> None:
    frame = frame_of(ROWS)
    assert list(frame.columns) == ["step", "train/loss", "val/loss"]
    assert list(frame["step"]) == [1, 2]
    assert math.isnan(frame["val/loss"][0])
    assert frame["val/loss"][1] == 2.25


def test_polars_has_null_for_what_is_missing() -> None:
    assert frame_of(ROWS, "polars")["val/loss"].to_list() == [None, 2.25]


def test_no_rows_are_an_empty_frame() -> None:
    assert len(frame_of([])) == len(frame_of([], "polars")) == 0


@pytest.mark.parametrize(("only", "kind"), [("pandas", "pandas"), ("polars", "polars")])
def test_the_library_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch, only: str, kind: str) -> None:
    monkeypatch.setattr(frames, "is_installed", lambda name: name == only)
    assert type(frame_of(ROWS)).__module__.startswith(kind)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "is_installed", lambda name: False)
    with pytest.raises(ConfigError, match="needs pandas, which is not installed: pip install pandas"):
        frame_of(ROWS)
    with pytest.raises(ConfigError, match="needs polars"):
        frame_of(ROWS, "polars")

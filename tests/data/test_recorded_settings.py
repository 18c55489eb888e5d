"""Folders from older versions of lmtrain do not count as folders with other settings."""

import pytest

from lmtrain.data.recorded_settings import changed_settings


def test_a_setting_that_is_newer_than_the_folder_counts_as_its_default() -> None:
    older, now = {"source": {"text": "text"}}, {"text": "text", "skip_missing": False}
    assert changed_settings(older, {"source": now}) == []
    assert changed_settings(older, {"source": {"text": "text"}}) == []
    changed = ["prepare.source.skip_missing: false → true"]
    assert changed_settings(older, {"source": {**now, "skip_missing": True}}) == changed
    assert changed_settings({"source": now}, {"source": {**now, "skip_missing": True}}) == changed


def test_a_test_split_that_an_older_folder_could_not_ask_for_counts_as_none() -> None:
    older = {"holdout": {"val_share": 0.1}}
    assert changed_settings(older, {"holdout": {"val_share": 0.1, "test_share": 0}}) == []
    changed = ["prepare.holdout.test_share: 0 → 0.2"]
    assert changed_settings(older, {"holdout": {"val_share": 0.1, "test_share": 0.2}}) == changed


def test_an_older_folder_may_have_recorded_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    older = {"source": {"files": ["~/books/*.txt"]}, "tokenizer": {"path": "~/gpt2"}}
    now = {"source": {"files": ["/home/me/books/*.txt"]}, "tokenizer": {"path": "/home/me/gpt2"}}
    assert changed_settings(older, now) == []
    monkeypatch.setenv("HOME", "/home/another")
    assert len(changed_settings(older, now)) == 2

"""Tests that facts gathered in the background are those that a run would have found later."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.tokens import write_tokens

from lmtrain.data import tokenizer_trial
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer, save_tokenizer
from lmtrain.errors import DataError
from lmtrain.run import background
from lmtrain.run.background import BackgroundCall, BackgroundFacts, own_sources_changed_after

GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]


def facts_of(folder: Path) -> BackgroundFacts:
    return BackgroundFacts(OmegaConf.create({"data": {"path": str(folder)}}))


def test_a_call_in_the_background_returns_or_raises_what_the_function_does() -> None:
    assert BackgroundCall(lambda: 3, "three").result() == 3

    def fail() -> None:
        raise DataError("broken")

    failed = BackgroundCall(fail, "fail")
    for _ in range(2):
        with pytest.raises(DataError, match="broken"):
            failed.result()


def test_a_source_file_that_changes_while_the_run_starts_is_recorded_as_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "imported_while_starting.py"
    module.write_text("scale = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*GIT, *command], check=True)
    facts = facts_of(tmp_path)
    early = facts._facts.result()
    assert early["git"]["diff"] == ""
    module.write_text("scale = 22\n")
    importlib.import_module(module.stem)
    assert "+scale = 22" in facts.get()["git"]["diff"]
    sys.modules.pop(module.stem)


def test_facts_are_gathered_once_if_no_source_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "own_sources_changed_after", lambda moment: False)
    facts = facts_of(tmp_path)
    assert facts.get() is facts._facts.result()


def test_only_changed_files_outside_installed_packages_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    installed, own = tmp_path / "site-packages" / "installed_just_now.py", tmp_path / "own_just_now.py"
    later = time.time() + 3600
    for file in (installed, own):
        file.write_text("")
        os.utime(file, (later, later))
    moment = later - 1  # after every other change
    importlib.import_module(installed.stem)
    assert not own_sources_changed_after(moment)
    importlib.import_module(own.stem)
    assert own_sources_changed_after(moment)
    own.unlink()
    assert not own_sources_changed_after(moment)
    for file in (installed, own):
        sys.modules.pop(file.stem)


def test_a_tokenizer_that_was_tried_ahead_is_loaded_without_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models

    folder = write_tokens(tmp_path / "data")
    save_tokenizer(folder, StoredTokenizer(Tokenizer(models.WordLevel({"tried_ahead": 0}, "tried_ahead")), None))
    tokenizer_trial.try_tokenizer.cache_clear()
    facts_of(folder).wait_for_trial()

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(tokenizer_trial.subprocess, "run", refuse)
    assert load_tokenizer(folder).vocab_size == 1


def test_a_damaged_tokenizer_is_reported_where_it_is_loaded(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "data")
    (folder / TOKENIZER_FILE).write_text("{}")
    facts_of(folder).wait_for_trial()
    with pytest.raises(DataError, match="not a file that the tokenizers library reads"):
        load_tokenizer(folder)

import logging
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmtrain.errors import InterruptedBySignal
from lmtrain.logger.base import CompositeLogger, RunInfo, folder_below
from lmtrain.terminal.paths import change_folder


class Minimal:
    """Has only the two methods that every logger needs."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self, status: str) -> None:
        pass


class Recorder:
    """Records its calls in a list that several loggers share, and raises in the methods named in `fails`."""

    def __init__(self, name: str, calls: list[tuple[str, ...]], fails: tuple[str, ...] = ()) -> None:
        self.name, self.calls, self.fails = name, calls, fails

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._record("log", str(step), str(metrics["train/loss"]))

    def close(self, status: str) -> None:
        self._record("close", status)

    def rewind(self, step: int) -> None:
        self._record("rewind", str(step))

    def _record(self, method: str, *arguments: str) -> None:
        self.calls.append((self.name, method, *arguments))
        if method in self.fails:
            raise OSError(f"{self.name} is full")


def test_the_truth_is_called_first_and_then_the_members_in_order() -> None:
    calls: list[tuple[str, ...]] = []
    logger = CompositeLogger(Recorder("truth", calls), [Recorder("one", calls), Recorder("two", calls)])
    logger.log(1, {"train/loss": 0.5})
    logger.close("completed")
    assert calls == [
        ("truth", "log", "1", "0.5"),
        ("one", "log", "1", "0.5"),
        ("two", "log", "1", "0.5"),
        ("truth", "close", "completed"),
        ("one", "close", "completed"),
        ("two", "close", "completed"),
    ]


class Interrupted(Recorder):
    def close(self, status: str) -> None:
        super().close(status)
        raise InterruptedBySignal(signal.SIGINT)


def test_a_signal_that_interrupts_one_close_leaves_no_other_logger_open() -> None:
    calls: list[tuple[str, ...]] = []
    members = [Interrupted("interrupted", calls), Recorder("bad", calls, fails=("close",)), Recorder("last", calls)]
    with pytest.raises(InterruptedBySignal):
        CompositeLogger(Recorder("truth", calls), members).close("completed")
    assert [name for name, _, _ in calls] == ["truth", "interrupted", "bad", "last"]


def test_a_member_that_fails_is_removed_with_a_warning_and_the_others_continue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[tuple[str, ...]] = []
    members = [Recorder("bad", calls, fails=("log",)), Recorder("good", calls)]
    logger = CompositeLogger(Recorder("truth", calls), members)
    for step in (1, 2):
        logger.log(step, {"train/loss": 0.5})
    logger.close("completed")
    assert [call[1:3] for call in calls if call[0] == "bad"] == [("log", "1")]
    for name in ("truth", "good"):
        assert [call[1:3] for call in calls if call[0] == name] == [("log", "1"), ("log", "2"), ("close", "completed")]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["Recorder failed and gets no more metrics: OSError: bad is full"]
    assert len(members) == 2  # the caller's list stays unchanged


def test_a_member_that_fails_to_close_does_not_keep_the_others_open() -> None:
    calls: list[tuple[str, ...]] = []
    members = [Recorder("bad", calls, fails=("close",)), Recorder("good", calls)]
    CompositeLogger(Recorder("truth", calls), members).close("failed")
    assert ("good", "close", "failed") in calls


def test_an_error_of_the_truth_stops_the_run() -> None:
    calls: list[tuple[str, ...]] = []
    logger = CompositeLogger(Recorder("truth", calls, fails=("log",)), [Recorder("one", calls)])
    with pytest.raises(OSError, match="truth is full"):
        logger.log(1, {"train/loss": 0.5})
    assert calls == [("truth", "log", "1", "0.5")]


def test_the_members_are_closed_even_if_the_truth_cannot_be() -> None:
    calls: list[tuple[str, ...]] = []
    logger = CompositeLogger(Recorder("truth", calls, fails=("close",)), [Recorder("one", calls)])
    with pytest.raises(OSError, match="truth is full"):
        logger.close("failed")
    assert ("one", "close", "failed") in calls


def test_a_logger_without_members_works() -> None:
    calls: list[tuple[str, ...]] = []
    logger = CompositeLogger(Recorder("truth", calls), [])
    logger.log(1, {"train/loss": 0.5})
    logger.close("completed")
    assert calls == [("truth", "log", "1", "0.5"), ("truth", "close", "completed")]


def test_rewind_reaches_the_truth_and_the_members_that_support_it(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[str, ...]] = []
    members = [Recorder("bad", calls, fails=("rewind",)), Minimal(), Recorder("good", calls)]
    logger = CompositeLogger(Recorder("truth", calls), members)
    logger.rewind(7)
    assert calls == [(name, "rewind", "7") for name in ("truth", "bad", "good")]
    assert [type(member) for member in logger.members] == [Minimal, Recorder]
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [logging.WARNING]


def test_flat_config_has_dotted_keys() -> None:
    config = {"seed": 1, "optimizer": {"betas": [0.9, 0.95], "groups": {"lr": None}}, "logger": {}}
    info = RunInfo(Path("a"), id="id", name="a", group="b", config=config)
    assert info.flat_config == {"seed": 1, "optimizer.betas": [0.9, 0.95], "optimizer.groups.lr": None, "logger": {}}


def test_a_folder_for_all_runs_must_be_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_below("logger.a.folder", "outputs/a", tmp_path / "run") == tmp_path / "outputs" / "a"
    for elsewhere in ("/somewhere", "../somewhere", "a/../../b"):
        with pytest.raises(ValueError, match=r"^logger.a.folder=.*: give a folder below the one you work in, or null$"):
            folder_below("logger.a.folder", elsewhere, tmp_path / "run")


def test_a_folder_for_all_runs_must_be_below_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here/started", "elsewhere/run", "disk"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    run_dir = tmp_path / "elsewhere" / "run"
    (tmp_path / "here" / "outputs").symlink_to(tmp_path / "disk")
    (tmp_path / "here" / "started" / "out").symlink_to(tmp_path / "elsewhere")
    assert folder_below("logger.a.folder", "outputs/a", run_dir) == tmp_path / "here" / "outputs" / "a"
    with pytest.raises(ValueError, match=r"^logger.a.folder=started/out/a: a link there leads out of the folder"):
        folder_below("logger.a.folder", "started/out/a", run_dir)
    change_folder(tmp_path / "here" / "started")  # a resume changes to the folder where the run was started
    assert folder_below("logger.a.folder", "a", run_dir) == tmp_path / "here" / "started" / "a"
    change_folder(tmp_path / "elsewhere")
    assert folder_below("logger.a.folder", "run/a", run_dir) == run_dir / "a"
    with pytest.raises(
        ValueError,
        match=r"^logger.a.folder=a: would be in .*/elsewhere, where the run says it was started; run the command there"
        ", or add logger.a.folder=null$",
    ):
        folder_below("logger.a.folder", "a", run_dir)

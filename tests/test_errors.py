"""Tests of the status and exit code that belong to each error."""

import signal

import pytest

from lmtrain import errors
from lmtrain.errors import Ending, ending_by_signal, ending_of, status_of


@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [
        (None, "completed", 0),
        (errors.PrunedError("no hope"), "pruned", 0),
        (errors.ConfigError("lr"), "failed", 2),
        (errors.DivergedError("nan"), "diverged", 3),
        (errors.NonFiniteStateError("nan"), "diverged", 3),
        (errors.InterruptedBySignal(signal.SIGINT), "interrupted", 130),
        (errors.InterruptedBySignal(signal.SIGTERM), "interrupted", 143),
        (errors.InterruptedBySignal(signal.SIGUSR1), "interrupted", 143),
        (errors.DataError("damaged"), "failed", 1),
        (RuntimeError("anything else"), "failed", 1),
    ],
)
def test_every_error_has_a_status_and_an_exit_code(error: BaseException | None, status: str, exit_code: int) -> None:
    assert ending_of(error) == Ending(status, exit_code)


def test_a_process_without_a_result_has_the_status_of_its_exit_code() -> None:
    endings = [
        errors.DIVERGED,
        errors.BAD_CONFIG,
        errors.FAILED,
        *map(ending_by_signal, (signal.SIGINT, signal.SIGTERM)),
    ]
    assert [status_of(ending.exit_code) for ending in endings] == [ending.status for ending in endings]
    assert status_of(-signal.SIGKILL) == "failed"

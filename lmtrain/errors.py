"""The errors that end a run or a command, and every way that a run can end: its status and its exit code."""

import signal
from dataclasses import dataclass


class ConfigError(ValueError):
    """A mistake in config or input; the message names the key, the value and the way out, and is all that is shown."""


class DataError(ValueError):
    """Token files are missing, damaged, or not what they say they are; the message names the file."""


class BrokenCheckpointError(RuntimeError):
    """The files of a checkpoint are not those that were written."""


class DivergedError(RuntimeError):
    """The loss is no longer finite, or a bad step came and the policy is to stop."""


class NonFiniteStateError(RuntimeError):
    """The state has a NaN or an infinity in it; it is not saved."""


class PrunedError(Exception):
    """A search asked the run to end, because it is unlikely to become the best; the message says why."""


class InterruptedBySignal(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt, it is not an Exception, which a library may swallow."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class SweepEndedError(RuntimeError):
    """Not all jobs of a sweep are done, as its closing table says; `exit_code` is the command's."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def os_error_line(error: OSError) -> str:
    """Return an error of the operating system for a reader: `FILE: what is wrong with it`."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


@dataclass(frozen=True)
class Ending:
    """A way for a run to end: the `status` in its `result.json`, and the exit code of its process."""

    status: str
    exit_code: int


COMPLETED = Ending("completed", 0)
PRUNED = Ending("pruned", 0)
FAILED = Ending("failed", 1)
BAD_CONFIG = Ending("failed", 2)
DIVERGED = Ending("diverged", 3)
INTERRUPTED = Ending("interrupted", 128 + signal.SIGINT)  # Ctrl-C; everything is saved
# Also a scheduler's warning, SIGUSR1, and a terminal that is gone, SIGHUP; everything is saved.
TERMINATED = Ending("interrupted", 128 + signal.SIGTERM)

SUCCESSFUL = frozenset({COMPLETED.status, PRUNED.status})
UNSUCCESSFUL = frozenset({FAILED.status, DIVERGED.status})  # an interrupted run is neither: it can go on


def ending_of(error: BaseException | None) -> Ending:
    """Return how a run ends that raised this error; None means that it raised none."""
    match error:
        case None:
            return COMPLETED
        case PrunedError():
            return PRUNED
        case ConfigError():
            return BAD_CONFIG
        case DivergedError() | NonFiniteStateError():
            return DIVERGED
        case InterruptedBySignal(number=number):
            return ending_by_signal(number)
    return FAILED


def ending_by_signal(number: int) -> Ending:
    """Return how a run ends that a signal stopped."""
    return INTERRUPTED if number == signal.SIGINT else TERMINATED


def status_of(exit_code: int) -> str:
    """Return the status of a run that left no `result.json`, by the exit code of its process."""
    known = (DIVERGED, INTERRUPTED, TERMINATED)
    return next((ending.status for ending in known if ending.exit_code == exit_code), FAILED.status)

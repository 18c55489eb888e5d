"""The errors that stop a run or a command, and the status and exit code of every way in which a run can end."""

import signal
from dataclasses import dataclass


class ConfigError(ValueError):
    """A mistake in config or input; the message names the key, the value and the way out, and is shown alone."""


class DataError(ValueError):
    """Token files are missing, damaged or inconsistent; the message names the file."""


class BrokenCheckpointError(RuntimeError):
    """The files of a checkpoint differ from those that were written."""


class DivergedError(RuntimeError):
    """The loss is no longer finite, or a bad step occurred and the policy is to stop."""


class NonFiniteStateError(RuntimeError):
    """The state contains a NaN or an infinity, and was therefore not saved."""


class LostRankError(RuntimeError):
    """Another process of the same run has failed or does not answer; the message says which, where and why.

    `trace` is the traceback of its error, if it told one. `unheard` is True if this process is cut off from the first
    one, so that both have to say it.
    """

    def __init__(self, message: str, trace: str = "", *, unheard: bool = False) -> None:
        super().__init__(message)
        self.trace, self.unheard = trace, unheard


class PrunedError(Exception):
    """A search stopped the run because it is unlikely to become the best; the message says why."""


class InterruptedBySignal(BaseException):
    """A signal asked the run to stop. It is not an Exception, so that no library swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class SweepEndedError(RuntimeError):
    """Not all jobs of a sweep completed; its closing table says which. `exit_code` is the exit code of the command."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def os_error_line(error: OSError) -> str:
    """Return the message for an error of the operating system: `FILE: REASON`."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


@dataclass(frozen=True)
class Ending:
    """A way in which a run can end: the `status` in its `result.json` and the exit code of its process."""

    status: str
    exit_code: int


COMPLETED = Ending("completed", 0)
PRUNED = Ending("pruned", 0)
FAILED = Ending("failed", 1)
BAD_CONFIG = Ending("failed", 2)
DIVERGED = Ending("diverged", 3)
INTERRUPTED = Ending("interrupted", 128 + signal.SIGINT)  # Ctrl-C; everything is saved
# SIGTERM, SIGUSR1 and SIGUSR2 (a cluster's warnings), and SIGHUP (the terminal was closed); everything is saved.
TERMINATED = Ending("interrupted", 128 + signal.SIGTERM)

SUCCESSFUL = frozenset({COMPLETED.status, PRUNED.status})
UNSUCCESSFUL = frozenset({FAILED.status, DIVERGED.status})  # an interrupted run is neither: it can be resumed


def ending_of(error: BaseException | None) -> Ending:
    """Return the ending of a run that raised this error; None means no error."""
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
    """Return the ending of a run that was stopped by this signal."""
    return INTERRUPTED if number == signal.SIGINT else TERMINATED


def status_of(exit_code: int) -> str:
    """Return the status of a run without a `result.json`, derived from the exit code of its process."""
    known = (DIVERGED, INTERRUPTED, TERMINATED)
    return next((ending.status for ending in known if ending.exit_code == exit_code), FAILED.status)


# Errors that all processes of a run have, so that the first one reports them.
ENDS_EVERYWHERE = (InterruptedBySignal, PrunedError, DataError, DivergedError, LostRankError)

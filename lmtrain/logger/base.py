"""What a logger is, and several as one."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lmtrain.files.links import stays_inside
from lmtrain.terminal.paths import shell_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """What a logger may want to know of the run; `config` is resolved, in plain containers."""

    directory: Path
    id: str
    name: str
    group: str
    config: Mapping[str, Any]
    tags: Sequence[str] = ()

    @property
    def flat_config(self) -> dict[str, Any]:
        """The config by dotted key, `optimizer.lr`, as the tables of runs and the sweeps of other tools name it."""
        return dict(_leaves(self.config))


class Logger(Protocol):
    """Takes the metrics of a step, once a step and in ascending order; a new logger is a class with these two.

    One that can forget has `rewind(step)` as well, as in `RunLogger`; it is called at the start of every run, too.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep one step's metrics; must not wait for a network."""

    def close(self, status: str) -> None:
        """End the log; called once, with the run's status as in `result.json`."""


class RunLogger(Logger, Protocol):
    """What the training loop logs to: it can go back."""

    def rewind(self, step: int) -> None:
        """Forget the steps after this one: they are about to be run again."""


class CompositeLogger:
    """Several loggers as one: the `truth`, whose errors stop the run, and optional `members`, whose errors do not.

    A member that fails is dropped with a warning. `close` closes all of them, also if a signal cuts one of them short.
    """

    def __init__(self, truth: RunLogger, members: Sequence[Logger]) -> None:
        self.truth, self.members = truth, list(members)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.truth.log(step, metrics)
        self._each("log", step, metrics)

    def rewind(self, step: int) -> None:
        """Rewind the truth and the members that can; the others may show a step twice."""
        self.truth.rewind(step)
        self._each("rewind", step)

    def close(self, status: str) -> None:
        with contextlib.ExitStack() as stack:
            for member in reversed(self.members):
                stack.callback(self._call, member, "close", status)
            stack.callback(self.truth.close, status)

    def _each(self, method: str, *arguments: Any) -> None:
        for member in self.members[:]:
            self._call(member, method, *arguments)

    def _call(self, member: Logger, method: str, *arguments: Any) -> None:
        try:
            if method != "rewind" or hasattr(member, method):
                getattr(member, method)(*arguments)
        except Exception as error:
            self.members.remove(member)
            log.warning(
                "%s failed and is left out from here: %s: %s", type(member).__name__, type(error).__name__, error
            )
            log.debug("its traceback", exc_info=True)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class ElsewhereError(ValueError):
    """A folder lies below the one that a resumed run says it was started in, and not where the command was given."""


def folder_below(key: str, folder: str, run_dir: Path) -> Path:
    """Return the folder that a config names for all runs to write to, as an absolute path.

    Raises:
        ValueError: it lies neither below the folder that the command was given in nor in the run's directory; a config
            that others wrote should not reach further.
        ElsewhereError: the same, of a run that is resumed: it goes on in the folder that it says it was started in,
            which may be another one.
    """
    path = Path(folder)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{key}={folder}: give a folder below the one you work in, or null")
    path = Path.cwd() / path
    if any(stays_inside(path, place) for place in (shell_folder(), run_dir)):
        return path
    if shell_folder() != Path.cwd():
        raise ElsewhereError(
            f"{key}={folder}: lies in {Path.cwd()}, which the run says it was started in; give the command there, or "
            f"with {key}=null"
        )
    raise ValueError(f"{key}={folder}: a link leads from there out of the folder you work in; give another, or null")

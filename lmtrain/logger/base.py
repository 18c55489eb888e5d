"""The interface of loggers, and a logger that combines several."""

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
    """Describes the run to a logger; `config` is resolved and consists of plain containers."""

    directory: Path
    id: str
    name: str
    group: str
    config: Mapping[str, Any]
    tags: Sequence[str] = ()

    @property
    def flat_config(self) -> dict[str, Any]:
        """The config by dotted key (`optimizer.lr`), as other tools name keys in their tables and sweeps."""
        return dict(_leaves(self.config))


class Logger(Protocol):
    """Receives the metrics of each logged step once, in ascending order. A new logger needs these two methods.

    A logger that can remove steps also has `rewind(step)`, as `RunLogger` does. It is called at the start of every run,
    too. A logger that can show texts also has `log_samples(step, samples)`; a sample is a prompt and its continuation.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step. This must not wait for a network."""

    def close(self, status: str) -> None:
        """Finish the log. This is called once, with the run's status as in `result.json`."""


class RunLogger(Logger, Protocol):
    """A logger for the training loop, which can remove steps."""

    def rewind(self, step: int) -> None:
        """Remove the steps after this one, which are about to be run again."""

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Record texts that the model wrote after a step: prompts and their continuations."""


OPTIONAL_METHODS = ("rewind", "log_samples")


class CompositeLogger:
    """Combines the `truth`, whose errors stop the run, and optional `members`, whose errors do not.

    A member that fails is removed with a warning. `close` closes all loggers, even if a signal interrupts one.
    """

    def __init__(self, truth: RunLogger, members: Sequence[Logger]) -> None:
        self.truth, self.members = truth, list(members)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.truth.log(step, metrics)
        self._each("log", step, metrics)

    def rewind(self, step: int) -> None:
        """Rewind the truth and the members that support it. Other members may show a step twice."""
        self.truth.rewind(step)
        self._each("rewind", step)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Give texts to the members that show them."""
        self._each("log_samples", step, samples)

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
            if method not in OPTIONAL_METHODS or hasattr(member, method):
                getattr(member, method)(*arguments)
        except Exception as error:
            self.members.remove(member)
            log.warning(
                "%s failed and gets no more metrics: %s: %s", type(member).__name__, type(error).__name__, error
            )
            log.debug("traceback", exc_info=True)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class ElsewhereError(ValueError):
    """A folder is below the one where a resumed run says it was started, but the command runs elsewhere."""


def folder_below(key: str, folder: str, run_dir: Path) -> Path:
    """Return the absolute path of a folder that a config names for all runs to write to.

    Raises:
        ValueError: the folder is neither below the folder where the command was started nor in the run directory. A
            config that someone else wrote must not write elsewhere.
        ElsewhereError: the same for a resumed run, which continues in the folder where it says it was started.
    """
    path = Path(folder)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{key}={folder}: give a folder below the one you work in, or null")
    path = Path.cwd() / path
    if any(stays_inside(path, place) for place in (shell_folder(), run_dir)):
        return path
    if shell_folder() != Path.cwd():
        raise ElsewhereError(
            f"{key}={folder}: would be in {Path.cwd()}, where the run says it was started; run the command there, or "
            f"add {key}=null"
        )
    raise ValueError(f"{key}={folder}: a link there leads out of the folder you work in; give another folder, or null")

"""Does slow work in the background while a run's parts are imported and built.

Git and the trial of a tokenizer are other processes, which the run would only wait for.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from omegaconf import DictConfig

from lmtrain.config.token_files import token_folders
from lmtrain.run.environment import machine_and_git
from lmtrain.run.identity import plain_config
from lmtrain.run.source_code import INSTALLED, STDLIB

T = TypeVar("T")

# Seconds by which the clock of a file's change may differ from this machine's, for example on a network file system.
CLOCK_ERROR_S = 2.0


class BackgroundCall(Generic[T]):
    """Calls a function in a thread at once; `result` waits for it."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._found: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Return what the function returned, or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._function()
        except BaseException as error:
            self._error = error


class BackgroundFacts:
    """Gathers what `environment.json` says about machine, packages and git, and tries the data's tokenizer.

    Start it before torch is imported. Call it in the folder in which the run works.
    """

    def __init__(self, cfg: DictConfig) -> None:
        # Imported here, because two threads that import the same modules can hinder each other.
        from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, read_tokenizer_file

        self._started = time.time()
        self._config = plain_config(cfg)
        self._facts = BackgroundCall(self._gather, "facts")
        folder = next(iter(token_folders(cfg.data).values()), None)

        def try_tokenizer() -> None:
            if folder is not None:
                with contextlib.suppress(Exception):  # loading it reports the error
                    read_tokenizer_file(folder / TOKENIZER_FILE)

        self._trial = BackgroundCall(try_tokenizer, "tokenizer")

    def get(self) -> Mapping[str, Any]:
        """Return the facts as they are after all parts are built.

        If a source file that was imported since has changed meanwhile, they are gathered again: git must not say less
        than the run has used.
        """
        found = self._facts.result()
        return self._gather() if own_sources_changed_after(self._started - CLOCK_ERROR_S) else found

    def _gather(self) -> dict[str, Any]:
        return machine_and_git(self._config)

    def wait_for_trial(self) -> None:
        """Wait until the data's tokenizer was tried. To load it then takes no other process, unless it was refused."""
        self._trial.result()


def own_sources_changed_after(moment: float) -> bool:
    """Return whether the source file of an imported module has changed since, except for installed packages."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return any(_is_own(file) and _changed_at(file) > moment for file in files if isinstance(file, str))


def _is_own(file: str) -> bool:
    # Not by `Path`, which would take a hundredth of a second for all modules of a run.
    return not file.startswith(str(STDLIB)) and not any(f"{os.sep}{name}{os.sep}" in file for name in INSTALLED)


def _changed_at(file: str) -> float:
    try:
        status = os.stat(file)
    except OSError:  # a module of an archive, or a file that was removed
        return 0.0
    return max(status.st_mtime, status.st_ctime)

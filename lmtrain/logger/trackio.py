"""trackio, in a process of its own: importing it takes seconds, and it would ask the network who the user is."""

import json
import logging
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

from pydantic import PositiveFloat

from lmtrain.files.links import refuse_links
from lmtrain.logger import trackio_process
from lmtrain.logger.base import RunInfo, folder_below
from lmtrain.terminal.paths import shell_folder, short_path

log = logging.getLogger(__name__)

OWN_FOLDER = "TRACKIO_DIR"  # the variable that says where trackio's databases are


class TrackioLogger:
    """Logs to trackio's SQLite database of a project, in `folder` (null: where trackio itself has it); nothing is sent.

    A run that is resumed goes on under its name there, and steps that are run again replace those logged before. `log`
    returns at once, `close` within `finish_timeout_s`. If this process is killed, trackio's keeps what was logged.
    """

    def __init__(
        self, run: RunInfo, *, project: str, folder: str | None = None, finish_timeout_s: PositiveFloat = 60.0
    ) -> None:
        self.project, self.finish_timeout_s = project, finish_timeout_s
        environment = local_environment(os.environ)
        self.shown_by = f"trackio show --project {shlex.quote(project)}"
        if folder is not None:
            path = folder_below("logger.trackio.folder", folder, run.directory)
            refuse_links(path)  # to a database elsewhere
            environment[OWN_FOLDER] = str(path)
            self.shown_by = f"{OWN_FOLDER}={shlex.quote(short_path(path))} {self.shown_by}"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            # -P: beside the script there is a trackio.py that is not trackio.
            [sys.executable, "-P", trackio_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is for the run
            cwd=shell_folder(),
            env=environment,
        )
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        # The run's id, as trackio knows a run by its name, and two sweeps may have jobs of one name.
        init = {"project": project, "name": f"{run.name}-{run.id}", "group": run.group, "config": run.flat_config}
        self._queue.put({"init": init, "lock": str(run.directory / ".trackio.lock")})
        self._thread = threading.Thread(target=self._feed, name="trackio", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._put({"step": step, "metrics": dict(metrics)})

    def rewind(self, step: int) -> None:
        self._put({"rewind": step})

    def close(self, status: str) -> None:
        self._queue.put(None)
        try:
            code = self._process.wait(self.finish_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise TimeoutError(f"trackio has not finished within {self.finish_timeout_s:g} s") from None
        self._thread.join()
        if code:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(said[-1] if said else f"trackio's process ended with {code}")
        log.info("trackio has the run: %s", self.shown_by)

    def _put(self, item: dict[str, Any]) -> None:
        if self._thread.is_alive():  # else nobody empties the queue
            self._queue.put(item)

    def _feed(self) -> None:
        """Write to the process; the training need not wait for it."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with stdin:
                while (item := self._queue.get()) is not None:
                    stdin.write(json.dumps(item, default=str).encode() + b"\n")
                    stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and `close` says why


def local_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what makes trackio send anything: its servers and the token of the hub."""
    kept = {
        name: value
        for name, value in environment.items()
        if name == OWN_FOLDER or not (name.startswith("TRACKIO_") or name.endswith(("HF_TOKEN", "HUB_TOKEN")))
    }
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }

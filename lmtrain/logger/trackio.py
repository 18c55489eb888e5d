"""Logs to trackio, which runs in a separate process.

Importing trackio takes seconds, and it would ask the network who the user is.
"""

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

OWN_FOLDER = "TRACKIO_DIR"  # the environment variable that names the folder of trackio's databases


class TrackioLogger:
    """Logs to a local SQLite database of trackio; nothing is sent to a server.

    A resumed run continues under its name, and steps that are run again replace those logged before. `log` returns at
    once, and `close` within `finish_timeout_s`. If the training process is killed, the logged steps are kept.

    Args:
        run: The run; given by lmtrain.
        project: Name of the trackio project, which has one database.
        folder: Folder of the databases, below the current folder; null means trackio's own folder.
        finish_timeout_s: Seconds that trackio has at the end of the run to write the remaining steps.
    """

    def __init__(
        self, run: RunInfo, *, project: str, folder: str | None = None, finish_timeout_s: PositiveFloat = 60.0
    ) -> None:
        self.project, self.finish_timeout_s = project, finish_timeout_s
        environment = local_environment(os.environ)
        self.shown_by = f"trackio show --project {shlex.quote(project)}"
        if folder is not None:
            path = folder_below("logger.trackio.folder", folder, run.directory)
            refuse_links(path)  # a link could lead to a database elsewhere
            environment[OWN_FOLDER] = str(path)
            self.shown_by = f"{OWN_FOLDER}={shlex.quote(short_path(path))} {self.shown_by}"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            # -P: the folder of the script has a trackio.py that is not trackio itself.
            [sys.executable, "-P", trackio_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is meant for the run
            cwd=shell_folder(),
            env=environment,
        )
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        # The name contains the run's id: trackio identifies runs by name, and jobs of two sweeps may have the same one.
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
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"trackio's process ended with exit code {code}")
        log.info("to see the run in trackio: %s", self.shown_by)

    def _put(self, item: dict[str, Any]) -> None:
        if self._thread.is_alive():  # otherwise nothing empties the queue
            self._queue.put(item)

    def _feed(self) -> None:
        """Write the queued items to the process, so that the training need not wait for it."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with stdin:
                while (item := self._queue.get()) is not None:
                    stdin.write(json.dumps(item, default=str).encode() + b"\n")
                    stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, and `close` reports why


def local_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that make trackio send data: its servers and Hub tokens."""
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

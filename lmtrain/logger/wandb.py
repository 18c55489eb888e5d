"""Logs to Weights & Biases, which runs in a separate process.

Its client can be slow, hang, print or crash without affecting the run.
"""

import logging
import multiprocessing
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat

from lmtrain.logger import wandb_process
from lmtrain.logger.base import ElsewhereError, RunInfo, folder_below
from lmtrain.terminal.paths import shell_folder, short_path
from lmtrain.terminal.redact import redacted

log = logging.getLogger(__name__)

OFFLINE_START_TIMEOUT_S = 60.0  # a start takes one or two seconds, more on a busy machine
GRACE_S = 5.0  # time for W&B to report that it timed out, before its process is killed
MODES: tuple[Literal["offline", "online", "disabled"], ...] = ("offline", "online", "disabled")
OFFLINE_PREFIX = "offline-run-"  # how W&B names the folders of offline runs
MAX_TAG_CHARS = 64  # W&B's limit


class WandbError(RuntimeError):
    """W&B failed or did not answer in time; the message says which of the two."""


class WandbLogger:
    """Logs to Weights & Biases, with all its files in `<run directory>/wandb/`.

    `log` returns at once, and `close` within the two timeouts and a few seconds. If the training process is killed, W&B
    finishes the run with the status "killed". A run that `wandb agent` starts is online and has the id and project of
    the agent.

    Args:
        run: The run; given by lmtrain.
        project: Name of the W&B project.
        mode: `offline` keeps everything on this machine until `wandb sync` uploads it; `online` uploads during the run;
            `disabled` does nothing. The environment variable WANDB_MODE wins.
        entity: W&B team or user; null means your default.
        tags: Tags of the run, in addition to those of lmtrain (the experiment's name, and `sweep`).
        notes: Notes about the run.
        links: Folder below the current one that gets a link to the run's W&B files, for `wandb leet`; null means none.
        init_timeout_s: Seconds that the server has to answer. After that, or if it refuses, the run is logged offline.
        finish_timeout_s: Seconds for the last uploads. The rest stays on disk for `wandb sync`.
    """

    def __init__(
        self,
        run: RunInfo,
        *,
        project: str,
        mode: Literal["offline", "online", "disabled"] = "offline",
        entity: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        links: str | None = None,
        init_timeout_s: PositiveFloat = 30.0,
        finish_timeout_s: PositiveFloat = 60.0,
    ) -> None:
        started_by_agent = run.id == agent_run_id()
        if (wanted := os.environ.get("WANDB_MODE")) in MODES and wanted != mode:
            log.info("using WANDB_MODE=%s instead of logger.wandb.mode=%s", wanted, mode)
            mode = wanted
        self.mode = "online" if started_by_agent and mode == "offline" else mode
        self.links = _folder_of_links(links, run.directory) if links and mode != "disabled" else None
        self.init_timeout_s, self.finish_timeout_s = init_timeout_s, finish_timeout_s
        self.run_dir = run.directory
        self.init = {
            "tags": list(dict.fromkeys(tag[:MAX_TAG_CHARS] for tag in [*(tags or []), *run.tags])),
            "notes": notes,
            "name": run.name,
            "group": run.group,
            "config": run.flat_config,  # W&B sweeps also use dotted keys like optimizer.lr
            "dir": str(run.directory),
            "resume": "allow",
        }
        if not started_by_agent:  # an agent sets these in the environment
            self.init |= {"project": project, "entity": entity, "id": run.id}
        self._queue: queue.SimpleQueue[dict[str, Any] | str] = queue.SimpleQueue()
        self._client: _Client | None = None
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._thread.is_alive():  # otherwise nothing empties the queue
            self._queue.put({wandb_process.STEP: step, **metrics})

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        if self._thread.is_alive():
            self._queue.put({wandb_process.STEP: step, wandb_process.SAMPLES: [list(sample) for sample in samples]})

    def close(self, status: str) -> None:
        self._queue.put(status)
        self._thread.join(self.init_timeout_s + self.finish_timeout_s + 2 * GRACE_S)
        if self._thread.is_alive() and self._client:
            self._client.kill()  # the thread notices and logs a warning
            self._thread.join(GRACE_S)
        if self._client and Path(self._client.directory).name.startswith(OFFLINE_PREFIX):
            log.info(
                "to upload it to W&B: wandb sync %s/wandb/%s*", shlex.quote(short_path(self.run_dir)), OFFLINE_PREFIX
            )

    def _work(self) -> None:
        try:
            client = self._start()
            while isinstance(item := self._queue.get(), dict):
                client.send(item)
            client.send(item)
            client.receive(self.finish_timeout_s + GRACE_S)
        except Exception as error:
            log.warning("W&B: %s; it gets no more metrics, but metrics.jsonl has everything", error)
            if self._client and self._client.directory and self.mode == "online":
                log.warning("to upload what W&B has: wandb sync %s", shlex.quote(self._client.directory))
            log.debug("traceback", exc_info=True)
        finally:
            if self._client:
                self._client.end()

    def _start(self) -> "_Client":
        if self.mode != "online":
            return self._start_client(self.mode, OFFLINE_START_TIMEOUT_S)
        try:
            return self._start_client("online", self.init_timeout_s + GRACE_S)
        except WandbError as error:
            log.warning("W&B: %s; the run is logged offline, and `wandb sync` uploads it later", error)
            log.debug("traceback", exc_info=True)
        return self._start_client("offline", OFFLINE_START_TIMEOUT_S)

    def _start_client(self, mode: str, timeout_s: float) -> "_Client":
        if self._client:
            self._client.end()
        self._client = _Client(self.run_dir)
        settings = {
            "init_timeout": self.init_timeout_s,
            "finish_timeout": self.finish_timeout_s,
            "finish_timeout_raises": True,
            "silent": True,
            "console": "off",  # train.log has it
            "disable_git": True,  # environment.json has it
            "disable_code": True,
            "save_code": False,
            "x_stats_pid": os.getpid(),  # system metrics of the training, not of W&B's process
        }
        self._client.send({"init": {**self.init, "mode": mode}, "settings": settings, "links": self.links})
        self._client.directory = self._client.receive(timeout_s)
        return self._client


def _folder_of_links(links: str, run_dir: Path) -> str | None:
    """Return the folder for links to the run's files, or None with a warning if a resume must not write there."""
    try:
        return str(folder_below("logger.wandb.links", links, run_dir))
    except ElsewhereError as error:  # the run works without links
        log.warning("%s; no links are made", error)
        return None


def agent_run_id() -> str | None:
    """Return the id that `wandb agent` gave to this process's run; None if no agent started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


class _Client:
    """Runs `wandb_process` in a separate process, away from the output, signals and hooks of this one.

    Raises:
        WandbError: `send` or `receive` was called after the process had failed.
    """

    def __init__(self, run_dir: Path) -> None:
        self.directory = ""  # where W&B has the files of this run
        self._connection, theirs = multiprocessing.Pipe()
        # Without WANDB_SERVICE, which another run may have started: that service would end with the other run.
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        environment |= {
            "WANDB_CACHE_DIR": str(run_dir),  # W&B appends wandb/ and writes its logs there
            "WANDB_ERROR_REPORTING": "false",  # W&B reports errors to its makers, even when offline
            "WANDB_PROGRAM": sys.argv[0],
        }
        with theirs:
            self._process = subprocess.Popen(
                # -P: the folder of the script has a wandb.py that is not W&B's.
                [sys.executable, "-P", wandb_process.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is meant for the run
                cwd=shell_folder(),  # W&B reads settings from the current folder, such as the address of its server
                env=environment,
            )
        self.send(redacted(sys.argv))

    def send(self, item: Any) -> None:
        try:
            wandb_process.send(self._connection, item)
        except ConnectionError:
            self.receive(0)  # raises the reason, if the process sent one
            raise

    def receive(self, timeout_s: float) -> str:
        """Return the directory in the reply of the process, waiting at most `timeout_s`."""
        if not self._connection.poll(timeout_s):
            self.kill()
            raise WandbError(f"no answer within {timeout_s:g} s")
        try:
            reply: wandb_process.Reply = wandb_process.receive(self._connection)
        except (EOFError, ConnectionError):
            raise WandbError("its process ended") from None
        if reply["error"]:
            raise WandbError(reply["error"]) from RuntimeError(reply["traceback"])
        return reply["directory"]

    def end(self) -> None:
        """Give the process a moment to end by itself, then kill it."""
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._connection.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

"""Weights & Biases, in a process of its own: its client can be slow, hang, print or crash without the run noticing."""

import logging
import multiprocessing
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat

from lmtrain.logger import wandb_process
from lmtrain.logger.base import ElsewhereError, RunInfo, folder_below
from lmtrain.terminal.paths import shell_folder, short_path
from lmtrain.terminal.redact import redacted

log = logging.getLogger(__name__)

OFFLINE_START_TIMEOUT_S = 60.0  # it takes a second or two, more on a busy machine
GRACE_S = 5.0  # for W&B to say that a time-out of its own is over, before its process is killed
MODES: tuple[Literal["offline", "online", "disabled"], ...] = ("offline", "online", "disabled")
OFFLINE_PREFIX = "offline-run-"  # of the folders of W&B's files
MAX_TAG_CHARS = 64  # W&B's limit


class WandbError(RuntimeError):
    """W&B failed or did not answer in time; the message says which."""


class WandbLogger:
    """Logs to W&B; all its files lie under `<run directory>/wandb/`.

    Offline (the default) nothing leaves the machine; `wandb sync` uploads later. Online, a server that refuses or
    does not answer within `init_timeout_s` makes the run an offline one, and W&B gives up after `finish_timeout_s` on
    what is not uploaded at the end; both with a warning. In any case `log` returns at once and `close` within
    these times and a few seconds, and nothing of W&B runs in this process. If this process is killed, W&B finishes
    with the status "killed". A run that `wandb agent` starts is online, under the id and in the project that the agent
    gives. W&B's own variable WANDB_MODE wins over `mode`.
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
        agents = run.id == agent_run_id()
        if (asked := os.environ.get("WANDB_MODE")) in MODES and asked != mode:
            log.info("WANDB_MODE=%s is taken, in place of logger.wandb.mode=%s", asked, mode)
            mode = asked
        self.mode = "online" if agents and mode == "offline" else mode
        self.links = _folder_of_links(links, run.directory) if links and mode != "disabled" else None
        self.init_timeout_s, self.finish_timeout_s = init_timeout_s, finish_timeout_s
        self.run_dir = run.directory
        self.init = {
            "tags": list(dict.fromkeys(tag[:MAX_TAG_CHARS] for tag in [*(tags or []), *run.tags])),
            "notes": notes,
            "name": run.name,
            "group": run.group,
            "config": run.flat_config,  # a sweep of W&B's calls them optimizer.lr, too
            "dir": str(run.directory),
            "resume": "allow",
        }
        if not agents:  # whose environment says the following
            self.init |= {"project": project, "entity": entity, "id": run.id}
        self._queue: queue.SimpleQueue[dict[str, float] | str] = queue.SimpleQueue()
        self._client: _Client | None = None
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._thread.is_alive():  # else nobody empties the queue
            self._queue.put({wandb_process.STEP: step, **metrics})

    def close(self, status: str) -> None:
        self._queue.put(status)
        self._thread.join(self.init_timeout_s + self.finish_timeout_s + 2 * GRACE_S)
        if self._thread.is_alive() and self._client:
            self._client.kill()  # the thread sees that, and says so
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
            log.warning("W&B: %s; it is left out from here, metrics.jsonl has everything", error)
            if self._client and self._client.directory and self.mode == "online":
                log.warning("`wandb sync %s` uploads what W&B has", self._client.directory)
            log.debug("its traceback", exc_info=True)
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
            log.debug("its traceback", exc_info=True)
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
    """Return the folder for links to the run's files; None, with a warning, where a resume should not write to it."""
    try:
        return str(folder_below("logger.wandb.links", links, run_dir))
    except ElsewhereError as error:  # the run does without
        log.warning("%s; the links are left out", error)
        return None


def agent_run_id() -> str | None:
    """Return the id that `wandb agent` gave to this process's run; None if no agent started it."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


class _Client:
    """The process of `wandb_process`, which knows nothing of this one's output, signals and hooks.

    Raises:
        WandbError: from `send` and `receive`, once the process has failed.
    """

    def __init__(self, run_dir: Path) -> None:
        self.directory = ""  # W&B's files of this run
        self._connection, theirs = multiprocessing.Pipe()
        # No service that another run has started: it would end with that one.
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        environment |= {
            "WANDB_CACHE_DIR": str(run_dir),  # for W&B's own logs; it appends wandb/
            "WANDB_ERROR_REPORTING": "false",  # to W&B the company, also offline
            "WANDB_PROGRAM": sys.argv[0],
        }
        with theirs:
            self._process = subprocess.Popen(
                # -P: beside the script there is a wandb.py that is not W&B's.
                [sys.executable, "-P", wandb_process.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the run
                cwd=shell_folder(),  # W&B reads settings, its server's address among them, from the folder it is in
                env=environment,
            )
        self.send(redacted(sys.argv))

    def send(self, item: Any) -> None:
        try:
            wandb_process.send(self._connection, item)
        except ConnectionError:
            self.receive(0)  # why it ended
            raise

    def receive(self, timeout_s: float) -> str:
        """Return the directory that it answers with; wait for at most `timeout_s`."""
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
        """Wait for a moment, in case it is about to end by itself; else kill it."""
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._connection.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

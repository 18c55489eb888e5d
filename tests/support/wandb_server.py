"""A W&B server on loopback, for the requests that the real client makes in a run. It can also misbehave."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

API_KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "tester"
SWEEP = "sweep123"


@dataclass
class RecordedRun:
    """Holds the server's data about one run, with the names of W&B's interface."""

    id: str
    project: str
    display_name: str | None = None
    group: str | None = None
    notes: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)  # lines of the streamed files
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.files.get("wandb-summary.json", [])
        return json.loads(lines[-1]) if lines else {}

    @property
    def plain_config(self) -> dict[str, Any]:
        """The config as it was logged, without the wrappers and the extra entry of W&B."""
        return {key: value["value"] for key, value in self.config.items() if key != "_wandb"}


class WandbServer:
    """Serves while its context is open.

    With `refuse_keys` it answers every request as if the API key were wrong, and with `hang` it answers no request.
    `stop()` closes the port and all open connections. It has one sweep, `SWEEP`, and stores its config. It answers each
    heartbeat of an agent with the commands from `next_commands(running)`.
    """

    def __init__(self, *, refuse_keys: bool = False, hang: bool = False) -> None:
        self.refuse_keys, self.hang = refuse_keys, hang
        self.runs: dict[str, RecordedRun] = {}
        self.operations: list[str] = []
        self.sweep_config = ""
        self.next_commands: Callable[[list[str]], list[dict[str, Any]]] = lambda running: []
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a user sets to log to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def __enter__(self) -> Self:
        server = self

        class BoundHandler(_Handler):
            wandb = server

        self._http = _HttpServer(("127.0.0.1", 0), BoundHandler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if not self.stopping.is_set():
            self.stopping.set()
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one operation, or an empty one if the operation is unknown."""
        operation = query.split("(")[0].split("{")[0].split()[1]
        self.operations.append(operation)
        match operation:
            case "Viewer":
                return {"viewer": _VIEWER}
            case "ServerFeaturesQuery" | "ServerFeatures":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                run = self.runs.get(variables["name"])
                return {"model": _project(variables["project"]) | {"bucket": run and _bucket(run)}}
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(variables)}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
            case "UpsertSweep":
                self.sweep_config = variables["config"]
                sweep = {"name": SWEEP, "project": _project(variables["projectName"])}
                return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
            case "SweepWithRuns":
                sweep = {"id": SWEEP, "name": SWEEP, "state": "RUNNING", "config": self.sweep_config}
                return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "agent"}}}
            case "Heartbeat":
                commands = self.next_commands(list(json.loads(variables["runState"])))
                return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return {}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], RecordedRun(variables["name"], variables["project"]))
        run.display_name = variables.get("displayName") or run.display_name
        run.group = variables.get("groupName") or run.group
        run.notes = variables.get("notes") or run.notes
        run.sweep = variables.get("sweep") or run.sweep
        run.tags = variables.get("tags") or run.tags
        run.config |= json.loads(variables.get("config") or "{}")
        return {"bucket": _bucket(run), "inserted": inserted}

    def file_stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.runs[run_id]
        for name, chunk in (body.get("files") or {}).items():
            lines = run.files.setdefault(name, [])
            # Like the real server, write the lines where the client says, over existing ones.
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
        if body.get("complete"):
            run.exit_code = body["exitcode"]


_VIEWER = {
    "id": "viewer",
    "entity": ENTITY,
    "username": ENTITY,
    "email": "tester@example.invalid",
    "admin": False,
    "flags": "{}",
    "teams": {"edges": []},
}


def _project(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


def _bucket(run: RecordedRun) -> dict[str, Any]:
    telemetry = run.config.get("_wandb", {}).get("value", {}).get("t")
    lines = {name: len(run.files.get(file, [])) for name, file in _COUNTED_FILES.items()}
    return (
        lines
        | {
            "id": run.id,
            "name": run.id,
            "displayName": run.display_name,
            "description": run.notes,
            "groupName": run.group,
            "tags": run.tags,
            "config": json.dumps(run.config),
            "wandbConfig": json.dumps({"t": telemetry}),  # without it, the client assumes that the run is new
            "summaryMetrics": json.dumps(run.summary),
            "historyTail": json.dumps(run.files.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": json.dumps(run.files.get("wandb-events.jsonl", [])[-1:]),
            "sweepName": run.sweep,
            "project": _project(run.project),
        }
    )


_COUNTED_FILES = {
    "historyLineCount": "wandb-history.jsonl",
    "eventsLineCount": "wandb-events.jsonl",
    "logLineCount": "output.log",
}


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors, since the client may disconnect at any time."""


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        super().handle_one_request()
        if self.wandb.stopping.is_set():
            self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.wandb.hang:
            self.wandb.stopping.wait()
        if self.wandb.stopping.is_set():
            self.close_connection = True
            return
        if self.wandb.refuse_keys:
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
            return
        with self.wandb.lock:
            status, answer = self._dispatch(body)
        self._answer(status, answer)

    def _dispatch(self, body: bytes) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(self.path).path.strip("/").split("/")
        match parts:
            case ["graphql"]:
                request = json.loads(body)
                return 200, {"data": self.wandb.graphql(request["query"], request.get("variables") or {})}
            case ["files", _, _, run_id, "file_stream"]:
                self.wandb.file_stream(run_id, json.loads(body))
                return 200, {"exitcode": None, "limits": {}}
            case ["storage", *_]:
                return 200, {}
        return 404, {}

    do_GET = do_POST = do_PUT = do_HEAD = _serve  # noqa: N815 (http.server expects these names)

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass

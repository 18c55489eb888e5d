"""The server of the Model Context Protocol: a tool for each thing that an agent does in a research loop."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ParamSpec, TypeVar

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

import lmtrain
from lmtrain.comparison.looking.picked import CONFIRM_FOLDER
from lmtrain.errors import BAD_CONFIG, ConfigError
from lmtrain.files.limited import read_json
from lmtrain.mcp.budget import ComputeBudget
from lmtrain.mcp.jobs import Commands, RunningCommand, describe
from lmtrain.mcp.limits import check_overrides, check_paths, check_runs

FOLDER = Path("outputs", "mcp")  # of the ledger, the logs and the runs, in the folder of the server
MAX_RUNS_IN_ANSWER = 40
INSTRUCTIONS = """\
lmtrain trains small language models from composed configs and tells whether one setting is really better than another.
Work in this order: `plan` a config before you train it; `train` or `sweep` (they return a job: ask for it with `job`
until its state is "ended"); `compare` runs that differ in their setting, with at least three seeds each; `confirm` the
best settings of a sweep on fresh seeds; to test an idea against a baseline, use `decide`: it chooses the number of
seeds itself and keeps the false discoveries of the whole campaign rare. Believe only verdicts, not single numbers: one
run of each setting shows nothing. Overrides are texts such as "experiments=quickstart", "optimizer.lr=3e-3" or
"seed=1,2,3" (several values: only in a sweep)."""

Overrides = Annotated[
    list[str], Field(description='config overrides, such as ["experiments=tiny", "optimizer.lr=3e-3"]')
]
Wait = Annotated[float, Field(ge=0, le=600, description="seconds to wait for the end before answering")]
P = ParamSpec("P")
R = TypeVar("R")


def serve(folder: Path, hours: float, *, network: bool) -> None:
    """Serve over standard input and output until the client closes it, then stop what still runs."""
    folder = folder.resolve()
    commands = Commands(folder, ComputeBudget(folder / FOLDER, hours * 3600), network=network)
    anyio.run(make_server(commands).run_stdio_async)


def make_server(commands: Commands) -> MCPServer:
    """Return the server with its tools."""

    @asynccontextmanager
    async def lifespan(_: MCPServer) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(commands.watch)
            try:
                yield
            finally:
                group.cancel_scope.cancel()
                commands.stop_all()

    server = MCPServer(
        "lmtrain", version=lmtrain.__version__, instructions=INSTRUCTIONS, lifespan=lifespan, log_level="ERROR"
    )
    tools = Tools(commands)
    for tool in (
        tools.plan, tools.train, tools.sweep, tools.job, tools.stop, tools.compare, tools.decide, tools.decisions,
        tools.confirm, tools.sample, tools.budget,
    ):  # fmt: skip
        server.add_tool(_with_tool_errors(tool))
    return server


def _with_tool_errors(tool: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Return the tool with its mistakes reported to the client in one line."""

    @wraps(tool)
    async def reporting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await tool(*args, **kwargs)
        except ConfigError as error:
            raise ToolError(str(error)) from error

    return reporting


class Tools:
    """The tools of the server. The docstrings and descriptions are what an agent reads."""

    def __init__(self, commands: Commands) -> None:
        self.commands, self.folder = commands, commands.folder

    async def plan(self, overrides: Overrides, sweep: bool = False) -> dict[str, Any]:
        """Predict what a run, or with sweep=true each job of a sweep, would be: size, tokens, FLOPs, memory, time.

        It trains nothing and finds mistakes in the config. The answer has `remarks` about likely mistakes.
        """
        words = ["plan", *(["-m"] if sweep else []), *check_overrides(overrides, self.folder)]
        with TemporaryDirectory() as scratch:
            file = Path(scratch, "numbers.json")
            await self._finish([*words, "--json", str(file)])
            return read_json(file)

    async def train(self, overrides: Overrides, wait_seconds: Wait = 30) -> dict[str, Any]:
        """Start a training run, and answer when it has ended or after `wait_seconds`.

        The answer has the job's name (ask `job` for its end), the run directory, and the result when it has ended.
        To continue a stopped run, give only "resume=RUN_DIRECTORY" and what changes.
        """
        given = check_overrides(overrides, self.folder)
        resumed = _value_of("resume", given)
        one = self.commands.start(given, "hydra.run.dir=", resumed or _value_of("hydra.run.dir", given))
        return await self._answer(one.job, wait_seconds)

    async def sweep(self, overrides: Overrides, wait_seconds: Wait = 30) -> dict[str, Any]:
        """Start a sweep: overrides with several values, such as "optimizer.lr=1e-3,3e-3" and "seed=1,2,3".

        Give the same overrides and "hydra.sweep.dir=DIRECTORY" again to continue it; finished jobs are not repeated.
        """
        given = check_overrides(overrides, self.folder)
        one = self.commands.start(["-m", *given], "hydra.sweep.dir=", _value_of("hydra.sweep.dir", given))
        return await self._answer(one.job, wait_seconds)

    async def job(self, job: str, wait_seconds: Wait = 30) -> dict[str, Any]:
        """Return the state of a job that another tool started, at its end or after `wait_seconds`."""
        return await self._answer(job, wait_seconds)

    async def stop(self, job: str, wait_seconds: Wait = 30) -> dict[str, Any]:
        """Stop a job. It saves its state first, so that the run or the sweep can be continued."""
        self.commands.stop(self.commands.find(job))
        return await self._answer(job, wait_seconds)

    async def compare(
        self,
        runs: Annotated[list[str], Field(description="run or sweep directories")],
        metric: str = "val/loss",
        value: Annotated[
            str | None, Field(description="at-step, at-tokens, at-flops, at-seconds, best or final")
        ] = None,
        at_step: int | None = None,
        filters: Annotated[list[str] | None, Field(description='conditions, such as "optimizer.lr>1e-3"')] = None,
        margin: Annotated[float | None, Field(description="a difference too small to matter")] = None,
        baseline: Annotated[str | None, Field(description="compare all settings with this one")] = None,
    ) -> dict[str, Any]:
        """Compare runs: tables as JSON, and sentences that say whether the differences are more than noise.

        Runs that differ only in the seed are replicates; give every setting at least three. Read `sentences` and
        `notes` first. With more than 40 runs, the answer leaves out the list of single runs.
        """
        options = {"metric": metric, "value": value, "at-step": at_step, "margin": margin, "baseline": baseline}
        words = [f"--{name}={given}" for name, given in options.items() if given is not None]
        words += [f"--filter={condition}" for condition in filters or []]
        found = await self._finish(["compare", *check_runs(runs, self.folder), *words, "--json", "-"])
        content: dict[str, Any] = json.loads(found)
        if len(content["runs"]) > MAX_RUNS_IN_ANSWER:
            content["runs"] = f"{len(content['runs'])} runs, left out of this answer"
        return content

    async def decide(
        self,
        baseline: Overrides,
        challenger: Annotated[list[str], Field(description="overrides that change the baseline into the idea to test")],
        campaign: Annotated[str, Field(description="directory of the campaign, whose false discoveries are limited")],
        seeds: Annotated[int, Field(ge=2, le=1000, description="the most pairs of seeds to spend on this idea")] = 20,
        hours: Annotated[float | None, Field(gt=0, description="the most hours of training, summed over runs")] = None,
        margin: Annotated[float, Field(ge=0, description="the smallest gain that matters")] = 0.0,
        wait_seconds: Wait = 30,
    ) -> dict[str, Any]:
        """Test an idea against a baseline with pairs of seeds until the answer is keep, drop, or the budget is spent.

        It may be called again with the same arguments to continue. When it has ended, the answer has the `decision`;
        the exit code is 0 for keep, 10 for drop, 11 for undecided, and another one if there is no decision.
        """
        words = ["decide", "--baseline", *check_overrides(baseline, self.folder)]
        words += ["--challenger", *check_overrides(challenger, self.folder), f"--seeds={seeds}", f"--margin={margin}"]
        words += [f"--hours={hours}"] if hours is not None else []
        check_paths(campaign, self.folder, "campaign")
        one = self.commands.start([*words, f"--campaign={campaign}", "--json"], "--campaign=", campaign, answers=True)
        return await self._answer(one.job, wait_seconds)

    async def decisions(self, campaign: str) -> dict[str, Any]:
        """Return all decisions of a campaign so far, with the evidence and the cost of each."""
        (folder,) = check_runs([campaign], self.folder)
        content: dict[str, Any] = json.loads(await self._finish(["decide", "--campaign", folder, "--list", "--json"]))
        return content

    async def confirm(
        self,
        sweep: Annotated[str, Field(description="directory of a sweep or a search that has ended")],
        top: Annotated[int, Field(ge=1, le=100, description="how many of its best settings to run again")] = 3,
        seeds: Annotated[int, Field(ge=2, le=1000, description="fresh seeds for each setting")] = 5,
        wait_seconds: Wait = 30,
    ) -> dict[str, Any]:
        """Run the best settings of a sweep again with fresh seeds: the best of many values is partly luck.

        It may be called again with the same arguments to continue. Then `compare` the answer's `directory`.
        """
        (folder,) = check_runs([sweep], self.folder)
        into = f"{folder}/{CONFIRM_FOLDER}"
        check_paths(into, self.folder, "sweep")
        words = ["confirm", folder, f"--top={top}", f"--seeds={seeds}", f"--into={into}"]
        one = self.commands.start(words, "--into=", into)
        return await self._answer(one.job, wait_seconds)

    async def sample(
        self,
        run: str,
        prompt: str = "",
        tokens: Annotated[int, Field(ge=1, le=2000)] = 200,
        temperature: Annotated[float, Field(ge=0, le=1000)] = 0.8,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> str:
        """Return a text that a trained model writes, after the prompt."""
        (folder,) = check_runs([run], self.folder)
        options = [f"--tokens={tokens}", f"--temperature={temperature}", f"--seed={seed}"]
        return await self._finish(["sample", folder, f"--prompt={prompt}", *options])

    async def budget(self) -> dict[str, float]:
        """Return the seconds of compute that are spent, also by what runs now, and that are left for this folder."""
        spent = self.commands.budget.spent()
        return {"spent": spent, "left": self.commands.budget.seconds - spent}

    async def _finish(self, words: list[str]) -> str:
        """Run a short command and return what it printed; raise ConfigError with its message if it failed."""
        code, printed, errors = await self.commands.finish(words)
        if code:
            raise ConfigError(errors.strip() or printed.strip() or f"exit code {code}")
        return printed

    async def _answer(self, job: str, wait_seconds: float) -> dict[str, Any]:
        one = await self.commands.wait(job, wait_seconds)
        answer = describe(one)
        if one.exit_code == BAD_CONFIG.exit_code:
            raise ConfigError(answer["output"])
        return answer | self._results(one)

    def _results(self, one: RunningCommand) -> dict[str, Any]:
        """Return what an ended command has written: the result of a run, the report of a sweep, or the decision."""
        if one.exit_code is None:
            return {}
        folder = self.folder / one.directory
        names = {"result": "result.json", "sweep": "sweep.json", "search": "search.json"}
        found = {key: read_json(folder / name) for key, name in names.items() if (folder / name).is_file()}
        return found | ({"decision": read_json(one.answer)} if one.answer and one.answer.stat().st_size else {})


def _value_of(key: str, overrides: list[str]) -> str | None:
    """Return the value of an override, without quotes; None if it is not given."""
    values = [text.partition("=")[2].strip("'\"") for text in overrides if text.partition("=")[0].lstrip("+") == key]
    return values[-1] if values else None

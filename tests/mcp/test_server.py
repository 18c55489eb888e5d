"""Tests the server with a real client, over standard input and output, with real runs."""

import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult
from support.command_line import clean_environment
from support.tokens import TINY

from lmtrain.files.limited import read_json
from lmtrain.mcp.budget import ComputeBudget

TOOLS = ["plan", "train", "sweep", "job", "stop", "compare", "decide", "decisions", "confirm", "sample", "budget"]
OVERRIDES = [*TINY, "data.path=data/tiny"]
ENDLESS = ["trainer.max_steps=1000000"]
SECONDS = 300


def with_client(folder: Path, use: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Start a server in a folder, connect a client, and use it."""
    command = ["-m", "lmtrain", "mcp", "--folder", str(folder), "--hours", "1"]
    server = StdioServerParameters(command=sys.executable, args=command, env=clean_environment())

    async def connected() -> None:
        with anyio.fail_after(SECONDS):
            async with Client(server) as client:
                await use(client)

    anyio.run(connected)


async def answer(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


async def mistake(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)


@pytest.mark.slow
def test_an_agent_plans_trains_compares_and_samples(token_folder: Path, tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == TOOLS
        assert all(tool.description for tool in tools)
        assert "decide" in (client.instructions or "")

        planned = await answer(client, "plan", overrides=OVERRIDES)
        assert planned["steps"] == 12
        swept = await answer(client, "sweep", overrides=[*OVERRIDES, "seed=1,2"], wait_seconds=200)
        assert (swept["state"], swept["exit_code"]) == ("ended", 0)
        assert len(swept["sweep"]["jobs"]) == 2

        compared = await answer(client, "compare", runs=[swept["directory"]])
        assert len(compared["runs"]) == 2
        assert [sorted(group["seeds"]) for group in compared["groups"]] == [[1, 2]]
        assert compared["sentences"]
        run = f"{swept['directory']}/{swept['sweep']['jobs'][0]['directory']}"
        assert "has no tokenizer.json" in await mistake(client, "sample", run=run)

        confirmed = await answer(client, "confirm", sweep=swept["directory"], top=1, seeds=2, wait_seconds=200)
        assert (confirmed["exit_code"], confirmed["directory"]) == (0, f"{swept['directory']}/confirm")
        compared = await answer(client, "compare", runs=[confirmed["directory"]])
        assert [sorted(group["seeds"]) for group in compared["groups"]] == [[3, 4]]

        budget = await answer(client, "budget")
        assert 0 < budget["spent"] < 3600
        assert budget["left"] == pytest.approx(3600 - budget["spent"])

    with_client(tmp_path, use)


@pytest.mark.slow
def test_an_agent_decides_about_an_idea(token_folder: Path, tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        idea = {"baseline": OVERRIDES, "challenger": ["optimizer.lr=1e9"], "campaign": "outputs/campaign"}
        ended = await answer(client, "decide", **idea, wait_seconds=200)
        assert (ended["state"], ended["exit_code"]) == ("ended", 10), ended["output"]
        decision = ended["decision"]
        assert (decision["verdict"], decision["reason"], decision["seeds"]) == ("drop", "diverged", [1])
        assert decision["budget"] == {"pairs": 20}
        listed = await answer(client, "decisions", campaign="outputs/campaign")
        assert [one["verdict"] for one in listed["ideas"]] == ["drop"]

    with_client(tmp_path, use)


@pytest.mark.slow
def test_mistakes_are_answers_of_one_line(token_folder: Path, tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        assert "did you mean trainer.max_steps?" in await mistake(client, "plan", overrides=["trainer.max_stepz=1"])
        assert "/etc is outside the folder of this server" in await mistake(
            client, "train", overrides=["data.path=/etc"]
        )
        assert "did you mean trainer.max_steps?" in await mistake(
            client, "train", overrides=["trainer.max_stepz=1"], wait_seconds=100
        )
        assert "job-9: no such job" in await mistake(client, "job", job="job-9")
        assert "nothing: no such run or folder" in await mistake(client, "compare", runs=["nothing"])

    with_client(tmp_path, use)


@pytest.mark.slow
def test_a_job_is_stopped_with_everything_saved_and_continued(token_folder: Path, tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        begun = await answer(client, "train", overrides=[*OVERRIDES, *ENDLESS], wait_seconds=0)
        assert begun["state"] == "running"
        assert f"{begun['job']} is running" in await mistake(client, "train", overrides=OVERRIDES)
        while not (tmp_path / begun["directory"] / "metrics.jsonl").exists():
            await anyio.sleep(0.1)
        stopped = await answer(client, "stop", job=begun["job"], wait_seconds=60)
        assert (stopped["exit_code"], stopped["result"]["status"]) == (128 + signal.SIGTERM, "interrupted")
        steps = stopped["result"]["steps"]
        goes_on = [f"resume={begun['directory']}", f"trainer.max_steps={steps + 2}", "scheduler.max_steps=1000000"]
        resumed = await answer(client, "train", overrides=goes_on, wait_seconds=120)
        assert (resumed["result"]["status"], resumed["result"]["steps"]) == ("completed", steps + 2)
        # What still runs when the client leaves is stopped with everything saved.
        last = await answer(client, "train", overrides=[*OVERRIDES, *ENDLESS], wait_seconds=0)
        while not (tmp_path / last["directory"] / "metrics.jsonl").exists():
            await anyio.sleep(0.1)

    with_client(tmp_path, use)
    assert read_json(tmp_path / "outputs" / "mcp" / "job-3" / "result.json")["status"] == "interrupted"


@pytest.mark.slow
def test_a_job_is_stopped_when_the_budget_is_spent(token_folder: Path, tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        begun = await answer(client, "train", overrides=[*OVERRIDES, *ENDLESS], wait_seconds=0)
        while not (tmp_path / begun["directory"] / "metrics.jsonl").exists():
            await anyio.sleep(0.1)
        another_server = ComputeBudget(tmp_path / "outputs" / "mcp", 3600)
        another_server.end_job(another_server.new_job(["experiments=tiny"]), 3600, 0)
        ended = await answer(client, "job", job=begun["job"], wait_seconds=60)
        assert (ended["state"], ended["result"]["status"]) == ("ended", "interrupted")
        assert "the budget of 1h00m is spent" in await mistake(client, "plan", overrides=OVERRIDES)

    with_client(tmp_path, use)

"""`wandb sweep` and `wandb agent`, the real ones, with a server on loopback: the example in experiments/wandb_sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, clean_environment
from wandb_server import ENTITY, SWEEP, WandbServer

EXAMPLE = Path(__file__).parents[2] / "experiments" / "wandb_sweep" / "sweep.yaml"
# As the console script, but asking for commands every 0.1 s and not every 5 s.
WANDB = "import wandb.wandb_agent as a; a.Agent.POLL_INTERVAL = 0.1; from wandb.cli.cli import cli; cli()"
PARAMETERS: dict[str, dict[str, Any]] = {
    "one": {"optimizer.lr": 0.002, "optimizer.weight_decay": 0.3, "optimizer.betas": [0.9, 0.99]},
    "two": {"optimizer.lr": 0.001, "trainer.max_steps": 1_000_000},
}


def wandb(*arguments: str, server: WandbServer, folder: Path) -> str:
    environment = clean_environment() | server.environment
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"HOME": str(folder), "WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1"}
    environment["WANDB_AGENT_KILL_DELAY"] = "200"  # a run that is stopped saves, which may take a busy machine a while
    done = subprocess.run(
        [sys.executable, "-c", WANDB, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_agents_runs_get_its_parameters_and_are_uploaded_under_its_ids(tmp_path: Path, token_folder: Path) -> None:
    sweep = yaml.safe_load(EXAMPLE.read_text())
    shipped = ["experiments=quickstart", "trainer.eval_interval=50"]
    at = sweep["command"].index(shipped[0])
    assert sweep["command"][at : at + 2] == shipped
    sweep["command"][at : at + 2] = [*(text for text in TINY if text != "logger=[]"), f"data.path={token_folder}"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))

    with WandbServer() as server:
        said = wandb("sweep", "sweep.yaml", server=server, folder=tmp_path)
        assert f"wandb agent {ENTITY}/lmtrain/{SWEEP}" in said
        assert yaml.safe_load(server.sweep_config)["metric"] == {"name": "val/loss", "goal": "minimize"}

        waiting = list(PARAMETERS)

        def next_commands(running: list[str]) -> list[dict[str, Any]]:
            if running == ["two"]:  # hopeless, once it has said how it does
                evaluated = "two" in server.runs and any("val/loss" in line for line in server.runs["two"].history)
                return [{"type": "stop", "run_id": "two"}] if evaluated else []
            if running:
                return []
            if not waiting:
                return [{"type": "exit"}]
            values = PARAMETERS[waiting[0]]
            arguments = {name: {"value": value} for name, value in values.items()}
            return [{"type": "run", "run_id": waiting.pop(0), "program": sweep["program"], "args": arguments}]

        server.next_commands = next_commands
        wandb("agent", f"{ENTITY}/lmtrain/{SWEEP}", server=server, folder=tmp_path)

    assert sorted(server.runs) == ["one", "two"]
    for name, values in PARAMETERS.items():
        run = server.runs[name]
        assert (run.project, run.sweep) == ("lmtrain", SWEEP)
        assert "sweep" in run.tags
        assert run.plain_config | values == run.plain_config
    assert server.runs["one"].summary["step"] == 12
    assert [line["step"] for line in server.runs["one"].history] == list(range(1, 13))
    assert [server.runs[name].summary["status"] for name in PARAMETERS] == ["completed", "interrupted"]

    results = {}
    for path in (tmp_path / "outputs" / "lmtrain").iterdir():
        run_id = json.loads((path / "environment.json").read_text())["run_id"]
        results[run_id] = json.loads((path / "result.json").read_text())
        if run_id == "two":
            steps = sorted(folder.name for folder in (path / "checkpoints").glob("step-*"))
            assert steps[-1] == f"step-{results[run_id]['steps']:08}"
    assert {run_id: result["status"] for run_id, result in results.items()} == {
        "one": "completed",
        "two": "interrupted",
    }
    assert results["one"]["objective"] == min(
        line["val/loss"] for line in server.runs["one"].history if "val/loss" in line
    )

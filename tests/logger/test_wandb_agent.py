"""The example in experiments/wandb_sweep with the real `wandb sweep` and `wandb agent` and a server on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_line import clean_environment
from support.tokens import TINY
from support.wandb_server import ENTITY, SWEEP, WandbServer

from lmtrain.files.metrics import read_metrics

EXAMPLE = Path(__file__).parents[2] / "experiments" / "wandb_sweep" / "sweep.yaml"
# Like the console script, but the agent asks for commands every 0.1 s instead of every 5 s.
WANDB = "import wandb.wandb_agent as a; a.Agent.POLL_INTERVAL = 0.1; from wandb.cli.cli import cli; cli()"
PARAMETERS: dict[str, Any] = {
    "optimizer.lr": 0.002,
    "optimizer.weight_decay": 0.3,
    "optimizer.betas": [0.9, 0.99],
    "trainer.max_steps": 1_000_000,
}


def wandb(*arguments: str, server: WandbServer, folder: Path) -> str:
    environment = clean_environment() | server.environment
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"HOME": str(folder), "WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1"}
    environment["WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"] = "1"  # seconds instead of 15, so that val/loss arrives soon
    environment["WANDB_AGENT_KILL_DELAY"] = "200"  # a stopped run saves first, which takes a while on a busy machine
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
def test_a_run_of_an_agent_has_its_parameters_and_id_and_stops_on_request(tmp_path: Path, token_folder: Path) -> None:
    sweep = yaml.safe_load(EXAMPLE.read_text())
    shipped = ["experiments=quickstart", "trainer.eval_interval=50"]
    at = sweep["command"].index(shipped[0])
    assert sweep["command"][at : at + 2] == shipped
    sweep["command"][at : at + 2] = [*(text for text in TINY if text != "logger=[]"), f"data.path={token_folder}"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))

    with WandbServer() as server:
        output = wandb("sweep", "sweep.yaml", server=server, folder=tmp_path)
        assert f"wandb agent {ENTITY}/lmtrain/{SWEEP}" in output
        assert yaml.safe_load(server.sweep_config)["metric"] == {"name": "val/loss", "goal": "minimize"}

        def next_commands(running: list[str]) -> list[dict[str, Any]]:
            if running:  # stop the run after its first evaluation
                evaluated = "one" in server.runs and any("val/loss" in line for line in server.runs["one"].history)
                return [{"type": "stop", "run_id": "one"}] if evaluated else []
            if "one" in server.runs:
                return [{"type": "exit"}]
            arguments = {name: {"value": value} for name, value in PARAMETERS.items()}
            return [{"type": "run", "run_id": "one", "program": sweep["program"], "args": arguments}]

        server.next_commands = next_commands
        wandb("agent", f"{ENTITY}/lmtrain/{SWEEP}", server=server, folder=tmp_path)

    assert list(server.runs) == ["one"]
    run = server.runs["one"]
    assert (run.project, run.sweep) == ("lmtrain", SWEEP)
    assert "sweep" in run.tags
    assert run.plain_config | PARAMETERS == run.plain_config
    assert run.summary["status"] == "interrupted"

    (path,) = (tmp_path / "outputs" / "lmtrain").iterdir()
    result = json.loads((path / "result.json").read_text())
    assert json.loads((path / "environment.json").read_text())["run_id"] == "one"
    assert result["status"] == "interrupted"
    logged = [line["step"] for line in read_metrics(path / "metrics.jsonl")]
    assert [line["step"] for line in run.history] == logged == list(range(1, len(logged) + 1))
    # If the stop interrupted the evaluation of a step, a resume would log that step.
    assert result["steps"] - len(logged) in (0, 1)
    assert result["objective"] == min(line["val/loss"] for line in run.history if "val/loss" in line)
    assert sorted(folder.name for folder in (path / "checkpoints").glob("step-*"))[-1] == f"step-{result['steps']:08}"

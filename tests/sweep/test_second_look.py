"""Real sweeps that are killed, continued and extended: compare finds out whether seeds were added after a look."""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli
from support.tokens import TINY


def compared(cli: Cli, *arguments: str) -> dict[str, Any]:
    done = cli("compare", "sweep", "--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.slow
def test_only_seeds_that_are_added_after_results_are_a_second_look(
    tmp_path: Path, token_folder: Path, cli: Cli
) -> None:
    design = tmp_path / "sweep" / "design.jsonl"
    rates = ["optimizer.lr=1e-3,3e-2", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    command = ["-m", *TINY, f"data.path={token_folder}", *rates, "seed=1,2"]
    killed = cli.start(*command)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "sweep").glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    assert len(design.read_text().splitlines()) == 1
    both = [cli.start(*command) for _ in range(2)]  # two processes continue it together
    assert [process.wait() for process in both] == [0, 0], both[0].stdout
    assert len(design.read_text().splitlines()) == 1
    assert compared(cli)["looks"]["mode"] == "planned"

    # Two seeds decide nothing, so the test for any number of looks asks for one more, with the command.
    sentences = compared(cli, "--again")["sentences"]
    assert sentences[0].startswith("one more seed each for lr=")
    (add,) = (text for text in sentences if text.startswith("to add a seed: "))
    words = shlex.split(add.removeprefix("to add a seed: "))
    assert words[:3] == ["python", "-m", "lmtrain"]
    done = cli(*words[3:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: adds 2 seeds to settings that already have results" in done.stdout
    assert [len(json.loads(line)["runs"]) for line in design.read_text().splitlines()] == [4, 2]
    found = compared(cli)
    assert (found["looks"]["mode"], [sorted(group["seeds"]) for group in found["groups"]]) == ("again", [[1, 2, 3]] * 2)

"""Jobs in processes of submitit's local executor."""

import json
import os
import signal
from pathlib import Path

import pytest
from support.command_line import Cli, wait_for_step
from support.tokens import TINY


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_submitits_local_executor_starts_a_job_again_that_it_has_warned(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra submitit")
    command = [*TINY, f"data.path={token_folder}", "trainer.max_steps=700", "trainer.checkpoint_interval=300"]
    launcher = ["hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=job"]
    started = cli.start("-m", *command, *launcher)
    run = tmp_path / "sweep" / "job"
    wait_for_step(run, 5, timeout_s=200)
    (controller,) = children(started.pid)
    (task,) = children(controller)
    os.kill(task, signal.SIGUSR2)
    assert started.wait(300) == 0, started.stdout + started.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    log = (run / "job.log").read_text()
    assert log.count("$ python -m lmtrain") == 2
    assert "stopped by SIGUSR2" in log
    assert "resumed after step" in log

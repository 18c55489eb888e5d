"""A killed run resumes bit for bit with every choice of optimizer."""

from pathlib import Path

import pytest
from support.command_line import Cli, wait_for_step
from support.tokens import TINY

from lmtrain.verify.bit_comparison import UndisturbedRun

CHOICES = [path.stem for path in sorted((Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))]
LIBRARY = ("prodigy",)  # beside the default of library.yaml
OPTIMIZERS = [[f"optimizer={choice}"] for choice in CHOICES]
OPTIMIZERS += [["optimizer=library", f"optimizer.name={name}"] for name in LIBRARY]
SHORT = ["trainer.max_steps=30", "trainer.checkpoint_interval=4", "trainer.eval_interval=11", "model.dropout=0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=" ".join)
def test_a_killed_run_has_the_bits_of_an_undisturbed_one(
    cli: Cli, tmp_path: Path, token_folder: Path, optimizer: list[str]
) -> None:
    if "optimizer=library" in optimizer:
        pytest.importorskip("pytorch_optimizer")
    command = [*TINY, *SHORT, f"data.path={token_folder}", *optimizer]
    done = cli(*command, "hydra.run.dir=never", "trainer.keep_checkpoints=1000")
    assert done.returncode == 0, done.stdout + done.stderr
    undisturbed = UndisturbedRun(tmp_path / "never")
    process = cli.start(*command, "hydra.run.dir=killed")
    wait_for_step(tmp_path / "killed", 9)  # the save of step 8 begins when that of step 4 is finished
    process.kill()
    assert not (tmp_path / "killed" / "result.json").exists()
    assert undisturbed.differences(tmp_path / "killed", completed=False) == []
    done = cli("resume=killed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed after step" in done.stdout
    assert undisturbed.differences(tmp_path / "killed", completed=True) == []
    assert undisturbed.compared_checkpoints > 1

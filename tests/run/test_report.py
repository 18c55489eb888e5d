"""Tests of a run's messages: the suggested commands work, and certain mistakes are warned about."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from support.command_line import Cli
from support.tokens import TINY
from support.user_model import MY_MODEL

from lmtrain.files.metrics import read_metrics
from lmtrain.run.report import extension_command

MIN_LR = 6e-5  # the default of the cosine schedule


@pytest.mark.parametrize(
    ("scheduler", "stays"),
    [
        ({"max_steps": 20, "min_lr": 1e-4}, " scheduler.max_steps=20"),
        ({"max_steps": 20, "min_lr": 0.0}, ""),  # no final learning rate at which to continue
        ({"warmup_steps": 3}, ""),  # the schedule has no end
        ({"max_steps": 20, "min_lr": 1e-4, "warmup_steps": 50}, ""),  # the learning rate still rises at the end
    ],
)
def test_a_finished_run_continues_at_its_final_learning_rate(scheduler: dict[str, float], stays: str) -> None:
    cfg = OmegaConf.create({"scheduler": scheduler})
    assert isinstance(cfg, DictConfig)
    assert extension_command(cfg, Path("run"), 40) == f"python -m lmtrain resume=run trainer.max_steps=40{stays}"


@pytest.mark.slow
def test_stretching_the_schedule_is_warned_about_and_the_suggested_command_avoids_it(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli(*TINY, f"data.path={token_folder}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    suggested = done.stdout.splitlines()[-1].strip().removeprefix("python -m lmtrain ")
    assert suggested == "resume=run trainer.max_steps=24 scheduler.max_steps=12"
    shutil.copytree(tmp_path / "run", tmp_path / "other")

    stretched = cli("resume=other", "trainer.max_steps=24")
    (warning,) = [line for line in stretched.stdout.splitlines() if "rises again" in line]
    rate = read_metrics(tmp_path / "other" / "metrics.jsonl")[12]["lr"]
    assert rate > 4 * MIN_LR
    assert f"at step 12 to {rate:.3g}, because its schedule now ends later" in warning
    assert warning.endswith("; scheduler.max_steps=12 keeps the old schedule")

    gone_on = cli(*suggested.split())
    assert "rises again" not in gone_on.stdout
    assert "the schedule ends before the run" not in gone_on.stdout
    assert {line["lr"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")[12:]} == {MIN_LR}


@pytest.mark.slow
def test_training_warns_about_certain_mistakes(token_folder: Path, cli: Cli) -> None:
    many = ["trainer.max_steps=110", "scheduler.warmup_steps=80", "data.batch_size=32", "trainer.eval_interval=1000"]
    common = [*TINY, f"data.path={token_folder}", *many, "trainer.checkpoint_interval=1000", "trainer.log_interval=50"]
    said = cli(*common).stdout
    assert "scheduler.warmup_steps=80: 73% of the run; a twentieth is usual, scheduler.warmup_steps=5" in said
    assert re.search(r"trainer.max_steps=110: sees \S*tiny 28[.\d]* times", said)
    assert "repeated tokens" not in cli(*common, "model.dropout=0.1").stdout


@pytest.mark.slow
def test_suggested_commands_trust_code_named_only_on_the_command_line(
    cli: Cli, tmp_path: Path, token_folder: Path
) -> None:
    (tmp_path / "mymodels.py").write_text(MY_MODEL)
    own = ["~model", "+model={_target_:mymodels.Mine,vocab_size:61}"]
    tiny = [text for text in TINY if not text.startswith("model")]
    done = cli(*tiny, *own, f"data.path={token_folder}", "trainer.max_steps=1", "hydra.run.dir=my run")
    assert done.returncode == 0, done.stderr
    commands = [line.strip() for line in done.stdout.partition("next: ")[2].splitlines()]
    assert [command.split()[3] for command in commands] == ["evaluate", "'resume=my"]
    for command in commands:
        done = cli(*shlex.split(command)[3:])
        assert done.returncode == 0, done.stderr

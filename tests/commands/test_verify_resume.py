"""Tests of `verify-resume` with real kills: resumes are bit for bit, and a run that is not is caught."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli
from support.compiler import NEEDS_A_COMPILER
from support.tokens import TINY, write_failing_model
from support.user_model import write_my_model

from lmtrain.commands.verify_resume import eventful_overrides
from lmtrain.config.compose import compose
from lmtrain.config.preflight import preflight
from lmtrain.terminal.units import counted
from lmtrain.verify.kill import MAX_DELAY_S, choose_kill_moment
from lmtrain.verify.phases import PHASE_NAMES

KILLS = 9  # for each dtype


@pytest.fixture
def tiny(token_folder: Path) -> list[str]:
    return [*TINY, f"data.path={token_folder}", "model.dropout=0.1"]


@pytest.mark.slow
def test_a_fork_is_verified_after_the_step_that_it_begins_at(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    trained = cli(*tiny, "trainer.max_steps=8", "hydra.run.dir=run", timeout=300)
    assert trained.returncode == 0, trained.stderr
    options = ["--kills", "1", "--steps", "6", "--keep", "kept"]
    done = cli("verify-resume", "fork=run", "trainer.global_batch_size=8", *options, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit: 1 kill" in done.stdout
    results = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("kept/*/result.json")]
    assert {result["steps"] for result in results} == {8 + 6}


def folders(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_runs_killed_in_many_phases_resume_bit_for_bit(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    verifications = {
        dtype: cli.start(
            "verify-resume", *tiny, f"system.dtype={dtype}", "--kills", str(KILLS), "--json", f"{dtype}.json"
        )
        for dtype in ("float32", "bfloat16")
    }
    hits: Counter[str] = Counter()
    for dtype, process in verifications.items():
        assert process.wait(timeout=400) == 0, process.stdout + process.stderr
        written: Any = json.loads((tmp_path / f"{dtype}.json").read_text())
        kills = written["kills"]
        assert len(kills) == KILLS
        assert written["bit_for_bit"] is True
        assert written["resumes"] == sum(kill["resumed"] for kill in kills) > 0
        counts = f"{written['checkpoints']} checkpoints and {written['metric_lines']} metric lines compared"
        assert f"bit for bit: {KILLS} kills, {counted(written['resumes'], 'resume')}, {counts}" in process.stdout
        # Each round compares at least 12 lines and one checkpoint.
        assert written["metric_lines"] >= 12 * written["rounds"]
        assert written["checkpoints"] >= written["rounds"]
        assert {kill["aimed_at"] for kill in kills} > {None}
        hits.update(kill["phase"] for kill in kills)
    assert set(hits) <= set(PHASE_NAMES), hits
    assert len(hits) >= len(PHASE_NAMES) - 2, hits  # on a busy machine, a kill can miss the shortest phases
    assert not list((tmp_path / "outputs").rglob("verify-resume-*"))


UNSAVED = """
import random

import torch

from lmtrain.model.llama import Llama


class OwnGenerator(Llama):
    def __init__(self, vocab_size: int, block_size: int):
        super().__init__(vocab_size, block_size, 2, 2, None, 32, 64)
        self.generator = torch.Generator().manual_seed(1)

    def noise(self):
        return torch.rand((), generator=self.generator)

    def forward(self, tokens, targets=None):
        logits, loss = super().forward(tokens, targets)
        return logits, loss * (1 + self.noise()) if self.training else loss


class NoSeed(OwnGenerator):
    def noise(self):
        return random.SystemRandom().random()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "diagnosis"),
    [
        ("OwnGenerator", "Two undisturbed runs have the same bits, so the resume is at fault"),
        ("NoSeed", "two undisturbed runs also differ (step 1, metrics.jsonl: train/loss"),
    ],
)
def test_a_model_with_random_state_outside_the_checkpoint_is_caught(
    tiny: list[str], tmp_path: Path, cli: Cli, model: str, diagnosis: str
) -> None:
    (tmp_path / "mine.py").write_text(UNSAVED)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    yaml = f"_target_: mine.{model}\nvocab_size: null\nblock_size: ${{data.block_size}}\n"
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(yaml)
    kept = [text for text in tiny if not text.startswith("model")]
    done = cli("verify-resume", *kept, "model=mine", "--kills", "30", "--json", "out.json", timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not bit for bit: step " in done.stdout
    assert diagnosis in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["bit_for_bit"] is False
    assert ", metrics.jsonl: train/loss: " in written["error"]
    (folder,) = (tmp_path / "outputs" / "lmtrain").iterdir()
    assert f"kept: {folder}" in done.stdout
    for name in ("undisturbed", f"killed-{written['rounds']}"):
        assert (folder / name / "metrics.jsonl").is_file()
        assert str(folder / name) in done.stdout


@pytest.mark.slow
@NEEDS_A_COMPILER
def test_a_run_that_recompiles_its_model_completes(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    write_my_model(tmp_path)  # small, so that it compiles in a moment
    kept = [text for text in tiny if not text.startswith("model")]
    done = cli("verify-resume", *kept, "model=mine", "system.compile=true", "--kills", "1", "--steps", "6",
               timeout=900, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit: 1 kill, " in done.stdout
    assert list((tmp_path / "cache").rglob("*.so"))  # so it was compiled here


@pytest.mark.slow
def test_a_run_that_fails_by_itself_is_shown(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    write_failing_model(tmp_path, "RuntimeError('a bug in the model')", calls=0)
    kept = [text for text in tiny if not text.startswith("model")]
    done = cli("verify-resume", *kept, "model=fails", "--keep", "kept")
    assert done.returncode == 1
    assert "a run failed without being killed (exit code 1): python -m lmtrain data=tokens" in done.stdout
    assert "RuntimeError: a bug in the model (mine.py:" in done.stdout
    assert (tmp_path / "kept" / "undisturbed" / "result.json").is_file()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_run_that_crashes_shows_its_stack(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    write_failing_model(tmp_path, "os.kill(os.getpid(), 11)", calls=0)
    kept = [text for text in tiny if not text.startswith("model")]
    done = cli("verify-resume", *kept, "model=fails")
    assert done.returncode == 1
    assert "a run failed without being killed (it crashed with SIGSEGV): python -m lmtrain data=tokens" in done.stdout
    assert "Fatal Python error: Segmentation fault" in done.stdout
    assert 'mine.py", line ' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.max_stepz=1"], "trainer.max_stepz=1: unknown key; did you mean trainer.max_steps?"),
        (["resume=outputs/x"], "resume=outputs/x: verify-resume starts its own run"),
        (["-m", "seed=1,2"], "-m: verify-resume takes one config"),
        (["seed=1,2"], "seed=1,2: has several values"),
        (["--kills", "0"], "--kills 0: must be at least 1"),
        (["--steps", "5"], "--steps 5: must be at least 6"),
        (["--keep", "data"], "--keep data: exists already"),
        (["--json", "nowhere/out.json"], "--json nowhere/out.json: the folder nowhere does not exist; create it first"),
        (
            ["model.n_head=5"],
            "model.d_model=32: must be an even multiple of model.n_head=5",
        ),  # reported by the first run
    ],
)
def test_mistakes_are_config_errors_and_leave_nothing(
    tiny: list[str], tmp_path: Path, cli: Cli, arguments: list[str], message: str
) -> None:
    done = cli("verify-resume", *tiny, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"config error: {message}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert folders(tmp_path) == {"data"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_verification_leaves_no_process_behind(
    tiny: list[str], tmp_path: Path, cli: Cli, number: int
) -> None:
    process = cli.start("verify-resume", *tiny, "--kills", "1000", "--steps", "100000")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("outputs/*/*/undisturbed/metrics.jsonl")):
        assert process.poll() is None, process.stdout + process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(processes_in(tmp_path)) >= 3  # the command, the server and the run
    process.send_signal(number)
    assert process.wait() == (128 + number if number != signal.SIGKILL else -number)
    while processes_in(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number != signal.SIGKILL:
        assert folders(tmp_path) == {"data"}


def processes_in(folder: Path) -> list[str]:
    """Return the ids of the live processes whose current folder is `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(folder) and (entry / "stat").read_text().rpartition(")")[2][1] != "Z":
                found.append(entry.name)
        except OSError:  # the process has ended, or belongs to another user
            continue
    return found


def test_kills_are_spread_out_and_favour_phases_that_were_missed() -> None:
    chance = random.Random(0)
    hits = Counter({"saving": 3, "training": 9})
    moments = [choose_kill_moment(chance, 2.0, {"saving", "training", "pruning"}, hits) for _ in range(400)]
    aimed = [moment for moment in moments if moment.phase]
    assert {moment.phase for moment in aimed} == {"pruning"}
    assert 150 < len(aimed) < 250
    assert all(0 <= moment.delay_s <= MAX_DELAY_S for moment in aimed)
    random_ones = sorted(moment.after_s for moment in moments if not moment.phase)
    assert 0 <= random_ones[0] < 0.1
    assert 1.9 < random_ones[-1] <= 2.0
    assert 0.8 < random_ones[len(random_ones) // 2] < 1.2


def test_the_changed_settings_do_not_change_the_training(tiny: list[str]) -> None:
    kept = [text for text in tiny if not text.startswith(("trainer", "scheduler"))]
    cfg = preflight(compose([*kept, "trainer.max_steps=600"]))
    after = preflight(compose([*kept, "trainer.max_steps=600", *eventful_overrides(cfg, 12)]))
    assert (after.trainer.max_steps, after.trainer.eval_batches, after.trainer.log_interval) == (12, 2, 1)
    assert after.scheduler == cfg.scheduler
    assert after.scheduler.max_steps == 600
    assert after.trainer.keep_checkpoints == cfg.trainer.keep_checkpoints
    one = preflight(compose([*kept, "trainer.eval_batches=1"]))
    assert not [text for text in eventful_overrides(one, 12) if "eval_batches" in text]

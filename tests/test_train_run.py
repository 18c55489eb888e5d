"""Whole runs as real processes: their files, how they end, and their resume after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli, clean_environment, wait_for_line, wait_for_step
from support.compiler import NEEDS_A_COMPILER
from support.tokens import TINY, write_failing_model

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.files.metrics import MEASURED, read_metrics


@pytest.fixture
def tiny(token_folder: Path) -> list[str]:
    return [*TINY, f"data.path={token_folder}"]


def timeless(run: Path) -> list[dict[str, float]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def test_a_run_leaves_the_files_of_the_design(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    done = cli(
        *tiny,
        "name=first",
        "logger=wandb",
        "optimizer.lr=1e-2",
        WANDB_API_KEY="0123456789secret0123456789secret01234567",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs" / "first").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".hydra", ".lock", "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "result.json",
        "train.log", "wandb",
    }  # fmt: skip
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 13))
    ended = result(run)
    assert ended["status"] == "completed"
    assert (ended["steps"], ended["tokens"]) == (12, 12 * 2 * 4 * 16)
    best = min(line["val/loss"] for line in read_metrics(run / "metrics.jsonl") if "val/loss" in line)
    assert ended["objective"] == ended["best_val_loss"] == best
    assert best < 4.0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best",
        "latest",
        "step-00000008",
        "step-00000012",
    ]
    assert load_checkpoint(run / "checkpoints" / "latest").state["train"]["step"] == 12
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["command"][1:] == [*tiny, "name=first", "logger=wandb", "optimizer.lr=1e-2"]
    log = (run / "train.log").read_text()
    assert "step 12/12" in log
    assert re.search(r"parameter groups:\n  algorithm .*\n  AdamW +embedding, hidden +15 ", log)
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    assert not (tmp_path / "wandb").exists()
    for path in run.rglob("*"):
        if path.is_file():
            assert b"0123456789secret" not in path.read_bytes(), f"{path} has the API key"


def test_the_command_in_the_design_works_as_written(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    small = [text for text in TINY if not text.startswith(("optimizer.lr", "system.dtype"))]
    done = cli("optimizer.lr=6e-4", "system.dtype=bfloat16", *small, f"data.path={token_folder}", "hydra.run.dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu (" in done.stdout
    assert "bfloat16" in done.stdout
    assert max(line["lr"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")) == 6e-4


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_losses(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    tiny = [
        *tiny,
        "trainer.max_steps=60",
        "model.dropout=0.1",
        "trainer.eval_interval=7",
        "trainer.checkpoint_interval=5",
    ]
    assert cli(*tiny, "hydra.run.dir=never").returncode == 0
    for number, at_step in enumerate((9, 23)):
        command = [*tiny, "hydra.run.dir=killed"] if number == 0 else ["resume=killed"]
        process = cli.start(*command)
        wait_for_step(tmp_path / "killed", at_step)
        process.kill()
        assert not (tmp_path / "killed" / "result.json").exists()
    done = cli("resume=killed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed after step" in done.stdout
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "never")
    one, other = (load_checkpoint(tmp_path / name / "checkpoints" / "latest") for name in ("never", "killed"))
    for group in ("model", "optimizer", "rng-0"):
        for name, tensor in one.tensors[group].items():
            assert tensor.equal(other.tensors[group][name]), name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 143)])
def test_a_signal_saves_and_stops_and_a_resume_continues(
    tiny: list[str], tmp_path: Path, cli: Cli, number: int, code: int
) -> None:
    process = cli.start(*tiny, "trainer.max_steps=100000", "hydra.run.dir=out")
    wait_for_step(tmp_path / "out", 6)
    process.send_signal(number)
    assert process.wait() == code
    assert "continue: python -m lmtrain resume=out" in process.stdout
    ended = result(tmp_path / "out")
    assert ended["status"] == "interrupted"
    assert load_checkpoint(tmp_path / "out" / "checkpoints" / "latest").state["train"]["step"] == ended["steps"]
    more = ended["steps"] + 3
    done = cli("resume=out", f"trainer.max_steps={more}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(tmp_path / "out")["steps"] == more
    steps = [line["step"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert steps == sorted(set(steps))


IN_A_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = "lmtrain"
runpy.run_module("lmtrain", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_and_stops(tiny: list[str], tmp_path: Path) -> None:
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *tiny, "trainer.max_steps=100000", "hydra.run.dir=out"],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    shown = b""
    while b"val " not in shown:  # reading keeps the run from blocking on a full terminal
        assert process.poll() is None, shown
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(60) == 143
    assert result(tmp_path / "out")["status"] == "interrupted"
    assert load_checkpoint(tmp_path / "out" / "checkpoints" / "latest").state["train"]["step"] >= 4


@pytest.mark.slow
def test_a_resume_may_extend_a_run_but_not_change_it(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    assert cli(*tiny, "hydra.run.dir=out", "trainer.max_steps=4").returncode == 0
    for arguments, message in (
        (
            ["optimizer.lr=1"],  # scheduler.lr refers to it
            "would change the run (optimizer.lr: 0.0006 → 1.0); start a new run, or allow the change: "
            "python -m lmtrain resume=out optimizer.lr=1 'allow_changes=[optimizer.lr]'",
        ),
        (["trainer.max_stepz=9"], "unknown key; did you mean trainer.max_steps?"),
        (["model=gpt2"], "a resumed run keeps its config groups"),
        (["trainer.max_steps=3"], "trainer.max_steps=3: the run has already done 4 steps; give at least 4"),
    ):
        done = cli("resume=out", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
    assert "no run there" in cli("resume=nowhere").stderr
    assert "resume=: is empty" in cli("resume=").stderr
    again = cli(*tiny, "hydra.run.dir=out")
    assert again.returncode == 2
    assert "already contains a run" in again.stderr
    result_before, config_before = result(tmp_path / "out"), (tmp_path / "out" / "config.yaml").read_text()
    nothing = cli("resume=out", "optimizer.weight_decay=0", "allow_changes=optimizer.weight_decay")
    assert nothing.returncode == 0, nothing.stderr
    assert "all steps are done" in nothing.stdout
    assert (result(tmp_path / "out"), (tmp_path / "out" / "config.yaml").read_text()) == (result_before, config_before)
    (tmp_path / "out" / "result.json").unlink()  # as if killed after the last step
    assert cli("resume=out").returncode == 0
    assert result(tmp_path / "out") == result_before
    assert (
        "allow_changes=optimizer.lrr: unknown key; did you mean"
        in cli("resume=out", "allow_changes=optimizer.lrr").stderr
    )
    done = cli("resume=out", "trainer.max_steps=1e1")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")] == list(range(1, 11))


@pytest.mark.slow
def test_an_allowed_change_is_made_recorded_and_kept(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    assert cli(*tiny, "hydra.run.dir=out", "trainer.max_steps=2").returncode == 0
    changes = ["optimizer.weight_decay=0.3", "data.batch_size=8", "trainer.gradient_accumulation_steps=1"]
    refused = cli("resume=out", *changes)
    assert refused.returncode == 2
    assert "would change the run (optimizer.weight_decay: 0.1 → 0.3);" in refused.stderr  # micro-batches may change
    done = cli("resume=out", *changes, "trainer.max_steps=4", "allow_changes=optimizer.weight_decay")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed: optimizer.weight_decay: 0.1 → 0.3" in done.stdout
    assert cli("resume=out", "trainer.max_steps=6").returncode == 0
    assert "weight_decay: 0.3" in (tmp_path / "out" / "config.yaml").read_text()
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    first, second = environment["resumes"]
    assert "optimizer.weight_decay: 0.1 → 0.3" in first["changes"]
    assert "trainer.max_steps: 4 → 6" in second["changes"]
    assert first["command"][-1] == "allow_changes=optimizer.weight_decay"
    state = load_checkpoint(tmp_path / "out" / "checkpoints" / "latest").state
    assert state["config"]["optimizer"]["weight_decay"] == 0.3
    assert state["train"]["samples"] == 6 * 8
    assert state["run_id"] == environment["run_id"]
    assert "allow_changes: works only with resume=RUN_DIR;" in cli(*tiny, "allow_changes=optimizer.lr").stderr


@pytest.mark.slow
@NEEDS_A_COMPILER
def test_a_signal_during_compilation_stops_the_run_soon(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    command = [*tiny, "model.n_layer=6", "system.compile=true", "trainer.max_steps=100000", "hydra.run.dir=out"]
    # A separate cache folder, so that every run of this test compiles the model again.
    process = cli.start(*command, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    wait_for_line("steps of", process)
    time.sleep(2)
    assert read_metrics(tmp_path / "out" / "metrics.jsonl") == []  # it is still compiling
    sent = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 143
    assert time.monotonic() - sent < 20
    message = "stopped by SIGUSR1 before the first step was done; to continue: python -m lmtrain resume=out"
    assert message in process.stdout
    assert result(tmp_path / "out")["status"] == "interrupted"


def test_a_resume_works_from_any_folder_and_removes_the_old_result(
    tiny: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = [*tiny, "data.path=data/tiny", "hydra.run.dir=out", "trainer.max_steps=4"]
    assert cli(*relative).returncode == 0
    (tmp_path / "elsewhere").mkdir()
    process = cli.start(
        "resume=../out", "data.path=../data/tiny", "trainer.max_steps=100000", folder=tmp_path / "elsewhere"
    )
    wait_for_step(tmp_path / "out", 6)
    process.kill()
    assert f"run {tmp_path / 'out'}\n" in process.stdout  # in full, as it is not below the current folder
    assert not (tmp_path / "out" / "result.json").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    for manifest in (tmp_path / "out" / "checkpoints").glob("step-*/MANIFEST.json"):
        manifest.write_text("{")
    done = cli("resume=out")
    assert done.returncode == 2
    assert "no intact checkpoint" in done.stderr


def test_a_second_process_on_a_run_is_refused(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    process = cli.start(*tiny, "trainer.max_steps=100000", "hydra.run.dir=out")
    wait_for_step(tmp_path / "out", 1)
    done = cli("resume=out")
    assert done.returncode == 2
    assert f"in use by process {process.pid} on " in done.stderr


@pytest.mark.slow
def test_mistakes_found_while_building_are_reported_in_one_line(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    for override, message in (
        ("model.n_head=5", "model.d_model=32: must be an even multiple of model.n_head=5"),
        ("data.block_size=100000", "data.block_size=100000: "),
        ("system.device=cuda:7", "system.device=cuda:7: this machine has"),
    ):
        done = cli(*tiny, override, "hydra.run.dir=out")
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"config error: {message}" in done.stderr
        assert "config error" not in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
    assert result(tmp_path / "out")["status"] == "failed"


def test_a_crash_is_recorded_with_its_traceback_in_the_log(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    write_failing_model(tmp_path, "RuntimeError('a bug in the model')")
    kept = [text for text in tiny if not text.startswith("model")]
    done = cli(*kept, "model=fails", "hydra.run.dir=out")
    assert done.returncode == 1
    assert "failed: RuntimeError: a bug in the model (mine.py:13; traceback in out/train.log)" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (tmp_path / "out" / "train.log").read_text()
    assert result(tmp_path / "out")["error"] == "RuntimeError: a bug in the model"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config-name=mine",
            "--config-name=mine: the main config is always conf/config.yaml; put your own choices into ./conf",
        ),
        ("--config-path=mine", "--config-path=mine: put your own configs into ./conf and ./experiments"),
        ("--experimental-rerun=x", "--experimental-rerun=x: repeat a run with --rerun RUN_DIR"),
        ("--config-dir=nowhere", "--config-dir=nowhere: no such folder"),
        ("--resolve", "--resolve: works only with --cfg or --help"),
        ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: is not supported; give -m for a sweep"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: is not supported; relative paths start at "),
    ],
)
def test_hydra_options_that_do_not_fit_runs_are_refused(
    tiny: list[str], tmp_path: Path, cli: Cli, flag: str, message: str
) -> None:
    done = cli(*tiny, flag)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"config error: {message}")
    assert not (tmp_path / "outputs").exists()


CALLBACKS = """
import os
from hydra.experimental.callback import Callback

class Printer(Callback):
    def on_run_start(self, config, **rest):
        print("run starts", config.name)

    def on_job_start(self, config, **rest):
        print("job starts with", os.environ["D_FF"])

    def on_job_end(self, config, job_return, **rest):
        print("job ends", job_return.return_value)

    def on_run_end(self, config, **rest):
        print("run ends")
"""


def test_hydra_job_settings_apply_to_a_run(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "printer.py").write_text(CALLBACKS)
    settings = ["+hydra.callbacks.printer._target_=printer.Printer", "+hydra.job.env_set.D_FF='48'"]
    done = cli(
        *tiny, *settings, "name='mine-${run_id:}'", "model.d_ff='${oc.decode:${oc.env:D_FF}}'", "trainer.max_steps=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith(("run starts", "job ", "run ends"))]
    (run,) = (tmp_path / "outputs").glob("mine-*/*")
    assert printed == [f"run starts {run.parent.name}", "job starts with 48", "job ends 0", "run ends"]
    assert run.name.endswith(run.parent.name.removeprefix("mine"))
    config = (run / "config.yaml").read_text()
    assert f"name: {run.parent.name}\n" in config
    assert "d_ff: 48\n" in config
    saved = (run / ".hydra" / "hydra.yaml").read_text()
    assert "mode: RUN" in saved
    assert f"output_dir: {run}\n" in saved


@pytest.mark.slow
def test_hydra_job_settings_apply_to_a_repeated_run(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "printer.py").write_text(CALLBACKS)
    settings = ["+hydra.callbacks.printer._target_=printer.Printer", "+hydra.job.env_set.D_FF='48'"]
    assert cli(*tiny, "name=mine", "trainer.max_steps=1", "hydra.run.dir=first").returncode == 0
    done = cli("--rerun", "first", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith(("run starts", "job ", "run ends"))]
    assert printed == ["run starts mine", "job starts with 48", "job ends 0", "run ends"]
    assert "identical to first: every digit of 1 line of metrics" in done.stdout


@pytest.mark.slow
def test_the_verbs_on_a_finished_run(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 400)
    text = ["data=text", "prepare.source.files=book.txt", "prepare.tokenizer.vocab_size=300", "data.path=tokens"]
    done = cli("prepare", *text)
    assert done.returncode == 0, done.stderr
    assert "prepared tokens in" in done.stdout
    assert "is up to date" in cli("prepare", *text).stdout
    changed = cli("prepare", *text[:2], "prepare.tokenizer.vocab_size=301", "data.path=tokens")
    assert changed.returncode == 2
    assert "prepare.tokenizer.vocab_size: 300 → 301" in changed.stderr
    # The token files alone are enough to train on.
    tiny = [
        *TINY,
        "data.path=tokens",
        "hydra.run.dir=out",
        "trainer.max_steps=30",
        "optimizer.lr=1e-2",
        "sample_tokens=20",
    ]
    done = cli(*tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a sample of the model's text" in done.stdout

    sampled = [cli("sample", "out", "--prompt", "It was", "--tokens", "10", "--seed", seed).stdout for seed in "112"]
    assert sampled[0].startswith("It was")
    assert sampled[0] == sampled[1] != sampled[2]
    assert cli("sample", "nowhere").returncode == 2
    assert "no checkpoint '7'; there are steps" in cli("sample", "out", "--checkpoint", "7").stderr

    (tmp_path / "tokens" / "tokenizer.json").unlink()  # the run has a copy
    assert cli("sample", "out", "--prompt", "It was", "--tokens", "1").returncode == 0
    done = cli("evaluate", "out", "--checkpoint", "latest")
    assert done.returncode == 0, done.stderr
    shown = float(re.findall(r"│ ([\d.]+) +│ [\d.]+ +│ [\d.]+ +│\n", done.stdout)[0])
    assert 0.5 < shown < 6
    assert "no such file" in cli("evaluate", "out", "--split", "tset").stderr


def test_help_names_every_verb_and_choice(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    for word in ("prepare", "evaluate", "sample", "benchmark", "resume=", "llama_50m", "quickstart", "wandb"):
        assert word in done.stdout
    assert "llama_50m" in cli("--cfg", "job").stdout or "d_model: 384" in cli("--cfg", "job").stdout


def test_a_locale_that_lacks_a_character_shows_a_question_mark(cli: Cli) -> None:
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    own_interpreter = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = cli("--help", **ascii_locale, **own_interpreter)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "python -m lmtrain inspect FOLDER?" in done.stdout


def test_closing_the_pipe_while_help_is_printed_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtrain", "--help"],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        bufsize=1,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_a_long_run_says_how_long_it_takes(token_folder: Path, cli: Cli) -> None:
    process = cli.start("data=tokens", f"data.path={token_folder}", "system.device=cpu", "hydra.run.dir=out")
    line = wait_for_line("this run will take about", process)
    assert "trainer.max_steps" in line
    assert "model=llama_1m" in line


def test_the_environment_of_a_distributed_launcher_is_refused(cli: Cli) -> None:
    done = cli("experiments=smoke", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "torchrun" in done.stderr
    assert os.environ.get("WORLD_SIZE") is None

"""The Python API does what the commands do, and gives the process back as it was."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf, ReadonlyConfigError
from support.command_line import Cli, clean_environment, wait_for_step
from support.tokens import TINY, write_failing_model, write_tokens
from support.user_model import write_my_model

import lmtrain
from lmtrain import ConfigError, Run, compose, load_run, read_metrics, train
from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.run.directory import RunDirectory
from lmtrain.run.process_state import training_alone
from lmtrain.verify.bit_comparison import UndisturbedRun

CHARACTERS = {character: number for number, character in enumerate("\n abcdefghijklmnopqrstuvwxyz")}
MINE = [*TINY, "data.path=data/tiny", "trainer.max_steps=8"]


@pytest.fixture(scope="module")
def folder(module_cli: Cli) -> Path:
    """A folder with a run of the command, `out/command`, and one of the API, `out/python`."""
    folder = module_cli.folder
    write_tokens(folder / "data" / "tiny")
    tokenizer_of_characters(CHARACTERS).tokenizer.save(str(folder / "data" / "tiny" / "tokenizer.json"))
    done = module_cli(*MINE, "hydra.run.dir=out/command")
    assert done.returncode == 0, done.stderr
    before = Path.cwd()
    os.chdir(folder)
    try:
        train([*MINE, "hydra.run.dir=out/python"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fresh(token_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a separate folder, with token files in data/tiny."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same_bits(one: Path, other: Path) -> bool:
    return not UndisturbedRun(one).differences(other, completed=True)


def test_a_run_from_python_is_the_one_of_the_command(here: Path) -> None:
    command, python = load_run("out/command"), load_run("out/python")
    files = [{str(path.relative_to(run.directory)) for path in run.directory.rglob("*")} for run in (command, python)]
    assert files[0] == files[1]
    assert same_bits(command.directory, python.directory)
    assert command.config == python.config == compose(MINE)
    assert [run.environment["command"] for run in (command, python)] == [
        ["lmtrain", *MINE, f"hydra.run.dir=out/{name}"] for name in ("command", "python")
    ]
    assert command.environment.keys() == python.environment.keys()
    log = (python.directory / "train.log").read_text()
    assert "step 8/8" in log


def test_what_a_run_gives(here: Path) -> None:
    run = load_run("out/python")
    assert run == Run(here / "out" / "python") == load_run(run)
    assert run.status == run.result["status"] == "completed"
    assert run.metrics == read_metrics("out/python")
    assert [line["step"] for line in run.metrics] == list(range(1, 9))
    assert run.checkpoints == [4, 8]
    assert repr(run) == f"Run('out/python', status='completed', steps=8, best_val_loss={run.result['best_val_loss']!r})"
    with pytest.raises(ReadonlyConfigError):
        run.config.optimizer.lr = 1.0


def test_a_second_run_in_a_thread_after_a_mistake_has_the_same_bits(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lrr=1: unknown key; did you mean optimizer\.lr\?"):
        train([*MINE, "optimizer.lrr=1"])
    ended: list[Run] = []
    thread = threading.Thread(target=lambda: ended.append(train([*MINE, "hydra.run.dir=out/thread"])))
    thread.start()
    thread.join(timeout=120)
    assert same_bits(here / "out" / "command", ended[0].directory)


def test_a_run_is_continued_from_another_folder(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(MINE)
    (fresh / "elsewhere").mkdir()
    monkeypatch.chdir(fresh / "elsewhere")
    again = train({"trainer.max_steps": 10, "scheduler.max_steps": 8}, resume=run)
    assert again == run
    assert run.result["steps"] == 10
    assert Path.cwd() == fresh / "elsewhere"
    assert str(fresh) not in sys.path
    monkeypatch.chdir(fresh)
    fork = train({"step": 8, "trainer.max_steps": 12, "optimizer.lr": 1e-4}, fork=run)
    assert fork.environment["forked_from"]["step"] == 8
    assert fork.config.optimizer.lr == 1e-4
    with pytest.raises(ConfigError, match="would change the run"):
        train({"optimizer.lr": 1e-4}, resume=run)
    monkeypatch.chdir(fresh / "elsewhere")
    monkeypatch.syspath_prepend(fresh)  # the caller's own entry stays
    train({"trainer.max_steps": 11}, resume=run)
    assert str(fresh) in sys.path


@pytest.mark.parametrize(
    ("error", "status"),
    [("ZeroDivisionError('mine')", "failed"), ("__import__('lmtrain').errors.DivergedError('mine')", "diverged")],
)
def test_an_error_is_raised_and_a_run_that_diverges_is_a_result(
    error: str, status: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_failing_model(fresh, error)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    mine = [text for text in MINE if not text.startswith("model")]
    asked = [*mine, "model=fails", "hydra.run.dir=out"]
    if status == "failed":
        with pytest.raises(ZeroDivisionError, match="mine"):
            train(asked)
    else:
        assert train(asked) == load_run("out")
    assert load_run("out").status == status
    monkeypatch.delitem(sys.modules, "mine")


def test_one_run_at_a_time(here: Path) -> None:
    with training_alone():
        with pytest.raises(RuntimeError, match="another run is training in this process"):
            train([*MINE, "hydra.run.dir=out/second"])
        with pytest.raises(RuntimeError, match="a run is training in this process"):
            load_run("out/python").load()
        assert compose(MINE).seed == 1337
    assert not (here / "out" / "second").exists()


def test_a_loaded_model_does_what_the_commands_do(here: Path, module_cli: Cli) -> None:
    model = load_run("out/python").load(checkpoint=4, device="cpu")
    assert (model.step, model.directory) == (4, here / "out" / "python")
    assert "optimizer" not in repr(model)  # a notebook shows it
    asked = ["--checkpoint", "4", "--device", "cpu"]
    done = module_cli("sample", "out/python", "--prompt", "a b", "--tokens", "9", "--seed", "5", *asked)
    assert model.sample("a b", tokens=9, seed=5) == done.stdout.removesuffix("\n")
    for wrong in ({"tokens": 0}, {"temperature": -1}, {"temperature": math.nan}, {"top_k": -3}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=f"{name}={value}: must be a( whole)? number of at least"):
            model.sample("a b", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="top_x: no such option of samples"):
        model.sample("a b", top_x=3)
    with pytest.raises(ConfigError, match="count: sample returns one text"):
        model.sample("a b", count=2)
    assert model.samples([], show=print) == []
    pieces: list[str] = []
    shown = model.samples(["a b", "c"], count=2, tokens=9, stop="zz", show=pieces.append)
    assert "".join(pieces) == "".join(sample.text for sample in shown), "also what was held back of each"
    assert [sample.text for sample in model.samples("a b", count=2, tokens=9)] == [each.text for each in shown[:2]]
    (cut,) = model.samples("a b", tokens=9, stop=shown[0].text[2:4])
    assert cut.text == shown[0].text[: shown[0].text.index(shown[0].text[2:4])], "a stop text is not its letters"
    found = model.evaluate()
    assert (found.split, found.tokens) == ("val", 700)
    assert found.perplexity == math.exp(found.loss)
    assert f"{found.loss:.4f}" in module_cli("evaluate", "out/python", *asked).stdout
    with pytest.raises(ConfigError, match="no checkpoint '7'"):
        load_run("out/python").load(checkpoint=7)
    with pytest.raises(ConfigError, match="no checkpoint 'last'; give best, latest or a step number"):
        load_run("out/python").load("last")


def test_a_model_of_a_strangers_run_needs_trust(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_my_model(fresh)
    mine = [text for text in MINE if not text.startswith("model")]
    run = train([*mine, "model=mine"])
    (fresh / "conf").rename(fresh / "no_conf")
    with pytest.raises(ConfigError, match=r"if you trust it, add trust=mymodels\.Mine"):
        run.load()
    assert type(run.load(device="cpu", trust="mymodels.Mine").model).__name__ == "Mine"
    monkeypatch.delitem(sys.modules, "mymodels")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer": {"max_stepz": 3}}, "trainer.max_stepz=3: unknown key; did you mean trainer.max_steps?"),
        ({"model": "lama_1m"}, "model=lama_1m: no such choice; did you mean llama_1m?"),
        ({"optimizer.lr": "1e-3"}, 'optimizer.lr="1e-3": input should be a valid number'),
        (["seed=1,2"], "seed=1,2: has several values"),
        (["-m", "seed=1,2"], "-m: a flag of `python -m lmtrain`; here, give overrides alone, and train one run"),
        (["resume=somewhere"], "resume=somewhere: compose gives the config of a new run"),
        ({"fork": "nowhere"}, "fork=nowhere: no such run directory"),
        (["trust=x"], "trust: works only with resume=RUN_DIR or fork=RUN_DIR"),
    ],
)
def test_mistakes_are_told_as_on_the_command_line(overrides: Any, message: str, fresh: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(overrides)
    assert message in str(raised.value)


@pytest.mark.parametrize("overrides", ["model=gpt2", [1], {1: 2}, {"seed": object()}, OmegaConf.create({"seed": 1})])
def test_what_are_no_overrides_is_a_type_error(overrides: Any) -> None:
    with pytest.raises(TypeError):
        compose(overrides)


def test_a_mapping_and_a_list_compose_the_same(fresh: Path) -> None:
    given = {"model": "gpt2", "model.vocab_size": None, "optimizer": {"lr": np.float64(1e-3)}, "logger": ["csv"]}
    lines = ["model=gpt2", "model.vocab_size=null", "optimizer.lr=0.001", "logger=[csv]"]
    assert compose(given) == compose(lines)
    assert compose(given).model.vocab_size is None  # the data's, which is not there
    assert not (fresh / "data" / "stdlib").exists()


def test_a_run_that_goes_on_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run directory \(no config.yaml\), and no run is below it"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    run = load_run(tmp_path)
    assert (run.status, run.result, run.metrics, run.environment, run.checkpoints) == ("unfinished", {}, [], {}, [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": null}\n{"step": 2, "tr')
    with RunDirectory(tmp_path):
        assert run.status == "running"
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["train/loss"])
    assert repr(run) == f"Run({str(tmp_path)!r}, status='unfinished')"


def test_a_name_without_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the name is empty"):
        load_run("")
    with pytest.raises(ConfigError, match="x: File name too long"):
        load_run("x" * 300)


def test_a_damaged_config_is_told(here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "out" / "python", tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = OmegaConf.load(file)
    del config["data"]
    OmegaConf.save(config, file)
    with pytest.raises(ConfigError, match="has no section data"):
        load_run(tmp_path / "run").load()
    with pytest.raises(ConfigError, match="device gpu: must be auto, cpu, cuda"):
        load_run("out/python").load(device="gpu")


def test_a_config_that_would_look_something_up_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: ${oc.env:HOME}\n")
    with pytest.raises(ConfigError, match="an interpolation, which no run writes"):
        load_run(tmp_path).config  # noqa: B018


def test_the_names_of_the_package() -> None:
    for name in lmtrain.__all__:
        assert name in dir(lmtrain)
        assert getattr(lmtrain, name) is not None
    with pytest.raises(AttributeError, match="module 'lmtrain' has no attribute 'trian'"):
        lmtrain.trian  # noqa: B018


@pytest.mark.slow
def test_what_reads_and_composes_needs_no_torch(here: Path) -> None:
    script = """
import sys
import lmtrain
loaded = {name.split(".")[0] for name in sys.modules} & {"torch", "hydra", "numpy"}
assert not loaded and not [name for name in sys.modules if name.startswith("lmtrain.")], loaded
from lmtrain import Run, compose, load_run, read_metrics, train
compose(["model=gpt2"])
run = load_run("out/python")
run.config, run.result, run.metrics, run.environment, run.checkpoints, repr(run)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=here)


INTERRUPTED = """
import json, sys
from lmtrain import load_run, train
try:
    train(json.loads(sys.argv[1]))
except KeyboardInterrupt as error:
    print("interrupted:", error)
except SystemExit as error:
    print("exit code:", error.code)
print(load_run("out").status)
train(resume="out", overrides={"trainer.max_steps": load_run("out").checkpoints[-1] + 2})
print(load_run("out").status)
"""


@pytest.fixture
def script(fresh: Path) -> Iterator["subprocess.Popen[str]"]:
    asked = json.dumps([*MINE, "trainer.max_steps=100000", "scheduler.max_steps=8", "hydra.run.dir=out"])
    command = [sys.executable, "-c", INTERRUPTED, asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=fresh) as process:
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGINT, "interrupted: stopped by SIGINT"), (signal.SIGTERM, "exit code: 143")]
)
def test_a_signal_stops_the_run_and_the_script_goes_on(
    number: int, words: str, script: "subprocess.Popen[str]", fresh: Path
) -> None:
    wait_for_step(fresh / "out", 20)
    script.send_signal(number)
    lines = script.communicate(timeout=120)[0].splitlines()
    assert words in lines
    assert "interrupted" in lines
    assert lines[-1] == "completed"
    assert script.returncode == 0

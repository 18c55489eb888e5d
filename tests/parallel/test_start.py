"""How several processes start one run: with one config, in one directory, on the same data."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.command_line import Cli, Started
from support.ranks import start_ranks, train_ranks, wait_for_all
from support.tokens import TINY, write_tokens

from lmtrain.files.limited import read_json


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


def printed(processes: list[Started]) -> list[str]:
    return [line for process in processes for line in (process.stdout + process.stderr).splitlines()]


@pytest.mark.slow
def test_the_first_process_decides_the_directory_and_prepares_the_data(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 400)
    arguments = [text for text in TINY if text != "data=tokens"]
    recipe = ["data=text", "prepare.source.files=text.txt", "prepare.tokenizer.vocab_size=280", "data.path=data/text"]
    first, second = train_ranks(cli, 2, *arguments, *recipe, "name=several")
    runs = list((tmp_path / "outputs" / "several").iterdir())
    assert len(runs) == 1  # not one for each process
    assert read_json(runs[0] / "result.json")["status"] == "completed"
    assert "prepared data/text" in first.stdout
    assert second.stdout + second.stderr == ""


@pytest.mark.slow
def test_another_config_is_refused_and_the_difference_named(cli: Cli, data: Path, tmp_path: Path) -> None:
    own = {1: ["optimizer.lr=0.5", "seed=3"]}
    processes = start_ranks(cli, 3, *TINY, "trainer.gradient_accumulation_steps=3", "data.path=data/tiny",
                            "hydra.run.dir=run", own=own)  # fmt: skip
    assert wait_for_all(processes) == [1, 1, 1]
    (line,) = printed(processes)  # one line, from the first process
    assert line.startswith("rank 1 on ")
    assert "starts with other values than rank 0: " in line
    assert "config.seed: 1337 → 3" in line
    assert "config.optimizer.lr: 0.0006 → 0.5" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_is_reported_once(cli: Cli, data: Path) -> None:
    processes = start_ranks(cli, 2, *TINY, "data.path=data/tiny", "optimizer.lrr=1")
    assert wait_for_all(processes) == [2, 1]
    (line,) = printed(processes)
    assert line.startswith("config error: optimizer.lrr=1: unknown key; did you mean optimizer.lr?")


@pytest.mark.slow
def test_other_data_on_another_host_is_refused(cli: Cli, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tokens(other / "data" / "tiny", train=5000)
    run = f"hydra.run.dir={tmp_path / 'run'}"
    processes = start_ranks(cli, 2, *TINY, "data.path=data/tiny", run, folders={1: other})
    assert all(code in (1, 2) for code in wait_for_all(processes))
    assert any("data.path=data/tiny: rank 1 has another train split than rank 0" in line for line in printed(processes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trainer.gradient_accumulation_steps=1", "data.batch_size=4"],
            "data.batch_size × trainer.gradient_accumulation_steps = 4: the sequences of a step can't be shared by 3 "
            "processes; start 2 or 4, or give a multiple of 3",
        ),
        (
            ["data.batch_size=auto", "trainer.global_batch_size=6", "parallel=fsdp"],
            "data.batch_size=auto: can't be found with parallel=fsdp for several processes; give a number",
        ),
        (["data.batch_size=auto", "trainer.global_batch_size=8"], "trainer.global_batch_size=8: the sequences of a"),
        (
            ["parallel.world_size=2", "data.batch_size=1"],
            "parallel.world_size=2: 3 processes were started; start 2, or give parallel.world_size=null",
        ),
        (["system.device=cuda:0"], "system.device=cuda:0: 3 processes would share this GPU; use system.device=cuda"),
        (["parallel=none"], "parallel=none: 3 processes were started; use parallel=auto"),
        (["verify-resume"], "WORLD_SIZE: verify-resume works in one process; start it without torchrun"),
        (["seed=1,2", "-m"], "WORLD_SIZE: a sweep (-m) works in one process; start it without torchrun"),
    ],
)
def test_what_several_processes_cannot_do(cli: Cli, data: Path, arguments: list[str], message: str) -> None:
    tiny = [text for text in TINY if "accumulation" not in text]
    verb = [text for text in arguments if text == "verify-resume"]
    own = [text for text in arguments if text not in verb]
    processes = start_ranks(cli, 3, *verb, *tiny, "data.path=data/tiny", "data.batch_size=3", *own)
    assert all(code in (1, 2) for code in wait_for_all(processes))
    assert message in "\n".join(printed(processes))
    assert "Traceback" not in "\n".join(printed(processes))


@pytest.mark.slow
def test_the_first_process_finds_the_size_of_a_micro_batch_for_all(cli: Cli, data: Path, tmp_path: Path) -> None:
    tiny = [text for text in TINY if "accumulation" not in text]
    auto = ["data.path=data/tiny", "data.batch_size=auto", "trainer.global_batch_size=12", "hydra.run.dir=run"]
    first, second = train_ranks(cli, 2, *tiny, *auto)
    assert first.stdout.count("data.batch_size=auto: ") == 1
    assert second.stdout == second.stderr == ""
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert 6 % config.data.batch_size == 0  # each process computes half of the global batch
    assert config.trainer.gradient_accumulation_steps * config.data.batch_size == 12
    assert read_json(tmp_path / "run" / "environment.json")["resolved"]["data.batch_size"] == config.data.batch_size
    train_ranks(cli, 2, "resume=run", "trainer.max_steps=14")


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "how"), [(10**12, "DDP"), (100_000, "FSDP")])
def test_auto_shares_a_model_that_does_not_fit(cli: Cli, tmp_path: Path, memory: int, how: str) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    (tmp_path / "device.py").write_text(
        "from lmtrain.model.llama import Llama as Llama\n"
        "from lmtrain.run.several import chosen_parallel\n"
        f"chosen_parallel.device_bytes = lambda system, world: {memory}\n"
    )
    first, _ = train_ranks(cli, 2, *TINY, "data.path=data/tiny", "model._target_=device.Llama", "parallel=auto")
    assert f"2 processes with {how}" in first.stdout
    note = "parallel=auto: FSDP, because a process with the whole model needs"
    assert (note in first.stdout) == (how == "FSDP")
    assert "and has 100 kB" in first.stdout or how == "DDP"

"""Tests of `import`: a nanoGPT checkpoint continues to train here, to the same parameters."""

import copy
import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from support.command_line import Cli
from support.nanogpt_model import CONFIG, Harmful, Training
from torch import Tensor

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.commands.import_run import main, with_defaults
from lmtrain.config.build import build
from lmtrain.config.compose import compose
from lmtrain.convert.nanogpt.checkpoint import our_name, parse_nanogpt_checkpoint
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.files.metrics import read_metrics
from lmtrain.run.reading.loaded import load_model
from lmtrain.verify.device.numbers.rounding import FLOAT32, rounding_error

ITERATIONS = 7
RUN = ["data.path=tokens", "logger=[]", "sample_tokens=0", "system.device=cpu", "hydra.run.dir=run"]

NOT_OF_ADAM = ("rules", "eps_root", "decay_follows_lr", "cautious_decay")  # keys of lmtrain's AdamW


@pytest.fixture(autouse=True)
def _nanogpt_tokens(tmp_path: Path) -> None:
    """Write a data folder like nanoGPT's: uint16 files without meta.json."""
    (tmp_path / "tokens").mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 4000), ("val", 700)):
        ids = np.cumsum(generator.integers(1, 5, count)) % 61
        ids.astype("<u2").tofile(tmp_path / "tokens" / f"{split}.bin")


def checkpoint_at(run: Path, step: int) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / f"step-{step:08d}")


def tensors(theirs: Training) -> dict[str, Tensor]:
    """Return the parameters and moments by their names in lmtrain."""
    named = {f"model/{our_name(name)}": param.detach() for name, param in theirs.model.named_parameters()}
    for name, param in theirs.model.named_parameters():
        state = theirs.optimizer.state[param].items()
        named |= {f"optimizer/{our_name(name)}/{key}": value for key, value in state}
    return named


def assert_as(found: Checkpoint, theirs: dict[str, Tensor], errors: list[float]) -> None:
    """Assert that a checkpoint has these parameters and moments, up to the given errors."""
    for (path, value), error in zip(theirs.items(), errors, strict=True):
        part, _, name = path.partition("/")
        close = {"rtol": 0, "atol": error, "msg": lambda text, path=path: f"{path}: {text}"}
        torch.testing.assert_close(found.tensors[part][name].to(value.dtype), value, **close)


@pytest.mark.slow
def test_an_imported_run_reaches_the_same_parameters_as_nanogpt(tmp_path: Path, cli: Cli) -> None:
    # Without biases: the gradient of the key bias is only rounding, which AdamW amplifies. In float64 both are tested.
    theirs = Training(bias=False).train(ITERATIONS)
    path = theirs.save(tmp_path / "out" / "ckpt.pt")
    done = cli("import", "out/ckpt.pt", *RUN)
    assert done.returncode == 0, done.stderr
    assert "AdamW state at step 7, val loss 3.2500" in done.stdout
    assert "batches come in lmtrain's own order (data.order=random)" in done.stdout
    run = tmp_path / "run"
    imported = tensors(theirs)
    assert_as(checkpoint_at(run, ITERATIONS), imported, [0.0] * len(imported))
    state = checkpoint_at(run, ITERATIONS).state["train"]
    assert (state["step"], state["tokens"]) == (ITERATIONS, ITERATIONS * 2 * 4 * 16)
    assert (state["best_val_loss"], state["best_step"]) == (3.25, ITERATIONS)
    assert read_json(run / "imported.json")["checkpoint"] == str(path)
    assert read_json(run / "environment.json")["packages"]["torch"]

    # Use the printed command, which stops at the last step of nanoGPT's config.
    last = done.stdout.splitlines()[-1]
    assert last == f"next: python -m lmtrain resume=run trainer.max_steps={CONFIG['max_iters']}"
    again = cli(*shlex.split(last)[4:-1], f"trainer.max_steps={ITERATIONS + 4}")
    assert again.returncode == 0, again.stderr
    assert "resumed after step 7, 4 to go" in again.stdout
    metrics = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [8, 9, 10, 11]
    assert metrics[-1]["tokens"] == 11 * 2 * 4 * 16

    cfg = OmegaConf.load(run / "config.yaml")
    loader = build({**cfg.data, "path": str(tmp_path / "tokens")}, split="train", seed=cfg.seed)
    rates = []

    def further() -> dict[str, Tensor]:
        """Return the parameters that nanoGPT itself reaches in float64."""
        exact = copy.deepcopy(theirs).double()
        rates.clear()
        for step in range(ITERATIONS, ITERATIONS + 4):
            rates.append(exact.learning_rate())
            exact.step([loader.batch(2 * step), loader.batch(2 * step + 1)])
        return tensors(exact)

    longest_sum = 128  # the width of the MLP
    errors = rounding_error(lambda: list(further().values()), longest_sum, FLOAT32)
    assert_as(checkpoint_at(run, ITERATIONS + 4), further(), errors)
    assert [line["lr"] for line in metrics] == pytest.approx(rates, rel=1e-12)


def test_the_imported_model_has_nanogpts_logits_in_float64(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = Training(bias=True).train(ITERATIONS)
    theirs.save(tmp_path / "out" / "ckpt.pt")
    done = cli("import", "out/ckpt.pt", *RUN)
    assert done.returncode == 0, done.stderr
    loaded = load_model(Path("run"), "best", "cpu")
    tokens = torch.randint(0, 61, (3, 16))
    logits, _ = loaded.model.double()(tokens)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, theirs.double().model(tokens), rtol=0, atol=1e-10)


def test_user_overrides_win_and_another_choice_keeps_the_values_that_fit() -> None:
    defaults = parse_nanogpt_checkpoint(Training(bias=False).train(1).content()).overrides()
    own = ["optimizer.lr=1e-4", "data.path=x", "data.order=shuffle", "scheduler=constant"]
    cfg = compose(with_defaults(defaults, own))
    assert (cfg.optimizer.lr, cfg.data.order, cfg.data.batch_size) == (1e-4, "shuffle", 4)
    assert dict(cfg.scheduler) == {
        "_target_": "lmtrain.scheduler.constant",
        "_partial_": True,
        "lr": 1e-4,
        "warmup_steps": 3,
    }
    assert cfg.optimizer.betas == [0.9, 0.99]
    assert cfg.model.vocab_size == 64


def test_the_summary_tells_how_to_continue_a_finished_run_and_one_without_config(tmp_path: Path, cli: Cli) -> None:
    training = Training(bias=False).train(2)
    training.iter_num = CONFIG["max_iters"]
    training.save(tmp_path / "done.pt")
    done = cli("import", "done.pt", *RUN)
    assert done.returncode == 0, done.stderr
    assert "the schedule ends at step 20; set scheduler.max_steps to change that" in done.stdout
    assert done.stdout.endswith("next: python -m lmtrain resume=run trainer.max_steps=40\n")

    content = training.content()
    del content["config"]
    torch.save(content, tmp_path / "bare.pt")
    done = cli("import", "bare.pt", *RUN[:-1], "hydra.run.dir=bare", "data.block_size=16")
    assert done.returncode == 0, done.stderr
    assert "no training settings, so batch size, learning rate and schedule are lmtrain's defaults" in done.stdout
    assert checkpoint_at(tmp_path / "bare", 20).state["train"]["tokens"] == 20 * 4 * 16 * 16


@pytest.mark.slow
def test_every_suggested_command_works_with_the_characters_of_a_meta_pkl(tmp_path: Path, cli: Cli) -> None:
    Training(bias=False).train(1).save(tmp_path / "ckpt.pt")
    characters = {chr(65 + number): number for number in range(61)}
    (tmp_path / "tokens" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 61, "stoi": characters}))
    done = cli("import", "ckpt.pt", *RUN)
    assert done.returncode == 0, done.stderr
    assert "the tokenizer has the 61 characters of tokens/meta.pkl" in done.stdout
    suggested = done.stdout.partition("next: ")[2].splitlines()
    assert [line.strip() for line in suggested] == [
        f"python -m lmtrain resume=run trainer.max_steps={CONFIG['max_iters']}",
        "python -m lmtrain sample run",
    ]
    sampled = cli(*shlex.split(suggested[1])[3:], "--prompt=AB", "--tokens=3", "--device=cpu")
    assert sampled.returncode == 0, sampled.stderr
    assert (sampled.stdout[:2], len(sampled.stdout)) == ("AB", 2 + 3 + 1)
    resumed = cli("resume=run", "trainer.max_steps=2", "trainer.eval_batches=1")
    assert resumed.returncode == 0, resumed.stderr
    commands = [line.strip() for line in resumed.stdout.partition("next: ")[2].splitlines()]
    assert [command.split()[3] for command in commands] == ["sample", "evaluate", "resume=run"]
    for command in commands[:2]:
        done = cli(*shlex.split(command)[3:], "--device=cpu")
        assert done.returncode == 0, done.stderr
    forked = cli("fork=run", "trainer.max_steps=3", "trainer.eval_batches=1", "hydra.run.dir=fork")
    assert forked.returncode == 0, forked.stderr
    assert (
        "next: python -m lmtrain sample fork" in forked.stdout
    )  # its data has no tokenizer, but the forked run has one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"stoi": {chr(65 + number): number for number in range(70)}},
            "its ids go up to 69, but the model's only to 63",
        ),
        ({"stoi": 5}, "has no ids of characters (stoi)"),
        ({"trap": Harmful(Path("trap"))}, "contains more than dicts, lists, text and integers ("),
    ],
)
def test_a_meta_pkl_that_cannot_be_used_is_named_and_left_out(
    content: object, message: str, tmp_path: Path, cli: Cli
) -> None:
    Training(bias=False).train(1).save(tmp_path / "ckpt.pt")
    (tmp_path / "tokens" / "meta.pkl").write_bytes(pickle.dumps(content))
    done = cli("import", "ckpt.pt", *RUN)
    assert done.returncode == 0, done.stderr
    assert f"left out tokens/meta.pkl: {message}" in done.stdout
    assert "sample" not in done.stdout
    assert not (tmp_path / "trap").exists()
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def harmful(content: dict[str, Any]) -> None:
    content["trap"] = Harmful(Path("trap"))


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (lambda c: c.pop("model"), [], "ckpt.pt: not a checkpoint of nanoGPT: model missing (it has optimizer, "),
        (lambda c: c["model"].pop("transformer.wpe.weight"), [], "not fit the model: transformer.wpe.weight missing"),
        (harmful, [], "ckpt.pt: contains more than tensors and plain values ("),
        (lambda c: None, ["model.n_layer=3"], "do not fit the model: transformer.h.2.ln_1.weight, "),
        (lambda c: None, ["data.block_size=32"], "data.block_size=32: longer than model.block_size=16"),
        (lambda c: None, ["model=llama_1m"], "model: Llama, but a nanoGPT checkpoint needs model=gpt2"),
        (
            lambda c: None,
            ["optimizer._target_=torch.optim.Adam", *(f"~optimizer.{key}" for key in NOT_OF_ADAM)],
            "optimizer=Adam: the checkpoint has the state of AdamW; use optimizer=adamw",
        ),
        (lambda c: None, ["data.path=nowhere"], "data.path=nowhere: no such folder"),
        (lambda c: None, ["trainer.max_stepz=3"], "trainer.max_stepz=3: unknown key; did you mean trainer.max_steps?"),
        (lambda c: None, ["hydra.run.dir=tokens"], "hydra.run.dir=tokens: exists already; give another folder"),
        (
            lambda c: c["config"].update(block_size=16, learning_rate=-1),
            [],
            "optimizer.lr=-1: input should be greater than 0",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    change: Callable[[dict[str, Any]], object], overrides: list[str], message: str, tmp_path: Path, cli: Cli
) -> None:
    content = Training(bias=False).train(1).content()
    change(content)
    torch.save(content, tmp_path / "ckpt.pt")
    before = sorted(tmp_path.rglob("*"))
    done = cli("import", "ckpt.pt", *RUN, *overrides)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("config error: ")
    assert message in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_run_is_not_changed(tmp_path: Path, cli: Cli) -> None:
    Training(bias=False).train(1).save(tmp_path / "ckpt.pt")
    assert cli("import", "ckpt.pt", *RUN).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    done = cli("import", "ckpt.pt", *RUN)
    assert (done.returncode, done.stderr) == (
        2,
        "config error: hydra.run.dir=run: exists already; give another folder\n",
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert json.loads((tmp_path / "run" / "imported.json").read_text())["iter_num"] == 1


def test_a_save_that_fails_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmtrain.commands.import_run import main
    from lmtrain.convert import imported_run
    from lmtrain.errors import ConfigError

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imported_run.CheckpointFolder, "save", full)
    Training(bias=False).train(1).save(tmp_path / "ckpt.pt")
    with pytest.raises(ConfigError, match="No space left"):
        main(["ckpt.pt", *RUN])
    assert not (tmp_path / "run").exists()


def test_what_has_no_model_is_told(tmp_path: Path) -> None:
    for name in ("folder", "nanogpt", "run"):
        (tmp_path / name).mkdir()
    for name in ("nanogpt/ckpt.pt", "run/config.yaml", "a.gguf", "b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    for name, message in (
        ("nothing", "no such file or folder"),
        ("folder", r"has no model: neither config.json \(Hugging Face\) nor lit_model.pth \(litgpt\) is in it$"),
        ("nanogpt", r"did you mean .*nanogpt/ckpt.pt\?"),
        ("run", "is a run already; continue it with resume="),
        ("a.gguf", "GGUF files can't be imported"),
        ("b.safetensors", "give the folder, .*, whose config.json says what the weights mean"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([str(tmp_path / name)])

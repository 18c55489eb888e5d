"""Parts are built from the config, with its seed and on its device, and must fit each other."""

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from support.tokens import TINY

from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.data.prefetch import Prefetcher
from lmtrain.files.metrics import read_metrics
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.parts import (
    build_loaders,
    build_model,
    build_parts,
    build_scratch_trainer,
    build_system,
    check_model_size,
)


@pytest.fixture
def overrides(token_folder: Path) -> list[str]:
    return [*TINY, f"data.path={token_folder}", "model.vocab_size=61"]


def config(overrides: list[str], *changes: str) -> DictConfig:
    return check(compose([*overrides, *changes]))


def test_the_same_seed_gives_the_same_model(overrides: list[str]) -> None:
    one, same, other = (build_parts(config(overrides, f"seed={seed}")).model for seed in (1, 1, 2))
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_optimizer_has_the_parameters_of_the_model(overrides: list[str]) -> None:
    parts = build_parts(config(overrides))
    held = {param for group in parts.optimizer.param_groups for param in group["params"]}
    assert held == set(parts.model.parameters())
    assert parts.schedule(0) > 0
    assert (parts.train_loader.batch(0)[0].shape, parts.val_loader.batch(0)[0].shape) == ((4, 16), (4, 16))


def test_a_command_may_pass_another_system(overrides: list[str]) -> None:
    cfg = config(overrides, "system.dtype=bfloat16")
    assert build_parts(cfg).system.dtype_name == "bfloat16"
    assert build_parts(cfg, build_system(cfg, dtype="float32")).system.dtype_name == "float32"


def test_blocks_longer_than_the_model_accepts_are_refused(overrides: list[str]) -> None:
    cfg = config(overrides, "model=gpt2", "model.block_size=8", "model.vocab_size=61")
    with pytest.raises(ValueError, match=r"^data\.block_size=16: longer than model\.block_size=8;"):
        build_model(cfg)


CACHING_MODEL = """import functools

import torch
from torch import nn


@functools.lru_cache
def mask(size):
    return torch.ones(size, size).tril()


class Caching(nn.Module):
    built = 0

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mask", mask(size))
        Caching.built += 1
"""


def test_a_users_model_is_built_only_once(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "caching_model.py").write_text(CACHING_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = config(overrides)
    cfg.model = {"_target_": "caching_model.Caching", "size": 4}
    check_model_size(cfg)
    model = build_model(cfg)
    assert not model.get_buffer("mask").is_meta
    assert vars(type(model))["built"] == 1


def test_a_batch_beyond_the_memory_is_refused(overrides: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.batch_size=1000000000000: the token ids of one batch need 256,000 GB"
    ):
        build_loaders(config(overrides, "data.batch_size=1000000000000"))


def test_more_steps_than_the_data_allows_are_refused(overrides: list[str], token_folder: Path) -> None:
    mixture = ["data=mixture", f"+data.paths.a={token_folder}", "+data.weights.a=1", "+data.max_epochs.a=1"]
    changes = ["data.batch_size=4", "data.block_size=16", "trainer.max_steps=1000"]
    kept = [text for text in overrides if not text.startswith("data")]
    with pytest.raises(ValueError, match=r"^trainer\.max_steps=1000: data\.max_epochs allows"):
        build_loaders(config(kept, *mixture, *changes))


def test_the_steps_that_the_data_allows_depend_on_the_batch_schedule(overrides: list[str], token_folder: Path) -> None:
    mixture = ["data=mixture", f"+data.paths.a={token_folder}", "+data.weights.a=1", "+data.max_epochs.a=1"]
    changes = ["data.batch_size=4", "data.block_size=16", "trainer.batch_schedule=[[1280, 12]]"]
    kept = [text for text in overrides if not text.startswith("data")]
    # There are 249 samples: 10 steps of 8, and 14 of 12.
    build_loaders(config(kept, *mixture, *changes, "trainer.max_steps=24"))
    with pytest.raises(ValueError, match=r"data\.max_epochs allows 249 samples, which are enough for 24 steps"):
        build_loaders(config(kept, *mixture, *changes, "trainer.max_steps=25"))


def test_a_model_can_be_built_without_memory(overrides: list[str]) -> None:
    with torch.device("meta"):
        assert {param.device.type for param in build_model(config(overrides)).parameters()} == {"meta"}


def test_a_scratch_trainer_writes_into_its_folder_only(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    cfg = config(overrides)
    build_scratch_trainer(cfg, build_parts(cfg), folder, max_steps=2, log_interval=1).fit()
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2]
    assert (folder / "checkpoints" / "step-00000002").is_dir()
    assert not list(elsewhere.iterdir())


def test_a_scratch_trainer_with_a_logger_needs_no_folder(overrides: list[str], tmp_path: Path) -> None:
    cfg, logger = config(overrides), JsonlLogger(tmp_path / "steps.jsonl")
    trainer = build_scratch_trainer(cfg, build_parts(cfg), tmp_path / "missing", logger)
    assert trainer.model.training
    with Prefetcher(trainer.train_loader.batch, 0, trainer.system.device) as trainer.micro_batches:
        trainer.step()
    assert trainer.logger is logger
    assert not (tmp_path / "missing").exists()

"""A run from Python finds the process as a first run would, and gives it back as it was."""

import gc
import logging
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from support.tokens import TINY

from lmtrain import train
from lmtrain.run.process_state import forget_earlier_runs

MINE = [*TINY, "data.path=data/tiny", "trainer.max_steps=8"]


@pytest.fixture
def fresh(token_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with token files in data/tiny."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state_of_process() -> list[Any]:
    root = logging.getLogger()
    return [
        root.handlers[:],
        root.level,
        logging.getLogger("lmtrain").level,
        sys.argv,
        sys.path[:],
        os.getcwd(),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)],
        GlobalHydra.instance().hydra,
        HydraConfig.instance().cfg,
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]
    ]


def test_the_process_is_as_it_was_before(fresh: Path) -> None:
    log = logging.FileHandler(fresh / "mine.log")
    logging.getLogger().addHandler(log)
    torch.set_num_threads(2)
    try:
        before = state_of_process()
        run = train([*MINE, "system.threads=1"])
        run.load(device="cpu").evaluate()
        assert state_of_process() == before
        logging.getLogger().warning("still open")
    finally:
        torch.set_num_threads(1)
        logging.getLogger().removeHandler(log)
        log.close()
    assert (fresh / "mine.log").read_text() == "still open\n"


def test_a_run_does_not_keep_the_model_of_the_one_before_it(fresh: Path) -> None:
    def parameters() -> int:
        return sum(type(each) is torch.nn.Parameter for each in gc.get_objects())

    gc.collect()
    before = parameters()
    gc.disable()  # Python's own moment may be long after the next run has begun
    try:
        train(MINE)
        forget_earlier_runs()
        assert parameters() == before
    finally:
        gc.enable()

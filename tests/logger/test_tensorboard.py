import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lmtrain.logger.base import RunInfo
from lmtrain.logger.tensorboard import TensorBoardLogger

TESTS = Path(__file__).parents[1]

CONFIG = {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]}, "resume": None, "logger": {"tensorboard": {}}, "seed": 3}


def logger(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(RunInfo(folder, id="id", name="a", group="b", config=CONFIG))


def log_steps(mine: TensorBoardLogger, steps: Iterable[int], scale: float = 1.0) -> None:
    for step in steps:
        mine.log(step, {"train/loss": scale * step})


def read(folder: Path) -> EventAccumulator:
    """Read the event files as TensorBoard itself does."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def scalars(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def hparams(folder: Path, name: str) -> Any:
    content = read(folder).summary_metadata[f"_hparams_/{name}"].plugin_data.content
    return getattr(HParamsPluginData.FromString(content), name)


def test_scalars_have_steps_and_the_config_has_dotted_keys(tmp_path: Path) -> None:
    mine = logger(tmp_path)
    mine.log(1, {"train/loss": 2.5, "tokens": 128})
    mine.log(3, {"train/loss": 1.5, "val/loss": 1.25})
    assert scalars(tmp_path) == [(1, 2.5), (3, 1.5)]  # before the logger is closed
    mine.close("completed")
    assert (scalars(tmp_path, "tokens"), scalars(tmp_path, "val/loss")) == ([(1, 128.0)], [(3, 1.25)])
    values = {key: value.WhichOneof("kind") for key, value in hparams(tmp_path, "session_start_info").hparams.items()}
    assert values == {
        "optimizer.lr": "number_value", "optimizer.betas": "string_value", "resume": "string_value",
        "seed": "number_value",
    }  # fmt: skip
    assert hparams(tmp_path, "session_start_info").hparams["optimizer.lr"].number_value == 1e-3
    assert "val/loss" in [metric.name.tag for metric in hparams(tmp_path, "experiment").metric_infos]


def test_texts_are_shown_as_code(tmp_path: Path) -> None:
    mine = logger(tmp_path)
    mine.log_samples(4, [("To be", " or\n*not*")])
    mine.close("completed")
    (event,) = read(tmp_path).Tensors("sample/0/text_summary")
    assert event.step == 4
    assert event.tensor_proto.string_val[0].decode() == "    To be▸ or\n    *not*"


@pytest.mark.parametrize(("status", "code"), [("completed", 1), ("interrupted", 2), ("diverged", 2)])
def test_the_session_end_shows_success_or_failure(tmp_path: Path, status: str, code: int) -> None:
    mine = logger(tmp_path)
    log_steps(mine, [1])
    mine.close(status)
    assert hparams(tmp_path, "session_end_info").status == code


@pytest.mark.slow
def test_a_killed_run_keeps_what_was_logged_and_a_resume_shows_each_step_once(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path[:0] = {[str(TESTS), str(TESTS / "logger")]!r}
from test_tensorboard import *
log_steps(logger(Path({str(tmp_path)!r})), range(1, 8))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
    assert scalars(tmp_path) == [(step, float(step)) for step in range(1, 8)]
    time.sleep(1)  # event files are read in the order of their creation, which is known to the second
    resumed = logger(tmp_path)
    resumed.rewind(4)
    log_steps(resumed, range(5, 10), scale=2.0)
    resumed.close("completed")
    assert scalars(tmp_path) == [(step, step * (1.0 if step < 5 else 2.0)) for step in range(1, 10)]

"""What the tests share: small token files, and the command line in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Two threads only get in each other's way with models this small. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lmtrain.data.tokens import Meta, Split, TokenizerFile, write_meta
from lmtrain.durable import sha256_of

VOCAB_SIZE = 61

# A model and a run so small that a step takes milliseconds; everything else as shipped.
TINY = [
    "data=tokens",
    "model=llama_1m",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=32",
    "model.d_ff=64",
    "data.batch_size=4",
    "data.block_size=16",
    "trainer.gradient_accumulation_steps=2",
    "trainer.max_steps=12",
    "trainer.eval_interval=4",
    "trainer.eval_batches=2",
    "trainer.log_interval=1",
    "trainer.checkpoint_interval=4",
    "scheduler.warmup_steps=3",
    "system.device=cpu",
    "logger=[]",
    "sample_tokens=0",
]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def write_tokens(folder: Path, train: int = 4000, val: int = 700, dtype: str = "uint16") -> Path:
    """Token files whose next token depends on the last one, so that there is something to learn."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", train), ("val", val)):
        tokens = np.cumsum(generator.integers(1, 5, count)) % VOCAB_SIZE
        tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{split}.bin")
        splits[split] = Split(
            tokens=count,
            max_id=int(tokens.max()),
            documents=1,
            bytes=3 * count,
            sha256=sha256_of(folder / f"{split}.bin"),
        )
    write_meta(folder, Meta(dtype, VOCAB_SIZE, TokenizerFile("none", "", ""), None, splits, recipe={}))
    return folder


FAILING_MODEL = """\
import os
from pathlib import Path
from lmtrain.model.llama import Llama

class Fails(Llama):
    def __init__(self, vocab_size: int, block_size: int):
        super().__init__(vocab_size, block_size, 1, 1, None, 16, 16)
        self.calls = 0

    def forward(self, tokens, targets=None):
        self.calls += 1
        if self.calls > {calls} and {condition}:
            raise {error}
        return super().forward(tokens, targets)
"""


def write_failing_model(folder: Path, error: str, *, calls: int = 9, condition: str = "True") -> str:
    """A model in `mine.py`, chosen by `model=fails`, that raises after some calls; its source."""
    source = FAILING_MODEL.format(calls=calls, condition=condition, error=error)
    (folder / "mine.py").write_text(source)
    (folder / "conf" / "model").mkdir(parents=True)
    node = "_target_: mine.Fails\nvocab_size: null\nblock_size: ${data.block_size}\n"
    (folder / "conf" / "model" / "fails.yaml").write_text(node)
    return source


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


@pytest.fixture(scope="session")
def cli_server() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(Path(__file__).with_name("forked_cli.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()  # ends its input


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Cli:
    """Runs `python -m lmtrain …` in tmp_path, as a user would, without the environment's own W&B settings.

    The process is a fork of one that has imported torch; with a PYTHONPATH it is an interpreter of its own.
    """

    def run(*arguments: str, timeout: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        command, variables = [sys.executable, "-m", "lmtrain", *arguments], clean_environment() | environment
        if "PYTHONPATH" in environment:
            return subprocess.run(
                command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=timeout, check=False
            )
        server: subprocess.Popen[str] = request.getfixturevalue("cli_server")
        assert server.stdin is not None
        assert server.stdout is not None
        folder = tmp_path_factory.mktemp("output")
        output = {name: str(folder / name) for name in ("stdout", "stderr")}
        for file in output.values():
            Path(file).touch()
        asked = {"arguments": arguments, "folder": str(tmp_path), "environment": variables, **output}
        server.stdin.write(f"{json.dumps(asked)}\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        killer = threading.Timer(timeout, os.killpg, (child, signal.SIGKILL))
        killer.start()
        code = int(server.stdout.readline())
        killer.cancel()
        texts = [Path(file).read_text(errors="replace") for file in output.values()]
        if killer.finished.is_set() and code == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(command, timeout, *texts)
        return subprocess.CompletedProcess(command, code, *texts)

    return run


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "LMTRAIN_", "HYDRA_"))}
    return kept | {"PYTHONPATH": ""}

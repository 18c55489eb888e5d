"""What the tests share: small token files, and the command line in a folder of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Two threads only get in each other's way with models this small. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lmtrain.data.tokens import Meta, Split, TokenizerFile, write_meta
from lmtrain.durable import sha256_of

VOCAB_SIZE = 61
UTF8 = {"PYTHONIOENCODING": "utf-8"}  # what a command prints is compared, with marks that not every locale has

COMPILES = bool(shutil.which("g++")) and (Path(sysconfig.get_path("include")) / "Python.h").exists()
NEEDS_A_COMPILER = pytest.mark.skipif(not COMPILES, reason="torch.compile needs g++ and Python.h (python3-dev)")

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


class Started:
    """A command that goes on in the background, as `subprocess.Popen` would show it; its output is in files."""

    def __init__(self, arguments: tuple[str, ...], pid: int, folder: Path) -> None:
        self.arguments, self.pid, self.folder = arguments, pid, folder

    def poll(self) -> int | None:
        code = self.folder / "code"
        return int(code.read_text()) if code.exists() else None

    def wait(self, timeout: float = 120) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.arguments, timeout, self.stdout, self.stderr)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()

    def end(self) -> None:
        """Kills it, if it still runs, with all that it has started and that has not left its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")


class Cli:
    """Runs `python -m lmtrain …` in a folder, as a user would, without the environment's own W&B settings.

    The process is a fork of one that has imported torch; with a PYTHONPATH it is an interpreter of its own, which only
    a call can have.
    """

    def __init__(self, server: "Callable[[], subprocess.Popen[str]]", folder: Path, output: Callable[[], Path]) -> None:
        self.server, self.folder, self.output = server, folder, output
        self.started: list[Started] = []

    def __call__(self, *arguments: str, timeout: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        if "PYTHONPATH" in environment:
            return subprocess.run(
                [sys.executable, "-m", "lmtrain", *arguments],
                cwd=self.folder,
                env=clean_environment() | environment,
                capture_output=True,
                encoding="utf-8",
                timeout=timeout,
                check=False,
            )
        process = self.start(*arguments, **environment)
        try:
            code = process.wait(timeout)
        finally:
            process.end()
        return subprocess.CompletedProcess(arguments, code, process.stdout, process.stderr)

    def start(self, *arguments: str, folder: Path | None = None, **environment: str) -> Started:
        """In the background; what still runs when the test ends is killed then."""
        assert "PYTHONPATH" not in environment
        output, server = self.output(), self.server()
        files = {name: str(output / name) for name in ("stdout", "stderr", "code")}
        for name in ("stdout", "stderr"):
            (output / name).touch()
        variables = clean_environment() | environment
        asked = {"arguments": arguments, "folder": str(folder or self.folder), "environment": variables, **files}
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{json.dumps(asked)}\n")
        server.stdin.flush()
        pid = server.stdout.readline()
        assert pid, "the server of forks has ended"
        self.started.append(Started(arguments, int(pid), output))
        return self.started[-1]

    def close(self) -> None:
        for process in self.started:
            process.end()


@pytest.fixture(scope="session")
def cli_server() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(Path(__file__).with_name("forked_cli.py"))]
    environment = os.environ | UTF8
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.communicate()  # ends its input


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cli]:
    # The server is started by the first test that needs it.
    made = Cli(lambda: request.getfixturevalue("cli_server"), tmp_path, lambda: tmp_path_factory.mktemp("output"))
    with contextlib.closing(made):
        yield made


@pytest.fixture(scope="module")
def module_cli(tmp_path_factory: pytest.TempPathFactory, cli_server: "subprocess.Popen[str]") -> Iterator[Cli]:
    """For what the tests of a file share, in a folder of its own."""
    folder = tmp_path_factory.mktemp("shared")
    with contextlib.closing(Cli(lambda: cli_server, folder, lambda: tmp_path_factory.mktemp("output"))) as made:
        yield made


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "LMTRAIN_", "HYDRA_"))}
    return kept | UTF8 | {"PYTHONPATH": ""}

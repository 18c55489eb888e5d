"""Fixtures for all tests: small token files, and the command line in a temporary folder."""

import base64
import compileall
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from support.command_line import UTF8, Cli
from support.slurm import Slurm, missing, running_slurm
from support.tokenizer_samples import PATTERNS, PLUGIN, ranks_of
from support.tokens import write_tokens

import lmtrain
from lmtrain.machine import limit_spinning
from lmtrain.terminal.paths import shell_folder

# With models this small, two threads slow each other down. Set before any test imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Not in the user's own cache; kept between the runs of the tests, so that compiled code is used again.
os.environ.setdefault("LMTRAIN_CACHE", str(Path(tempfile.gettempdir()) / f"lmtrain-tests-{os.getuid()}"))
limit_spinning()  # several test processes share the cores
hypothesis.settings.register_profile("any load", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("any load")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--renew-docs", action="store_true", help="write what the examples of the documentation really print into it"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Hundreds of processes would each compile the package again if Python may not write bytecode.
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(lmtrain.__file__).parent, quiet=2)


@pytest.fixture(autouse=True)
def _forget_the_shell_folder() -> None:
    shell_folder.cache_clear()


@pytest.fixture
def token_folder(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


@pytest.fixture(scope="session")
def cli_server() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(Path(__file__).with_name("support") / "fork_server.py")]
    environment = os.environ | UTF8
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.communicate()  # closes its input, which ends it


@pytest.fixture
def cli(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cli]:
    # The first test that needs the server starts it.
    made = Cli(lambda: request.getfixturevalue("cli_server"), tmp_path, lambda: tmp_path_factory.mktemp("output"))
    with contextlib.closing(made):
        yield made


@pytest.fixture(scope="module")
def module_cli(tmp_path_factory: pytest.TempPathFactory, cli_server: "subprocess.Popen[str]") -> Iterator[Cli]:
    """Run commands in a folder that the tests of a file share."""
    folder = tmp_path_factory.mktemp("shared")
    with contextlib.closing(Cli(lambda: cli_server, folder, lambda: tmp_path_factory.mktemp("output"))) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Start a Slurm of one node, which all tests of a test process use."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with running_slurm(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module")
def tiktoken_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install encodings with the real patterns and our own ranks, because the real ranks would have to be fetched."""
    from tiktoken import registry

    folder = tmp_path_factory.mktemp("plugin")
    (folder / "tiktoken_ext").mkdir()
    (folder / "tiktoken_ext" / "tiny.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # threads cost more than they gain on small texts
        patch.setattr(registry, "ENCODING_CONSTRUCTORS", None)
        registry._available_plugin_modules.cache_clear()
        import tiktoken_ext.tiny  # type: ignore[import-not-found]

        for name in PATTERNS:
            ranks = ranks_of(tiktoken_ext.tiny.pattern(name))
            lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
            (folder / "tiktoken_ext" / f"{name}.tiktoken").write_bytes(b"".join(lines))
        yield
    registry._available_plugin_modules.cache_clear()

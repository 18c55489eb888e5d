"""Dependencies point downward only, and torch is imported only where it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lmtrain"

# What a module, or a folder of them, may import of lmtrain. The parts know nothing of each other, nor of Hydra.
ALLOWED = {
    "__init__": set(),
    "console": set(),
    "signatures": set(),
    "scheduler": set(),
    "optimizer": set(),
    "system": set(),
    "generate": set(),
    "paths": set(),
    "differences": set(),
    "durable": set(),
    "checkpoint": {"durable"},
    "saver": {"checkpoint"},
    "run_directory": {"durable"},
    "experiments_source": set(),
    "data": {"data", "console", "differences", "durable"},
    "model": {"model"},
    "logger": {"logger", "console", "durable", "run_directory"},
    "launcher": {"console", "run_directory", "config", "preflight"},
    "checks": {"signatures"},
    "clock": set(),
    "interrupt": set(),
    "config": {"checks", "paths", "experiments_source", "launcher"},
    "preflight": {"config", "console", "data"},
    "trainer": {"checkpoint", "clock", "data", "interrupt", "logger", "optimizer", "system"},
    "load": {"checkpoint", "config", "data", "run_directory", "system"},
    "report": {
        "config", "console", "data", "generate", "interrupt", "run_directory", "system", "trainer",
    },
    "train": {
        "checkpoint", "config", "console", "data", "durable", "interrupt", "logger", "preflight", "report",
        "run_directory", "system", "trainer",
    },
    "commands": {
        "checkpoint", "commands", "config", "console", "data", "differences", "generate", "launcher", "load", "logger",
        "optimizer", "paths", "preflight", "run_directory", "saver", "system", "train", "trainer",
    },
    "__main__": {"config", "commands"},
}  # fmt: skip
KNOWS_HYDRA = {"checks", "report", "config", "experiments_source", "launcher", "train", "commands", "preflight", "load"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_directions(path: Path) -> None:
    found = {
        name.split(".")[1] for name in imports(path) if name.startswith("lmtrain.") and name != "lmtrain.__version__"
    }
    assert found <= ALLOWED[unit(path)]
    if unit(path) not in KNOWS_HYDRA:
        assert not {name for name in imports(path) if name.split(".")[0] in ("hydra", "omegaconf")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["trainer.max_stepz=1"],
        ["prepare", "--help"],
        ["sample", "--help"],
        ["evaluate", "--help"],
        ["inspect", "--help"],
    ],
)
def test_help_and_config_errors_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
sys.argv = ["lmtrain", *{arguments!r}]
from lmtrain.__main__ import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stderr.splitlines()[-1] == "False", done.stderr
    assert done.returncode == (2 if "=" in arguments[0] else 0)


def test_no_pickle_is_loaded() -> None:
    for path in modules():
        assert not imports(path) & {"pickle", "torch.load", "cloudpickle", "dill"}, path
        assert "torch.load(" not in path.read_text(), path

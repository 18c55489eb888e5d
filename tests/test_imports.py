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
    "console": {"redact"},
    "signatures": set(),
    "scheduler": set(),
    "optimizer": set(),
    "gpu_models": set(),
    "system": {"gpu_models"},
    "plan": {"plan", "console", "gpu_models"},
    "generate": set(),
    "flops": set(),
    "paths": set(),
    "compare": {"compare", "console", "durable", "identity", "paths"},
    "differences": set(),
    "identity": set(),
    "fork": {"checkpoint", "snapshot"},
    "lineage": {"checks", "config", "durable", "run_directory", "trust"},
    "durable": set(),
    "checkpoint": {"durable"},
    "saver": {"checkpoint"},
    "bad_steps": set(),
    "bad_batches": {"bad_steps", "data", "durable"},
    "evaluation": {"data", "system"},
    "snapshot": {"bad_steps", "checkpoint", "data", "optimizer", "system"},
    "run_directory": {"durable", "redact"},
    "redact": set(),
    "trust": {"checks", "durable", "paths"},
    "experiments_source": set(),
    "data": {"data", "console", "differences", "durable"},
    "model": {"model"},
    "logger": {"logger", "console", "durable", "paths", "redact", "run_directory"},
    "launcher": {"config", "job_directory", "jobs", "sweep_progress"},
    "sweeper": {
        "checks", "config", "console", "interrupt", "job_directory", "jobs", "launcher", "paths", "run_directory",
        "sweep_report",
    },
    "sweep_task": {"config", "job_directory", "jobs", "launcher"},
    "sweep_progress": {"console", "job_directory", "jobs", "sweep_report"},
    "sweep_report": {"config", "console", "data", "durable", "interrupt", "jobs", "paths", "redact"},
    "gpus": {"checks", "data"},
    "job_directory": {"config", "differences", "identity", "lineage", "preflight", "run_directory", "trust"},
    "jobs": {"gpus", "interrupt", "job_directory", "redact", "run_directory"},
    "search_space": {"checks"},
    "study": {"checks"},
    "study_report": {"console", "data", "durable", "paths", "search_space", "study"},
    "search": {"interrupt", "job_directory", "jobs", "logger", "search_space", "study"},
    "optuna_sweeper": {
        "checks", "config", "console", "interrupt", "job_directory", "jobs", "launcher", "paths", "run_directory",
        "search", "search_space", "study", "study_report", "sweep_progress", "sweep_report",
    },
    "checks": {"signatures"},
    "clock": set(),
    "interrupt": {"durable"},
    "config": {"checks", "paths", "experiments_source", "job_directory", "launcher", "optuna_sweeper", "sweeper"},
    "preflight": {"config", "console", "data", "run_directory"},
    "trainer": {
        "bad_batches", "bad_steps", "checkpoint", "clock", "data", "evaluation", "flops", "interrupt", "logger",
        "optimizer", "saver", "snapshot", "system",
    },
    "same_bits": {"checkpoint", "differences", "logger", "run_directory"},
    "nanogpt": {"model"},
    "first_checkpoint": {
        "bad_batches", "checkpoint", "config", "data", "durable", "interrupt", "logger", "model", "nanogpt",
        "optimizer", "preflight", "run_directory", "saver", "snapshot", "system", "trainer",
    },
    "load": {"checkpoint", "config", "data", "run_directory", "system", "trust"},
    "report": {
        "bad_steps", "checkpoint", "config", "console", "data", "durable", "evaluation", "flops", "generate",
        "identity", "interrupt", "paths", "plan", "run_directory", "snapshot", "system", "trainer",
    },
    "record": {"data", "differences", "durable", "flops", "logger", "run_directory"},
    "train": {
        "bad_batches", "bad_steps", "checkpoint", "config", "console", "data", "fork", "identity", "interrupt",
        "logger", "preflight", "record", "report", "run_directory", "saver", "snapshot", "system", "trainer",
    },
    "commands": {path.stem for path in PACKAGE.iterdir()} - {"__main__"},  # whatever they put to work
    "__main__": {"config", "commands"},
}  # fmt: skip
KNOWS_HYDRA = {
    "checks", "report", "config", "experiments_source", "launcher", "train", "commands", "preflight", "load", "trust",
    "first_checkpoint", "job_directory", "lineage", "optuna_sweeper", "record", "search_space", "sweep_task", "sweeper",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
        ["plan", "--help"],
        ["sample", "--help"],
        ["evaluate", "--help"],
        ["inspect", "--help"],
        ["compare", "--help"],
        ["import", "--help"],
        ["verify-resume", "--help"],
        ["--rerun", "--help"],
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


def test_another_programs_checkpoint_is_read_as_tensors_and_plain_values_alone() -> None:
    tree = ast.parse((PACKAGE / "nanogpt.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "load"]
    assert len(calls) == len(loads) == 1
    assert {word.arg: ast.unparse(word.value) for word in calls[0].keywords}["weights_only"] == "True"

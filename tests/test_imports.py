"""Tests that imports point downward only and without cycles, and that torch is imported only where needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tokens import TINY

PACKAGE = Path(__file__).parents[1] / "lmtrain"

# From top to bottom: a folder, or a file in the package root, imports only from its own line and lines below it.
# Folders on the same line do not import each other. Every module may import lmtrain itself, for its version.
LAYERS = """
__main__ __init__
commands api
mcp
decide
sweep
benchmark
comparison
verify
train_run
convert
run
micro_batch
plan
parts
trainer
config
checkpoint
evaluate
sample
loop
data
logger model optimizer parallel scheduler system
hardware
files terminal
machine errors torch_internals
"""

# The parts that `conf/` names, and the layers below them, can be used without Hydra.
KNOW_HYDRA = frozenset(
    {
        "api",
        "commands",
        "decide",
        "mcp",
        "sweep",
        "verify",
        "benchmark",
        "convert",
        "train_run",
        "plan",
        "micro_batch",
        "run",
        "parts",
        "config",
    }
)


def layer_of() -> dict[str, int]:
    lines = [line.split() for line in LAYERS.strip().splitlines()]
    return {name: number for number, line in enumerate(lines) for name in line}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the module name of a file, such as `lmtrain.checkpoint.saver`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in modules()}


def top_of(module: str) -> str:
    """Return the folder, or the file in the package root, that contains a module."""
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> Iterator[str]:
    """Yield every imported module, including imports inside functions and those only for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else node.module


def own_imports(path: Path) -> set[str]:
    return {module for module in imports(path) if module in NAMES}


def test_every_folder_has_a_layer() -> None:
    assert {top_of(name) for name in NAMES} == set(layer_of())


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_from_layers_below_it(path: Path) -> None:
    layers, here = layer_of(), top_of(name_of(path))
    upward = {
        module
        for module in own_imports(path)
        if (there := top_of(module)) != here and layers[there] <= layers[here] and there != "__init__"
    }
    assert not upward


def test_there_is_no_import_circle() -> None:
    graph = {name: own_imports(path) - {name} for name, path in NAMES.items()}
    graph["lmtrain"] = set()  # it loads the API only when a name is asked for, see below
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, "each of these imports another one of them, directly or not"


def test_the_package_itself_imports_the_api_only_when_a_name_is_asked_for() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [name for node in at_once for name in (ast.unparse(node),) if "lmtrain" in name]
    others = {path for name, path in NAMES.items() if name != "lmtrain"}
    named = [
        ast.unparse(node)
        for path in others
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "lmtrain"
    ]
    assert not named, "a name of the API, taken from below it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_some_folders_import_hydra(path: Path) -> None:
    known = {module.split(".")[0] for module in imports(path)} & {"hydra", "omegaconf"}
    assert not known or top_of(name_of(path)) in KNOW_HYDRA


def test_private_names_of_hydra_are_used_in_one_file_only() -> None:
    users = [name for name, path in NAMES.items() if any(module.startswith("hydra._") for module in imports(path))]
    assert users == ["lmtrain.config.hydra_internals"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_a_module_only_defines_things(path: Path) -> None:
    """A module may not contain bare calls, loops or branches at its top level, but may catch a missing package."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Try)
    conditions = {"TYPE_CHECKING", "__name__ == '__main__'"}
    others = [
        ast.unparse(node)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if not isinstance(node, definitions)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.If) and ast.unparse(node.test) in conditions)
    ]
    assert not others


def test_files_and_folders_stay_small() -> None:
    long = {
        name: lines
        for name, path in NAMES.items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    folders = {path.parent for path in modules()} - {PACKAGE / "commands"}  # which has a file for each verb
    full = {str(folder): count for folder in folders if (count := len(list(folder.glob("[!_]*.py")))) > 15}
    assert not long
    assert not full


@pytest.mark.slow
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
        ["average", "--help"],
        ["compare", "--help"],
        ["decide", "--help"],
        ["import", "--help"],
        ["verify-resume", "--help"],
        ["verify-device", "--help"],
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


def test_another_programs_checkpoint_is_read_only_as_tensors_and_plain_values() -> None:
    tree = ast.parse(NAMES["lmtrain.convert.torch_file"].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "load"]
    assert len(calls) == len(loads) == 1
    assert {word.arg: ast.unparse(word.value) for word in calls[0].keywords}["weights_only"] == "True"


# What no eager run needs before its first step, or only other processes need: each takes from 0.1 s to seconds.
HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "wandb", "transformers", "scipy", "matplotlib", "pandas")


@pytest.mark.slow
def test_an_eager_run_imports_no_compiler_and_no_client_of_wandb(tmp_path: Path, token_folder: Path) -> None:
    arguments = [
        *TINY,
        f"data.path={token_folder}",
        "logger=[wandb]",
        "trainer.max_steps=1",
        "scheduler.warmup_steps=0",
    ]
    script = f"""
import sys
sys.argv = ["lmtrain", *{arguments!r}]
from lmtrain.__main__ import main
try:
    main()
finally:
    print("torch" in sys.modules, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.stderr.splitlines()[-1] == "True", done.stderr
    assert done.returncode == 0

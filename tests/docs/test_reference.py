"""The pages of the reference that are written by hand name what the code has, and nothing else."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from support.command_line import Cli
from support.documentation import DOCS, ROOT, code_in, table_cells
from support.tokens import TINY, write_tokens

from lmtrain import errors
from lmtrain.__main__ import VERBS
from lmtrain.commands.benchmark import KINDS
from lmtrain.errors import Ending
from lmtrain.run.result import Result

FILE_NAME = re.compile(r"\.?[\w-]+\.(?:json|jsonl|yaml|log|txt|csv|journal|png|bin|safetensors|lock|pt|pkl|db)")
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
# Files of other programs, and of folders that are gone when a command ends.
OTHER_FILES = {
    *(
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "vocab.json",
    ),  # of transformers
    *("ckpt.pt", "CKPT.pt", "meta.pkl"),  # of nanoGPT
    *("model_config.yaml", "loss.png"),  # of litgpt, and of exported folders
    *("settings.json", "record.json", "text.txt", "numbers.json", "phases.json"),
}
# Their names are put together in the code: of a split, or a group of tensors, and a suffix.
PUT_TOGETHER = {
    "train.bin",
    "val.bin",
    "job-1",
    "job-1.json",
    "job-1.lock",
    "job-1.log",
    "rank-1.log",
    *(f"{name}.safetensors" for name in ("model", "optimizer", "ema", "evaluation", "rng-0", "detector")),
    "model.shard-00001-of-00002.safetensors",
}
# Words in capitals that are no environment variables.
OTHER_WORDS = {
    *("RUN_DIR", "SC_PAGE_SIZE", "SC_PHYS_PAGES", "STATUS_FAILURE", "STATUS_SUCCESS"),
    *("BOOT_FAIL", "NODE_FAIL", "OUT_OF_MEMORY"),  # states of Slurm's jobs
    *("DCP_SHARDING_INFO", "DCP_VERSION"),  # entries of a file's metadata
    "Q8_0",  # a format of numbers
    *("DISABLE_MULTIPROC", "TQDM_DISABLE"),  # set for the harness while it runs
}


@cache
def texts_in_code() -> list[tuple[Path, str]]:
    """Return all string constants of the package."""
    return [
        (path, node.value)
        for path in (ROOT / "lmtrain").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def pattern_of(name: str) -> str:
    """Return a pattern for the names of a file whose name on the page is an example: other digits are as good."""
    return re.sub(r"\d+", r"\\d+", re.escape(name.rstrip("/")))


def test_every_verb_and_benchmark_has_its_help_on_the_page() -> None:
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^```\{command-help\} ?(.*)$", page, re.MULTILINE))
    assert shown == {"", "--rerun", *VERBS, *(f"benchmark {kind}" for kind in KINDS)}
    assert set(VERBS) <= code_in(table_cells("commands.md", "command"))


def test_the_exit_codes_are_those_of_the_code() -> None:
    endings = {ending for ending in vars(errors).values() if isinstance(ending, Ending)}
    page = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| `(\w+)` \|$", page, re.MULTILINE)
    assert {(int(code), status) for code, status in rows} == {(ending.exit_code, ending.status) for ending in endings}


def test_the_variables_are_those_of_the_code() -> None:
    pickles = ROOT / "lmtrain" / "convert" / "nanogpt" / "characters.py"  # names of opcodes
    named = {text for path, text in texts_in_code() if VARIABLE.fullmatch(text) and path != pickles}
    on_page = code_in(table_cells("environment-variables.md", "variable"))
    assert {name for name in on_page if "_" in name} == named - OTHER_WORDS
    without_underscore = on_page - named
    in_code = {text for _, text in texts_in_code()} | {"PYTHONPATH"}  # Python's own
    assert without_underscore <= in_code


def metrics_in_code() -> set[str]:
    """Return the metrics that the trainer, the evaluator and models give to loggers."""
    found = {"step"}
    for name in (
        "trainer.py",
        "loop/train_metrics.py",
        "loop/rank_times.py",
        "loop/evaluation.py",
        "model/experts/mixture.py",
    ):
        for node in ast.walk(ast.parse((ROOT / "lmtrain" / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "metrics" and name.startswith("model/"):
                (returned,) = (each.value for each in ast.walk(node) if isinstance(each, ast.Return))
                assert isinstance(returned, ast.Dict)
                found |= {ast.literal_eval(key) for key in returned.keys if key is not None}
            if name == "trainer.py" and isinstance(node, ast.Dict):  # all of them are metrics
                found |= {ast.literal_eval(key) for key in node.keys if key is not None}
            if not isinstance(node, ast.Assign):
                continue
            (target,) = node.targets
            if isinstance(target, ast.Subscript) and getattr(target.value, "id", "") == "metrics":
                found.add(ast.literal_eval(target.slice))
            elif isinstance(node.value, ast.Dict) and getattr(target, "id", "") in ("metrics", "axes"):
                found |= {ast.literal_eval(key) for key in node.value.keys if key is not None}
    return found


def test_the_metrics_are_those_of_the_code() -> None:
    assert code_in(table_cells("metrics.md", "metric")) == metrics_in_code()


def test_the_keys_of_a_result_are_those_of_the_code() -> None:
    assert code_in(table_cells("files.md", "key")) == set(Result.__dataclass_fields__)


def test_the_files_are_those_of_the_code() -> None:
    on_page = code_in(table_cells("files.md", "file")) | code_in(table_cells("files.md", "file in `checkpoints/`"))
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    parts = {part for _, text in texts_in_code() for part in text.split("/")}
    in_code = {part for part in parts if FILE_NAME.fullmatch(part)} - OTHER_FILES
    assert {name for name in in_code if name not in page} == set()
    names = {Path(name).name for name in on_page if FILE_NAME.fullmatch(Path(name).name)}
    assert names - in_code <= PUT_TOGETHER
    folders = {name.rstrip("/") for name in on_page if name.count("/") == 1 and name.endswith("/")}
    assert {name for name in folders if not name.startswith(("broken-", "other-"))} <= parts | PUT_TOGETHER


@pytest.fixture(scope="module")
def run(module_cli: Cli) -> Path:
    """A run with all loggers that need no other program."""
    write_tokens(module_cli.folder / "data" / "tiny")
    more = ["data.path=data/tiny", "logger=[csv]", "trainer.eval_train_batches=1", "hydra.run.dir=outputs/run"]
    done = module_cli(*(text for text in TINY if not text.startswith("logger")), *more)
    assert done.returncode == 0, done.stderr
    return module_cli.folder / "outputs" / "run"


def test_a_run_leaves_only_files_that_are_on_the_page(run: Path) -> None:
    names = code_in(table_cells("files.md", "file"))
    names |= {f"checkpoints/{name}" for name in code_in(table_cells("files.md", "file in `checkpoints/`"))}
    names |= {str(parent) for name in names for parent in Path(name).parents}
    known = re.compile("|".join(map(pattern_of, names)))
    left = [path.relative_to(run) for path in run.rglob("*") if not path.parent.is_symlink()]
    assert left
    assert [str(path) for path in left if not known.fullmatch(str(path))] == []


def test_what_a_run_measured_is_on_the_page(run: Path) -> None:
    recorded = json.loads((run / "environment.json").read_text(encoding="utf-8"))["evaluation"]
    assert code_in(table_cells("files.md", "key in `evaluation`")) == recorded.keys()
    page = code_in(table_cells("files.md", "key in `val`"))
    assert page - {"weights"} == recorded["val"].keys() == recorded["train_eval"].keys()
    part = {"selection": "evenly spaced", "tokens": 2 * 4 * 16}  # two batches of four sequences of sixteen tokens
    assert recorded["val"].items() >= part.items()
    assert recorded["train_eval"].items() >= {"split": "train", "tokens": 4 * 16}.items()


def test_a_run_logs_only_metrics_that_are_on_the_page(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = {name for line in lines for name in line}
    assert logged <= code_in(table_cells("metrics.md", "metric"))
    assert {"step", "train/loss", "val/bits_per_byte", "train_eval/loss"} <= logged

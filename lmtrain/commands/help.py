"""`python -m lmtrain --help`: lists the verbs and the choices of every config group, each with its first comment."""

from collections.abc import Mapping
from pathlib import Path

from lmtrain.config.shipped import shipped
from lmtrain.terminal.as_text import visible

PREPARE_GROUPS = ("prepare/source", "prepare/tokenizer", "prepare/holdout")
GROUPS = (
    "experiments",
    "data",
    *PREPARE_GROUPS,
    "model",
    "optimizer",
    "scheduler",
    "system",
    "parallel",
    "trainer",
    "logger",
)

VERBS = """\
lmtrain: train language models from composed configs.

  python -m lmtrain [overrides]                  train a model; with -m, sweep over comma-separated values
  python -m lmtrain -m experiments=search        search for good settings with Optuna, stopping hopeless trials early
  python -m lmtrain resume=RUN_DIR [overrides]   continue a run in its own directory
  python -m lmtrain fork=RUN_DIR step=N …        start a new run from a checkpoint of another run, with your changes
  python -m lmtrain --rerun RUN_DIR              repeat a run and compare every number with the original
  python -m lmtrain prepare data=NAME            turn text into token files
  python -m lmtrain plan [overrides]             predict a run's size, memory, time and cost, and find likely mistakes
  python -m lmtrain inspect FOLDER…              describe token files: documents, vocabulary, duplicates, damage
  python -m lmtrain evaluate RUN_DIR…            measure loss, perplexity and bits per byte of a checkpoint
  python -m lmtrain sample RUN_DIR --prompt …    generate text from a checkpoint
  python -m lmtrain average RUN_DIR… --steps …   make a run from the mean of the weights of several checkpoints
  python -m lmtrain compare RUN…                 compare runs: table, statistics, a page of curves (--html)
  python -m lmtrain confirm SWEEP                run the best settings of a sweep or search again, with fresh seeds
  python -m lmtrain decide --baseline …          keep or drop a change, by as many pairs of seeds as that needs
  python -m lmtrain mcp --folder DIR --hours N   serve these commands to a coding agent, in a folder and a budget
  python -m lmtrain export RUN_DIR --to hf DIR   write the model as a folder for transformers and vLLM
  python -m lmtrain import PATH data.path=…      turn a Hugging Face folder or nanoGPT checkpoint into a run
  python -m lmtrain verify-resume [overrides]    kill runs of this config and check that they resume bit for bit
  python -m lmtrain verify-device [overrides]    check that this GPU or CPU computes, repeats and performs as it must
  python -m lmtrain benchmark [KIND] …           measure the speed of step, loader, prepare, contention or checkpoint

Each verb has its own --help. To start, train a small model (two minutes on a CPU):
  python -m lmtrain experiments=quickstart
"""
FOOTER = """
Change any value:                   optimizer.lr=6e-4 system.dtype=bfloat16
Show the config without running:    python -m lmtrain --cfg job --resolve [overrides]
List Hydra's own flags:             python -m lmtrain --hydra-help"""


def main() -> int:
    print(VERBS)
    print("Config groups, as group=choice:")
    for group in GROUPS:
        print(visible(list_choices(group)))
    print(FOOTER)
    return 0


def list_choices(group: str) -> str:
    """Return the group and its choices, one per line."""
    choices = choices_in(group)
    width = max(map(len, choices), default=0)
    return "\n".join([f"  {group}", *(f"    {name:<{width}}  {meaning}" for name, meaning in choices.items())])


def choices_in(group: str) -> Mapping[str, str]:
    """Return each choice of a group with its file's first comment; files in the current folder shadow shipped ones."""
    if group == "experiments":
        folders = [shipped("experiments"), Path.cwd() / "experiments"]
    else:
        folders = [folder / group for folder in (shipped("conf"), Path.cwd() / "conf")]
    return {path.stem: _meaning(path) for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _meaning(path: Path) -> str:
    text = path.read_text(encoding="utf-8-sig", errors="replace")  # composing the file reports bad bytes
    comments = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((comment for comment in comments if comment and not comment.startswith("@package")), "")

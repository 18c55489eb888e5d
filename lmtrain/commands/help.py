"""`python -m lmtrain --help`: the verbs, and every config group's choices with the first line of each file."""

from collections.abc import Mapping
from pathlib import Path

from lmtrain.config.shipped import shipped
from lmtrain.terminal.as_text import visible

PREPARE_GROUPS = ("prepare/source", "prepare/tokenizer", "prepare/holdout")
GROUPS = ("experiments", "data", *PREPARE_GROUPS, "model", "optimizer", "scheduler", "system", "trainer", "logger")

VERBS = """\
lmtrain: train language models from composed configs.

  python -m lmtrain [overrides]                  train; with -m, a sweep over comma-separated values
  python -m lmtrain -m experiments=search        a search: Optuna chooses, and ends what has no hope
  python -m lmtrain resume=RUN_DIR [overrides]   continue a run in its own directory
  python -m lmtrain fork=RUN_DIR step=N …        a new run from another's checkpoint, with what you change
  python -m lmtrain --rerun RUN_DIR              the same run once more, compared number by number
  python -m lmtrain prepare data=NAME            text to token files
  python -m lmtrain plan [overrides]             what a run would be: size, memory, time, cost, likely mistakes
  python -m lmtrain inspect FOLDER…              what token files hold: documents, vocabulary, repeats, damage
  python -m lmtrain evaluate RUN_DIR…            loss, perplexity and bits per byte of a checkpoint
  python -m lmtrain sample RUN_DIR --prompt …    text from a checkpoint
  python -m lmtrain compare RUN…                 runs side by side: table, statistics, a page of curves (--html)
  python -m lmtrain import CKPT.pt data.path=…   a run directory that goes on where a nanoGPT checkpoint stands
  python -m lmtrain verify-resume [overrides]    kills runs of this config: do they resume bit for bit?
  python -m lmtrain benchmark [KIND] …           speed of step, loader, prepare, checkpoint, against the machine's own

Each verb has its own --help. A first run, two minutes on a CPU: python -m lmtrain experiments=quickstart
"""
FOOTER = """
Change any value:             optimizer.lr=6e-4 system.dtype=bfloat16
See it all before it runs:    python -m lmtrain --cfg job --resolve [overrides]
Hydra's own flags:            python -m lmtrain --hydra-help"""


def main() -> int:
    print(VERBS)
    print("Config groups, as group=choice:")
    for group in GROUPS:
        print(visible(list_choices(group)))
    print(FOOTER)
    return 0


def list_choices(group: str) -> str:
    """Return the group and its choices, a line each."""
    choices = choices_in(group)
    width = max(map(len, choices), default=0)
    return "\n".join([f"  {group}", *(f"    {name:<{width}}  {meaning}" for name, meaning in choices.items())])


def choices_in(group: str) -> Mapping[str, str]:
    """Return a group's choices with their files' first comments; the current folder's own shadow the shipped."""
    if group == "experiments":
        folders = [shipped("experiments"), Path.cwd() / "experiments"]
    else:
        folders = [folder / group for folder in (shipped("conf"), Path.cwd() / "conf")]
    return {path.stem: _meaning(path) for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _meaning(path: Path) -> str:
    text = path.read_text(encoding="utf-8-sig", errors="replace")  # the command that takes the file says what is wrong
    comments = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((comment for comment in comments if comment and not comment.startswith("@package")), "")

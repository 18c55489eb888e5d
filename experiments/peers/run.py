"""Times the training steps of lmtrain against those of other tools: `python experiments/peers/run.py SETTING`.

Each contender is a separate process, with its own environment, the same initial weights and the same batches. They take
turns, one round each, so that noise of the machine affects all of them equally. Ratios are taken within a round.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from contest import ROOT, Contender, Contest, curve_difference  # noqa: E402
from environments import CACHE, MissingError, python_for  # noqa: E402
from report import print_table, write_pictures_and_tables  # noqa: E402
from settings import BASE, ENTRIES, GPU_BASE, SETTINGS, Setting  # noqa: E402

SAME_TRAINING = (  # constant learning rate, and blocks of the token file in order: so do all contenders
    "data=tokens",
    "data.order=sequential",
    "scheduler=cosine",
    "scheduler.warmup_steps=0",
    "scheduler.min_lr=${optimizer.lr}",
)
# Relative differences of losses from the plain loop's. float32: sums in another order. bfloat16: 8 bits. A GPT-2 with
# biases (transformers) or rotary positions (litgpt) is another function, with other losses.
TOLERANCE = {"float32": 2e-3, "bfloat16": 1e-2}
OTHER_FUNCTION = 0.2


def main(arguments: list[str] | None = None) -> int:
    options = read_options(arguments)
    for name in options.settings:
        measure(name, SETTINGS[name], options)
    return 0


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", choices=SETTINGS, metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--entries", help=f"only these, separated by commas, of {', '.join(ENTRIES)}")
    parser.add_argument("--rounds", type=int, help="measured rounds (default: the setting's)")
    parser.add_argument("--steps", type=int, help="optimizer steps per round (default: the setting's)")
    parser.add_argument("--environments", type=Path, default=CACHE, help=f"folder of the environments ({CACHE})")
    parser.add_argument(
        "--here", action="store_true", help="run all contenders with this Python; those not installed are left out"
    )
    parser.add_argument(
        "--bfloat16", choices=("auto", "yes", "no"), default="auto", help="auto: if the machine is faster with it"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="add rounds to the results that are there")
    options = parser.parse_args(arguments)
    unknown = set((options.entries or "").split(",")) - {"", *ENTRIES}
    if unknown:
        parser.error(f"--entries: {', '.join(sorted(unknown))}: unknown; choose from {', '.join(ENTRIES)}")
    return options


def measure(name: str, setting: Setting, options: argparse.Namespace) -> None:
    """Run the contest of a setting, and write its results after every round."""
    path = options.output / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if options.resume and path.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="lmtrain-peers-", ignore_cleanup_errors=True) as scratch:
        task, facts = prepare(setting, Path(scratch))
        steps = options.steps or setting.steps[facts["device"]]
        contenders, left_out = build_contenders(options, task, facts, Path(scratch), steps)
        contest = Contest(contenders, int(setting.memory_gb * 1e9), left_out)
        head = {
            "setting": name,
            "title": setting.title,
            "date": datetime.date.today().isoformat(),
            "command": f"python experiments/peers/run.py {name} --rounds {options.rounds or setting.rounds}",
            "base": GPU_BASE if facts["device"] == "cuda" else BASE,
            "machine": describe_machine(facts),
            "lmtrain": describe_lmtrain(),
            "step_tokens": task["batch_size"] * task["block_size"],
            "parameters": facts["parameters"],
            "steps_per_round": steps,
        }
        rounds = continued_rounds(before, head, path)
        results: dict[str, Any] = before  # in case there is nothing left to do
        try:
            for number in range(len(rounds), options.rounds or setting.rounds):
                print(f"{setting.title}, round {number + 1}", flush=True)
                rounds.append(contest.play_round(number))
                results = head | describe(contest, before) | {"rounds": rounds}
                write_json(path, results)
        finally:
            contest.close()
    print_table(results)
    if options.output == HERE / "results":
        write_pictures_and_tables(options.output)
    for problem in problems(results):
        print(f"WRONG: {problem}", flush=True)


def prepare(setting: Setting, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write tokens and weights; return the task and facts about the machine."""
    command = [sys.executable, str(HERE / "prepare.py"), str(folder), *setting.overrides, *SAME_TRAINING]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    return task, json.loads(done.stdout.splitlines()[-1])


def build_contenders(
    options: argparse.Namespace, task: dict[str, Any], facts: Mapping[str, Any], folder: Path, steps: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders of a contest, and the reasons why others are left out."""
    bfloat16 = options.bfloat16 == "yes" or (options.bfloat16 == "auto" and facts["bfloat16_speed"] > 1)
    contenders, left_out = {}, {}
    for name, entry in ENTRIES.items():
        if name not in options.entries.split(",") if options.entries else entry.second_choice and bfloat16:
            continue
        if entry.dtype == "bfloat16" and not bfloat16:
            left_out[name] = f"{facts['bfloat16_speed']:.2f} times the speed of float32 on this machine"
            continue
        try:
            python = python_for(entry, None if options.here else options.environments.absolute())
        except MissingError as error:
            left_out[name] = str(error)
            continue
        contenders[name] = Contender(name, entry, python, task, folder, steps)
    for name, reason in left_out.items():
        print(f"  {name:28} left out: {reason}", flush=True)
    return contenders, left_out


def describe_machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    from lmtrain.machine import cpu_name

    return {
        "cpu": cpu_name(),
        "threads": facts["threads"],
        "gpu": facts["gpu"],
        "bfloat16_speed": round(facts["bfloat16_speed"], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def describe_lmtrain() -> dict[str, Any]:
    from lmtrain.run.source_code import lmtrain_hash

    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    return {"commit": commit or None, "source": lmtrain_hash(), "torch": importlib.metadata.version("torch")}


def describe(contest: Contest, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known about the contenders; a contest that continues keeps what it measured before."""
    base = contest.contenders.get(BASE)
    contenders = {}
    for name, each in contest.contenders.items():
        known = before.get("contenders", {}).get(name)
        steps = sorted(each.curve)
        contenders[name] = known or {
            "label": each.entry.label,
            **each.facts,
            "peak_gb": round(each.peak_bytes / 1e9, 2),
            "starts": each.starts,
            "first_loss": each.curve[steps[0]],
            "last_loss": each.curve[steps[-1]],
            "steps": steps[-1],
            "loss_difference": curve_difference(each.curve, each.mean, base.curve) if base else None,
        }
    return {"contenders": contenders, "left_out": contest.left_out}


def continued_rounds(before: Mapping[str, Any], head: Mapping[str, Any], path: Path) -> list[dict[str, float]]:
    """Return the rounds of an interrupted contest, which must have been of the same code on the same machine."""
    for key in ("machine", "lmtrain", "steps_per_round") if before else ():
        same = {**before[key], "bfloat16_speed": None} if key == "machine" else before[key]
        if same != ({**head[key], "bfloat16_speed": None} if key == "machine" else head[key]):
            raise SystemExit(f"{path}: was measured with another {key}; leave out --resume to start again")
    return list(before.get("rounds", []))


def problems(results: Mapping[str, Any]) -> list[str]:
    """Return what shows that a contender did not do the same work as the others."""
    found = []
    for name, each in results["contenders"].items():
        extra = each["parameters"] - results["parameters"]
        if abs(extra) > 0.02 * results["parameters"]:
            found.append(f"{name} has {extra:+,} parameters")
        if not each["last_loss"] < each["first_loss"]:
            found.append(f"the loss of {name} went from {each['first_loss']:.4f} to {each['last_loss']:.4f}")
        difference = each["loss_difference"]
        tolerance = OTHER_FUNCTION if extra else TOLERANCE[each["dtype"]]
        if difference is not None and not difference <= tolerance:
            found.append(f"losses of {name} differ from the plain loop's by {difference:.2e}")
        if math.isnan(each["last_loss"]):
            found.append(f"the loss of {name} is not a number")
        torch = each["versions"]["torch"]
        if torch != results["lmtrain"]["torch"]:
            found.append(f"{name} has torch {torch}, lmtrain {results['lmtrain']['torch']}")
    return found


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Replace a file by one that is complete."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it also ends the contenders
    sys.exit(main())

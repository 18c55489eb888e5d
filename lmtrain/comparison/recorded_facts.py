"""Reads from a run's records what it computed with and its config does not say: data, code, device, resumes."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmtrain.comparison.compared_run import ComparedRun, mapping_at
from lmtrain.comparison.labels import canonical_json
from lmtrain.comparison.measurement import measurement
from lmtrain.files.numbers import is_number
from lmtrain.terminal.as_text import printable

FACTS = ("data", "evaluation", "parameters", "code", "lmtrain")
RESUMED, AVERAGED = "resumed", "averaged"
RECORDED_KEYS = frozenset({*FACTS, RESUMED, AVERAGED})  # keys of an effective setting that no config has
DIGITS = 6  # of a hash, enough to distinguish the versions that one person compares
ARROW = "→"
CHANGE = re.compile(rf"(?P<key>[^:]+): (?P<old>.*) {ARROW} (?P<new>.*)", re.DOTALL)
DEVICE = re.compile(  # of `System.describe`
    r"(?P<device>\w+)\S* \(.*\), (?P<dtype>\w+), (?P<compile>compiled|eager)(?: (?P<mode>[\w-]+))?"
)
MICRO_BATCH_KEYS = ("data.batch_size", "trainer.gradient_accumulation_steps")
GLOBAL_KEY = "trainer.global_batch_size"
MAX_CHANGE_CHARS = 60


def facts_of(run: ComparedRun) -> dict[str, Any]:
    """Return the recorded facts by the names in `FACTS`; None if unknown.

    The hashes are those of the contents of the data, of the user's code that the config names, and of lmtrain's own
    source. If a resume continued with another version, all versions are named. The evaluation is the number of target
    tokens that the last one measured.
    """
    environments = [run.environment, *_resumes(run)]
    parameters = mapping_at(run.environment, "model").get("parameters")
    return {
        "data": _history(_digest(environment.get("data")) for environment in environments),
        "evaluation": measurement(run, "val/loss", [math.inf]).tokens,
        "parameters": int(parameters) if is_number(parameters) else None,
        "code": _history(_digest(_code_used(environment)) for environment in environments),
        "lmtrain": _history(_first_digits(environment.get("lmtrain_source")) for environment in environments),
    }


def resolved_system(run: ComparedRun) -> dict[str, Any]:
    """Return what `system.device`, `dtype` and `compile` were: as recorded or, without a record, as written.

    The value is None if neither tells.
    """
    recorded = run.environment.get("device")
    found = DEVICE.fullmatch(recorded) if isinstance(recorded, str) else None
    if found is not None:
        device, dtype, compiled, mode = found.groups()
        return {"device": device, "dtype": dtype, "compile": mode or compiled == "compiled"}
    written = {name: run.config.get(f"system.{name}") for name in ("device", "dtype", "compile")}
    known = {name: None if value == "auto" else value == "default" or value for name, value in written.items()}
    return known | {"device": str(known["device"]).partition(":")[0] if known["device"] is not None else None}


def resumed_changes(run: ComparedRun, is_neutral: Callable[[str, ComparedRun], bool]) -> str:
    """Return the changes that resumes made to what the run computes, in words; empty if there were none.

    A change is left out if the run is now as if the new value had always been there: of the path of data, because a
    resume refuses other contents, and of `trainer.max_steps`, because a schedule that depends on it has its own line.
    """
    words = []
    for resume in _resumes(run):
        changes = resume.get("changes")
        lines = [line for line in changes if isinstance(line, str)] if isinstance(changes, list) else []
        neutral = {"trainer.max_steps", *(MICRO_BATCH_KEYS if _same_global_batch(lines, run) else ())}
        by_key = [(line.partition(":")[0], line) for line in lines]
        counting = [
            _in_words(line)
            for key, line in by_key
            if not (key in neutral or key.startswith("data.path") or is_neutral(key, run))
        ]
        if counting:
            step = mapping_at(resume, "evaluation").get("after_step")
            words.append(", ".join(counting) + (f" at step {step}" if type(step) is int else ""))
    return "; ".join(words)


def averaged_from(run: ComparedRun) -> str:
    """Return the steps of the checkpoints whose mean a run began with, in words; empty for other runs.

    Runs that began with the same steps of their own runs are replicates. A weight other than 1 follows its step.
    """
    records = run.environment.get("averaged_from")
    records = [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
    steps = ",".join(_with_weight(record) for record in records)
    runs = len({str(record.get("run_id")) for record in records})
    return f"{runs} runs at {steps}" if runs > 1 else steps


def _with_weight(record: Mapping[str, Any]) -> str:
    step, weight = record.get("step"), record.get("weight")
    return printable(f"{step}" if weight == 1 else f"{step}×{weight}")[:MAX_CHANGE_CHARS]


def _same_global_batch(lines: list[str], run: ComparedRun) -> bool:
    changed = {found["key"]: found for line in lines if (found := CHANGE.fullmatch(line))}
    if type(run.config.get(GLOBAL_KEY)) is int and GLOBAL_KEY not in changed:
        return True  # also where the size of a micro-batch was changed to `auto`
    before = after = 1
    for key in MICRO_BATCH_KEYS:
        now = run.config.get(key)
        texts = (changed[key]["old"], changed[key]["new"]) if key in changed else (str(now), str(now))
        if not all(text.isdecimal() and len(text) < 19 for text in texts):
            return False
        before, after = before * int(texts[0]), after * int(texts[1])
    return before == after


def _in_words(line: str) -> str:
    found = CHANGE.fullmatch(line)
    if found is None:  # a file of code that changed
        return printable(line)[:MAX_CHANGE_CHARS]
    name = found["key"].rpartition(".")[2]
    return printable(f"{name} {found['old']}{ARROW}{found['new']}")[:MAX_CHANGE_CHARS]


def _resumes(run: ComparedRun) -> list[Mapping[str, Any]]:
    resumes = run.environment.get("resumes")
    return [resume for resume in resumes if isinstance(resume, dict)] if isinstance(resumes, list) else []


def _code_used(environment: Mapping[str, Any]) -> Any:
    """Return the recorded hashes of the user's code, without that of loggers and of the preparation of data."""
    code = environment.get("code")
    if not isinstance(code, dict):
        return None
    return {key: hashes for key, hashes in code.items() if not str(key).startswith(("logger.", "prepare."))}


def _history(digests: Iterator[str | None]) -> str | None:
    """Return the distinct digests in their order; None if the first is unknown."""
    known = list(digests)
    if not known or known[0] is None:
        return None
    return ARROW.join(dict.fromkeys(digest for digest in known if digest is not None))


def _digest(content: Any) -> str | None:
    if content is None:
        return None
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:DIGITS]


def _first_digits(digest: Any) -> str | None:
    return printable(digest[:DIGITS]) if isinstance(digest, str) else None

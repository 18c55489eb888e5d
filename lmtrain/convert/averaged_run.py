"""Writes a run directory from an average of checkpoints, as if lmtrain had trained and saved it."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.fork import REQUIRED_FILES
from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.recorded.trust import read_saved
from lmtrain.convert.chosen_checkpoints import ChosenCheckpoint
from lmtrain.convert.new_directory import empty_again_after_error
from lmtrain.convert.weight_average import Ingredient, WeightAverage, average, read_ingredient
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, copy_tokenizer
from lmtrain.errors import COMPLETED, BrokenCheckpointError
from lmtrain.files.durable import sha256_of
from lmtrain.files.limited import read_json, read_yaml_text
from lmtrain.files.links import refuse_links
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.evaluation_weights import EMA, OF_OPTIMIZER
from lmtrain.run.directory import RunDirectory, refuse_used_directory
from lmtrain.run.environment import describe_environment
from lmtrain.terminal.as_text import shown

HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")
# Facts of the newest run that hold for the average too.
KEPT_FACTS = ("model", "data", "evaluation", "code", "forked_from")


def write_average(chosen: Sequence[ChosenCheckpoint], directory: Path | None) -> tuple[Path, list[str]]:
    """Average checkpoints into a run directory, and return it with remarks about the average.

    The run begins at the step of the newest ingredient, with its config, its place in the data and its random
    generators, and without the optimizer's state.

    Args:
        chosen: The checkpoints.
        directory: A directory that is empty or does not exist; None for a new one, named like those of training.

    Raises:
        ValueError: A checkpoint is broken, the checkpoints do not belong together, or the directory is used. Nothing
            is left behind.
        OSError: A file can't be read or written.
    """
    if directory is not None:
        refuse_used_directory(directory, "--out ")
    _check_same_tokenizer([each.run for each in chosen])
    ingredients = [read_ingredient(each) for each in chosen]
    averaged = average(ingredients)
    source = averaged.newest.chosen.run
    directory = directory or _new_directory(source)
    existed = directory.exists()
    # The directory is entered first: it raises for one that another process uses.
    with RunDirectory(directory) as run, empty_again_after_error(run.path, existed=existed):
        environment = _environment(run.run_id(), averaged, ingredients)
        checkpoint = _first_checkpoint(averaged, environment)
        CheckpointFolder.of_run(run.path, environment["run_id"]).save(
            averaged.newest.train.step, checkpoint, Retention(newest=1)
        )
        run.write_json("environment.json", environment)
        copy_tokenizer(source, run.path)
        JsonlLogger(run.path / "metrics.jsonl").close(COMPLETED.status)
        run.write_config(read_yaml_text(source / "config.yaml"), _hydra_files(source))
    return directory, _remarks(averaged, ingredients)


def _new_directory(source: Path) -> Path:
    """Return a new run directory, named as `conf/config.yaml` names it."""
    name = read_saved(source / "config.yaml").get("name")
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{source}: its name, {shown(str(name))}, is not that of a folder; give --out DIR")
    return Path("outputs", name, f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def _first_checkpoint(averaged: WeightAverage, environment: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint of the newest ingredient with the averaged weights and a fresh optimizer."""
    newest = averaged.newest
    try:
        then = load_checkpoint(newest.chosen.path)
    except BrokenCheckpointError as error:  # since it was verified
        raise ValueError(f"{newest.chosen.path}: {error}") from error
    if missing := REQUIRED_FILES - then.tensors.keys():
        raise ValueError(f"{newest.chosen.path}: the checkpoint has no {' and no '.join(sorted(missing))}")
    train = newest.train
    state = TrainState(
        step=train.step, samples=train.samples, tokens=train.tokens, first_step=train.step, seconds=train.seconds
    )
    return Checkpoint(
        tensors={
            "model": averaged.weights,
            "optimizer": {},
            "detector": then.tensors["detector"],
            "rng-0": then.tensors["rng-0"],
        },
        state={
            **then.state,
            "run_id": environment["run_id"],
            "averaged_from": environment["averaged_from"],
            "train": asdict(state),
            "optimizer": {},
            "optimizer_groups": [{} for _ in then.state["optimizer_groups"]],
        },
        unchecked=frozenset({*(f"model/{name}" for name in averaged.unchecked), "detector/window"}),
    )


def _environment(run_id: str, averaged: WeightAverage, ingredients: Sequence[Ingredient]) -> dict[str, Any]:
    source = averaged.newest.chosen.run
    then = read_json(source / "environment.json")
    return {
        **describe_environment(run_id, str(then.get("device", "cpu"))),
        **{key: then[key] for key in KEPT_FACTS if key in then},
        "resolved": kept_choices(source),
        "averaged_from": [each.record for each in ingredients],
    }


def _hydra_files(source: Path) -> Mapping[str, str]:
    refuse_links(source / ".hydra")
    paths = {name: source / ".hydra" / name for name in HYDRA_FILES}
    return {name: read_yaml_text(path) for name, path in paths.items() if path.is_file()}


def _check_same_tokenizer(runs: Sequence[Path]) -> None:
    """Raise ValueError if the runs have other tokenizers: a token id would mean another text."""
    files = {run: run / TOKENIZER_FILE for run in runs}
    hashes = {run: sha256_of(file) if file.is_file() else None for run, file in files.items()}
    first = runs[0]
    for run, found in hashes.items():
        if found != hashes[first]:
            differs = "has another" if None not in (found, hashes[first]) else "has no" if found is None else "has a"
            raise ValueError(
                f"{run}: {differs} {TOKENIZER_FILE}, unlike {first}; only models with the same tokenizer have a mean"
            )


def _remarks(averaged: WeightAverage, ingredients: Sequence[Ingredient]) -> list[str]:
    remarks = []
    if not set.intersection(*(each.line_of_runs for each in ingredients)):
        remarks.append(
            "the runs were not forked from one run: the mean of models that were trained independently is usually much "
            "worse than each of them"
        )
    averages = (EMA, OF_OPTIMIZER)
    if any((each.chosen.path / f"{name}.safetensors").is_file() for each in ingredients for name in averages):
        remarks.append(
            "the weights of training were averaged; these runs also keep a mean of their own, with which they are "
            "evaluated"
        )
    if averaged.from_newest:
        names = ", ".join(averaged.from_newest)
        remarks.append(f"tensors of whole numbers have no mean and are those of {averaged.newest.chosen}: {names}")
    return remarks

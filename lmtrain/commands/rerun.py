"""`python -m lmtrain --rerun RUN_DIR`: repeats a run in a new directory, and says whether its numbers came again."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.compose import compose, texts_for_hydra_folder, without_hydra
from lmtrain.config.overrides import parse
from lmtrain.config.preflight import preflight
from lmtrain.config.recompose import overrides_of
from lmtrain.config.trust import read_saved
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.run.directory import refuse_existing_run
from lmtrain.run.identity import NEUTRAL_KEYS, config_hash
from lmtrain.terminal.as_text import differences
from lmtrain.terminal.console import console


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmtrain --rerun",
        description="Repeats a run: its config, seed and data, in a new run directory. Give it in the folder that the "
        "run was started in.\nWhat else has changed since (code, versions, machine) is told first, and at the end "
        "whether every number is the same.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "overrides", nargs="*", help=f"what changes no number: {', '.join(NEUTRAL_KEYS[:2])}, hydra.run.dir"
    )
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.parse_args(list(arguments))
    run: Path = options.run
    for override in (given := parse(options.overrides)):
        if override.key_or_group.partition(".")[0] not in (*NEUTRAL_KEYS, "hydra"):
            raise ConfigError(f"{override.input_line}: --rerun changes nothing; to change a run, fork it: fork={run}")

    lines = [*overrides_of(run, options.trust, given, keeps_origin=True), *options.overrides]
    composed = compose(lines, with_hydra=True)
    settings = composed.hydra
    directory = Path(settings.run.dir)
    settings.runtime.output_dir = str(directory.absolute())
    composed = without_hydra(composed)
    hydra_files = texts_for_hydra_folder(composed, settings)
    cfg = preflight(composed)
    refuse_existing_run(directory)
    _refuse_another(read_saved(run / "config.yaml"), cfg, run)

    # After the config is settled: these import torch.
    from lmtrain.train import run as train

    then = read_json(run / "environment.json")
    outcome = train(
        cfg,
        directory,
        hydra_files,
        lineage={"rerun_of": {"run": str(run.resolve()), "run_id": then.get("run_id")}},
    )
    _tell_changes(then, read_json(directory / "environment.json"))
    if outcome.exit_code == 0:
        _tell_result(run, directory)
    return outcome.exit_code


def _refuse_another(before: DictConfig, now: DictConfig, run: Path) -> None:
    """Raises ConfigError unless the same would be computed."""
    containers: list[Any] = [OmegaConf.to_container(cfg) for cfg in (before, now)]
    if len(set(map(config_hash, containers))) == 1:
        return
    old, new = ({key: value for key, value in each.items() if key not in NEUTRAL_KEYS} for each in containers)
    raise ConfigError(f"{run}: can't be repeated here, it would be another run: {'; '.join(differences(old, new))}")


def _tell_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """What else than the config may make a difference."""
    found = [
        line
        for key in ("cpu", "device", "python", "packages", "data")
        for line in differences(then.get(key), now.get(key), key)
    ]
    before, after = ((each.get("git") or {}) for each in (then, now))
    if before.get("commit") != after.get("commit"):
        found.append(f"git commit: {before.get('commit')} → {after.get('commit')}")
    elif before.get("diff") != after.get("diff"):
        found.append("uncommitted changes: other ones")
    for line in found:
        console.print(f"not as it was: {line}", markup=False)


def _tell_result(old: Path, new: Path) -> None:
    from lmtrain.verify.bit_comparison import first_metric_difference

    steps, difference = first_metric_difference(old, new)
    if difference is not None:
        console.print(f"another result: {difference}", style="yellow", markup=False)
    elif steps:
        console.print(f"the same as {old}, to the last digit of {steps} lines of metrics")
    else:
        console.print(f"nothing to compare: {old} has no metrics of these steps")

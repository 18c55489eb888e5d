"""Follows forks back to the trunk, the run at which their line of parents begins.

A fork contains the first steps of its parent, so the forks of a run are not independent. Their unit is the trunk.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmtrain.comparison.compared_run import Branch, ComparedRun, forked_from, mapping_at
from lmtrain.comparison.labels import canonical_json, hashable
from lmtrain.comparison.run_files import flat_config, read_config, read_record
from lmtrain.comparison.settings import effective_settings
from lmtrain.files.links import refuse_links
from lmtrain.terminal.as_text import printable

MOST_ANCESTORS = 100  # a record that a stranger wrote may go on for ever
AVERAGED_FROM = "averaged_from"  # of a parent that began with the mean of several checkpoints
END_OF_RUN = ("seed", "trainer.max_steps")  # of a parent: the unit has its seed, and a fork decides where it ends


@dataclass(frozen=True)
class _Ancestor:
    """A parent of a fork: its identity, what is known about it, and the step at which the child left it."""

    identity: str
    name: str
    step: int | None
    run: ComparedRun | None


def with_settings(runs: Sequence[ComparedRun], folders: Sequence[Path] = ()) -> list[ComparedRun]:
    """Return the runs with their effective settings and, for forks, with their branches.

    What a parent computed is taken from the fork's own record, from the parent if it is among the runs, or from its
    files if it is inside one of the `folders`.
    """
    known = _KnownRuns(runs, folders)
    lines = [known.ancestors(run) for run in runs]
    parents = {id(each.run): each.run for line in lines for each in line if each.run is not None}
    settings = effective_settings([*runs, *parents.values()])
    own = settings[: len(runs)]
    setting_of = dict(zip(parents, settings[len(runs) :], strict=True))
    branches = [_branch(line, setting_of) for line in lines]
    seeds: dict[str, set[Any]] = {}
    for run, branch in zip(runs, branches, strict=True):
        if branch is not None:
            seeds.setdefault(branch.trunk, set()).add(hashable(run.seed))
    found = []
    for run, setting, branch in zip(runs, own, branches, strict=True):
        if branch is not None and not branch.trunk_setting:
            alike = seeds[branch.trunk]  # a fork has its parent's seed, unless a command says otherwise
            branch = replace(branch, unit=min(alike, key=str) if len(alike) == 1 else branch.trunk)
        found.append(replace(run, setting=setting, branch=branch))
    return found


def unit_of(run: ComparedRun) -> Any:
    """Return what a run's value is a draw of: its seed or, for a fork, the seed of its trunk."""
    return hashable(run.seed if run.branch is None else run.branch.unit)


def real_path(text: str) -> str:
    """Return the path without links; the text itself if it is no path."""
    try:
        return os.path.realpath(text)
    except ValueError:  # it contains a NUL or a character that the file system cannot encode
        return text


def _branch(line: Sequence[_Ancestor], setting_of: Mapping[int, Mapping[str, Any]]) -> Branch | None:
    if not line:
        return None
    settings = [setting_of.get(id(each.run), {}) for each in line]
    parts = [
        [{key: value for key, value in setting.items() if key not in END_OF_RUN} or each.identity, each.step]
        for each, setting in zip(line, settings, strict=True)
    ]
    trunk = line[-1]
    return Branch(
        trunk=trunk.identity,
        unit=settings[-1].get("seed"),
        shared_steps=trunk.step,
        step=line[0].step,
        parent_setting=settings[0],
        parent_name=line[0].name,
        trunk_setting=settings[-1],
        key=canonical_json(parts),
    )


class _KnownRuns:
    """Finds the parents of forks among the loaded runs, in the forks' records, and in files."""

    def __init__(self, runs: Sequence[ComparedRun], folders: Sequence[Path]) -> None:
        self.by_id = {run.environment["run_id"]: run for run in runs if run.environment.get("run_id")}
        self.by_path = {os.path.realpath(run.path): run for run in runs}
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.made: dict[tuple[str, str], ComparedRun | None] = {}

    def loaded(self, origin: Mapping[str, Any]) -> ComparedRun | None:
        run_id = origin.get("run_id")
        found = self.by_id.get(run_id) if isinstance(run_id, str) else None
        return found or self.by_path.get(real_path(str(origin.get("run"))))

    def ancestors(self, run: ComparedRun) -> list[_Ancestor]:
        """Return the parent of a fork, the parent's parent and so on; empty for a run that is no fork."""
        line: list[_Ancestor] = []
        seen: set[str] = set()
        origin = forked_from(run)
        while origin and len(line) < MOST_ANCESTORS:
            loaded = self.loaded(origin)
            name = printable(str(origin.get("run") or origin.get("run_id")))
            identity = str(origin.get("run_id") or (loaded and loaded.environment.get("run_id")) or real_path(name))
            if identity in seen:  # a stranger's run folders may name each other as parents, in a circle
                break
            seen.add(identity)
            parent = self._parent(identity, origin, loaded)
            step = origin.get("step")
            line.append(_Ancestor(identity, name, step if type(step) is int else None, parent))
            origin = mapping_at(origin, "forked_from") or (forked_from(parent) if parent is not None else {})
        return line

    def _parent(self, identity: str, origin: Mapping[str, Any], loaded: ComparedRun | None) -> ComparedRun | None:
        """Return the parent as it was at the fork, as far as it is known."""
        recorded = mapping_at(origin, "config")
        key = identity, canonical_json(recorded) if recorded else ""
        if key not in self.made:
            self.made[key] = self._make_parent(origin, recorded, loaded)
        return self.made[key]

    def _make_parent(
        self, origin: Mapping[str, Any], recorded: Mapping[str, Any], loaded: ComparedRun | None
    ) -> ComparedRun | None:
        found = loaded or self._read(str(origin.get("run")))
        if not recorded:
            return found
        try:
            config = flat_config(recorded)
        except (ValueError, RecursionError):
            return found
        if found is None:
            return _without_metrics(Path(str(origin.get("run"))), config, {AVERAGED_FROM: origin.get(AVERAGED_FROM)})
        # A resume after the fork may have changed the parent's config.
        return replace(found, config=config, environment=dict(found.environment) | {"resumes": []})

    def _read(self, text: str) -> ComparedRun | None:
        """Return a parent that was not loaded, from its files; None outside the folders that may be read."""
        path = real_path(text)
        if not any(os.path.commonpath([path, folder]) == folder for folder in self.folders if os.path.isabs(path)):
            return None
        try:
            refuse_links(Path(path), ("config.yaml", "environment.json"))
            config = read_config(Path(path, "config.yaml"))
            return _without_metrics(Path(path), config, read_record(Path(path, "environment.json")))
        except (OSError, ValueError, json.JSONDecodeError):
            return None


def _without_metrics(path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> ComparedRun:
    return ComparedRun(path, path.name, config, "", {}, environment, {}, None, None)

"""The ledger of a campaign, `decisions.jsonl`: an append-only file with a line when a decision starts and when it ends.

The first line has the settings of the campaign. A line is on the disk before the work that it announces begins.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.comparison.looking.design import CAMPAIGN_FILE
from lmtrain.comparison.statistics.online_fdr import FDR_LEVEL, PLANNED_IDEAS, next_level
from lmtrain.errors import ConfigError
from lmtrain.files.durable import append_line, make_folder
from lmtrain.files.limited import read_limited
from lmtrain.files.lock import FileLock
from lmtrain.files.numbers import is_number
from lmtrain.terminal.redact import redacted

LOCK = ".decisions.lock"
FORMAT = 1
MAX_BYTES = 256_000_000  # a decision has a few thousand bytes
CAMPAIGN, STARTED, ENDED = "campaign", "started", "ended"  # the values of `event`
KEEP, DROP, UNDECIDED = "keep", "drop", "undecided"
FINAL = (KEEP, DROP)  # an undecided idea may go on with a larger budget


@dataclass(frozen=True)
class Entry:
    """An idea in the ledger: what its start and, if it has ended, its end recorded.

    Attributes:
        key: Identifies the idea: both configs, and what is compared.
        number: Its place in the order in which the ideas of the campaign started, from 1.
        level: The level of its test, fixed when it started.
        started: The line of its start.
        ended: The line of its end; None while it is open.
    """

    key: str
    number: int
    level: float
    started: Mapping[str, Any]
    ended: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str | None:
        return str(self.ended["verdict"]) if self.ended else None

    @property
    def is_final(self) -> bool:
        return self.verdict in FINAL


@dataclass(frozen=True)
class Contents:
    """What a ledger says. `damaged` is the number of lines that cannot be read.

    `level` and `planned` are None in a new campaign.
    """

    level: float | None
    planned: int | None
    entries: Mapping[str, Entry]
    damaged: int = 0

    @property
    def kept(self) -> int:
        return sum(entry.verdict == KEEP for entry in self.entries.values())

    @property
    def next_number(self) -> int:
        """Return the number of the next idea. A damaged line counts as an idea: its level may have been used."""
        return max([len(self.entries), *(entry.number for entry in self.entries.values())]) + self.damaged + 1


class Ledger:
    """The ledger of the campaign in a folder. Several processes may use it at the same time.

    Args:
        folder: The folder of the campaign; made when the first line is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / CAMPAIGN_FILE

    def read(self) -> Contents:
        """Return what the ledger says now; empty for a campaign that does not exist yet.

        Raises:
            ConfigError: the file was written by a newer version of lmtrain, or is too large.
        """
        try:
            content = read_limited(self.path, MAX_BYTES)
        except FileNotFoundError:
            return Contents(None, None, {})
        except ValueError as error:
            raise ConfigError(str(error)) from error
        lines = content.split(b"\n")
        unfinished = lines.pop()  # a process was killed while it wrote this line, before the work that it announces
        found = [_parsed(line) for line in lines]
        if (last := _parsed(unfinished)) is not None:
            found.append(last)
        return self._contents([one for one in found if one is not None], damaged=found.count(None))

    def open_campaign(self, level: float | None, planned: int | None) -> Contents:
        """Begin the campaign if it is new; `level` and `planned` are None for the campaign's own, or the usual ones.

        Raises:
            ConfigError: the campaign has another level or plan, which its earlier decisions have used.
        """
        with self._locked():
            now = self.read()
            if now.level is None:
                given = {"level": level or FDR_LEVEL, "planned_ideas": planned or PLANNED_IDEAS}
                self._append({"event": CAMPAIGN, "format": FORMAT, **given, "time": _now()})
                return self.read()
            for option, wanted, own in (("level", level, now.level), ("ideas", planned, now.planned)):
                if wanted not in (None, own):
                    raise ConfigError(
                        f"--{option} {wanted}: the campaign in {self.folder} began with {own}, and its ideas share "
                        "that; leave the option out, or begin a campaign in another folder"
                    )
            return now

    def start(self, key: str, about: Mapping[str, Any]) -> Entry:
        """Return the entry of an idea. A new idea gets its level, which is fixed from now on."""
        with self._locked():
            now = self.read()
            if key in now.entries:
                return now.entries[key]
            assert now.level is not None
            assert now.planned is not None
            number = now.next_number
            level = next_level(number, now.kept, level=now.level, planned=now.planned)
            line = {"event": STARTED, "key": key, "number": number, "level": level, "kept_before": now.kept}
            self._append({**line, "time": _now(), **about})
            return self.read().entries[key]

    def end(self, key: str, result: Mapping[str, Any]) -> Entry:
        """Record how a decision ended, and return the entry; one that is final stays as it is."""
        with self._locked():
            entry = self.read().entries[key]
            if entry.is_final:
                return entry
            self._append(
                {"event": ENDED, "key": key, "number": entry.number, "level": entry.level, "time": _now(), **result}
            )
            return self.read().entries[key]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.folder)
        with FileLock(self.folder / LOCK):
            yield

    def _append(self, line: Mapping[str, Any]) -> None:
        """Write a line and wait until it is on the disk."""
        append_line(self.path, json.dumps(redacted(line), allow_nan=False))

    def _contents(self, lines: Sequence[Mapping[str, Any]], damaged: int) -> Contents:
        level: float | None = None
        planned: int | None = None
        entries: dict[str, Entry] = {}
        ends: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            if line["event"] == CAMPAIGN and level is None:
                if line["format"] > FORMAT:
                    raise ConfigError(f"{self.path}: format {line['format']}; this version of lmtrain reads {FORMAT}")
                level, planned = line["level"], line["planned_ideas"]
            elif line["event"] == STARTED:
                entries.setdefault(line["key"], Entry(line["key"], line["number"], line["level"], line))
            elif line["event"] == ENDED and ends.get(line["key"], {}).get("verdict") not in FINAL:
                ends[line["key"]] = line
        for key, line in ends.items():  # where the line of the start is damaged, that of the end has what is needed
            start = entries[key] if key in entries else Entry(key, line["number"], line["level"], line)
            entries[key] = Entry(key, start.number, start.level, start.started, line)
        if level is None and lines:
            raise ConfigError(f"{self.path}: its first line, with the level of the campaign, is damaged; restore it")
        return Contents(level, planned, dict(sorted(entries.items(), key=lambda item: item[1].number)), damaged)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line of the ledger; None if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if type(found) is not dict:
        return None
    is_idea = isinstance(found.get("key"), str) and type(found.get("number")) is int and _is_level(found.get("level"))
    valid = {
        CAMPAIGN: type(found.get("format")) is int
        and _is_level(found.get("level"))
        and type(found.get("planned_ideas")) is int
        and found["planned_ideas"] > 0,
        STARTED: is_idea,
        ENDED: is_idea and found.get("verdict") in (*FINAL, UNDECIDED),
    }
    return found if valid.get(str(found.get("event"))) else None


def _is_level(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

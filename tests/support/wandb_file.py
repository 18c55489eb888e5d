"""Reads the `.wandb` file of a run: records in the log format of LevelDB, each a protobuf message of W&B."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<4sHB")
CHUNK = struct.Struct("<IHB")  # checksum, length, kind
BLOCK_SIZE = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """Holds the content of a `.wandb` file."""

    id: str = ""
    display_name: str = ""
    project: str = ""
    group: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)  # the x axis for each pattern of metric names
    exit_code: int | None = None


def read_run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.display_name, run.project = record.run.run_id, record.run.display_name, record.run.project
                run.group, run.notes, run.tags = record.run.run_group, record.run.notes, list(record.run.tags)
                run.config |= _values(record.run.config.update)
            case "config":
                run.config |= _values(record.config.update)
            case "history":
                run.history.append(_values(record.history.item))
            case "summary":
                run.summary |= _values(record.summary.update)
            case "metric":
                run.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def records(path: Path) -> Iterator[Any]:
    """Yield the complete records in the file."""
    # Imported here, since some tests run in a process that must not import W&B.
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert HEADER.unpack_from(content)[0] == b":W&B"
    position, parts = HEADER.size, []
    while position + CHUNK.size <= len(content):
        if BLOCK_SIZE - position % BLOCK_SIZE < CHUNK.size:
            position += BLOCK_SIZE - position % BLOCK_SIZE
            continue
        checksum, length, kind = CHUNK.unpack_from(content, position)
        position += CHUNK.size
        part = content[position : position + length]
        position += length
        if len(part) < length:
            return
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind])))
        parts.append(part)
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

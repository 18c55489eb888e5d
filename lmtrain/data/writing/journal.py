"""What a preparation has done so far, so that a killed one goes on: counts, places and checksums, committed together.

Text becomes tokens in one order. A commit flushes the token files to the disk and then replaces `journal.json`, which
says how much of them counts and where the source was; what a kill leaves beyond that is cut off.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lmtrain.data.meta import MAX_JSON_BYTES, Split
from lmtrain.data.writing.encode import EncodedTexts
from lmtrain.files.durable import flush_to_disk, write_atomically
from lmtrain.files.limited import read_json_limited

JOURNAL_FILE = "journal.json"
FORMAT_VERSION = 1


@dataclass
class Journal:
    """`journal.json` in the hidden folder that a preparation works in."""

    recipe: Mapping[str, Any]
    tokenizer: bool = False  # is it there?
    splits: dict[str, Split] = field(default_factory=dict)
    position: Any = None  # of the source, after what the splits hold
    complete: bool = False  # all text is encoded
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        write_atomically(folder / JOURNAL_FILE, json.dumps(asdict(self)))


def read_journal(folder: Path) -> Journal | None:
    """Return the journal of an earlier process; None if there is none that can be used."""
    try:
        fields = read_json_limited(folder / JOURNAL_FILE, MAX_JSON_BYTES)
        if fields["format_version"] != FORMAT_VERSION:
            return None
        splits = {name: Split(**{**split, "shards": ()}) for name, split in fields["splits"].items()}
        return Journal(**{**fields, "splits": splits})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class SplitWriter:
    """Appends to one token file, counting and hashing what it writes; goes on from what an earlier process committed.

    Raises:
        ValueError: the file does not hold what was committed.
    """

    def __init__(self, path: Path, itemsize: int, committed: Split | None) -> None:
        self.path = path
        self.tokens = self.max_id = self.documents = self.bytes = 0
        self.checked_bytes = self.lost_bytes = 0
        self.sha256 = hashlib.sha256()
        path.touch()
        self.file: BinaryIO = path.open("r+b")
        if committed is not None:
            self._continue(committed, itemsize)
        self.file.truncate()

    def _continue(self, committed: Split, itemsize: int) -> None:
        left = committed.tokens * itemsize
        while left and (block := self.file.read(min(left, 1 << 22))):
            self.sha256.update(block)
            left -= len(block)
        if left or self.sha256.hexdigest() != committed.sha256:
            raise ValueError(f"{self.path}: is not what was committed")
        self.tokens, self.max_id = committed.tokens, committed.max_id
        self.documents, self.bytes = committed.documents, committed.bytes
        self.checked_bytes, self.lost_bytes = committed.checked_bytes, committed.lost_bytes

    def write(self, chunk: EncodedTexts) -> None:
        self.file.write(chunk.data)
        self.sha256.update(chunk.data)
        self.tokens += chunk.tokens
        self.max_id = max(self.max_id, chunk.max_id)
        self.documents += chunk.documents
        self.bytes += chunk.bytes
        self.checked_bytes += chunk.checked_bytes
        self.lost_bytes += chunk.lost_bytes

    def flushed(self) -> Split:
        """Return what has been written, all of it on the disk."""
        self.file.flush()
        flush_to_disk(self.file.fileno(), self.path)
        return Split(
            self.tokens,
            self.max_id,
            self.documents,
            self.bytes,
            self.sha256.hexdigest(),
            checked_bytes=self.checked_bytes,
            lost_share=self.lost_bytes / max(1, self.checked_bytes),
        )

    def close(self) -> Split:
        """End the file; return what has been written."""
        written = self.flushed()
        self.file.close()
        return written

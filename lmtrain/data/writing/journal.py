"""Records the progress of a preparation, so that it can continue after a kill.

Text becomes tokens in a fixed order. A commit flushes the token files to the disk and then replaces `journal.json`,
which says how much of each file is valid and where the source was. Anything beyond that is cut off when the preparation
continues.
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
    """The contents of `journal.json` in the hidden folder of a preparation."""

    recipe: Mapping[str, Any]
    tokenizer: bool = False  # True once the tokenizer is stored
    splits: dict[str, Split] = field(default_factory=dict)
    position: Any = None  # of the source, after the tokens in `splits`
    complete: bool = False  # True once all text is encoded
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        write_atomically(folder / JOURNAL_FILE, json.dumps(asdict(self)))


def read_journal(folder: Path) -> Journal | None:
    """Return the journal of an earlier process; None if there is no valid one."""
    try:
        fields = read_json_limited(folder / JOURNAL_FILE, MAX_JSON_BYTES)
        if fields["format_version"] != FORMAT_VERSION:
            return None
        splits = {name: Split(**{**split, "shards": ()}) for name, split in fields["splits"].items()}
        return Journal(**{**fields, "splits": splits})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class SplitWriter:
    """Appends to one token file, and counts and hashes the tokens; continues from the commit of an earlier process.

    Raises:
        ValueError: the file does not begin with the committed tokens.
    """

    def __init__(self, path: Path, itemsize: int, committed: Split | None) -> None:
        self.path = path
        self.tokens = self.max_id = self.documents = self.bytes = 0
        self.checked_bytes = self.lost_bytes = 0
        self.sha256 = hashlib.sha256()
        self.text_sha256 = ""
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
            raise ValueError(f"{self.path}: differs from its last commit")
        self.tokens, self.max_id = committed.tokens, committed.max_id
        self.documents, self.bytes = committed.documents, committed.bytes
        self.checked_bytes, self.lost_bytes = committed.checked_bytes, committed.lost_bytes
        self.text_sha256 = committed.text_sha256

    def write(self, chunk: EncodedTexts) -> None:
        self.file.write(chunk.data)
        self.sha256.update(chunk.data)
        self.tokens += chunk.tokens
        self.max_id = max(self.max_id, chunk.max_id)
        self.documents += chunk.documents
        self.bytes += chunk.bytes
        self.checked_bytes += chunk.checked_bytes
        self.lost_bytes += chunk.lost_bytes
        for text_hash in chunk.text_hashes:  # a chain, because a later process can continue it from the journal
            self.text_sha256 = hashlib.sha256(bytes.fromhex(self.text_sha256) + text_hash).hexdigest()

    def flushed(self) -> Split:
        """Flush the file to the disk; return the counts of all that has been written."""
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
            text_sha256=self.text_sha256,
        )

    def close(self) -> Split:
        """Flush and close the file; return the counts of all that has been written."""
        written = self.flushed()
        self.file.close()
        return written

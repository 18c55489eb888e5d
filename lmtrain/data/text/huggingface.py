"""Text from JSON Lines, Parquet, CSV and hub datasets, through the `datasets` library (the extra `lmtrain[data]`)."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.data.text.document import PART_BYTES, Document, text_parts, utf8_bytes
from lmtrain.data.text.files import check_zstandard
from lmtrain.data.text.inputs import Inputs, Scanned, Stamp, check_unchanged, input_changes, input_sha256, stamp_of
from lmtrain.data.text.matching import matching_files, other_names
from lmtrain.data.text.rows import FORMATS, Dataset, commit_of, open_dataset, open_files
from lmtrain.data.text.source import Advance, PositionedReader
from lmtrain.machine import is_installed
from lmtrain.terminal.as_text import first_few


class HuggingFace:
    """Text from files, a dataset folder or a dataset of the Hugging Face hub. Each row is a document, "split:row".

    Each row must fit in memory, and so must the texts of a Parquet row group and a JSON file that is one array.

    Args:
        path: A format (`json`, `parquet`, `csv`, `arrow`, or `text` for lines), a dataset folder, or a hub id.
        name: The configuration of a dataset that has several.
        splits: The split or splits to read, in this order.
        files: Paths or globs, if `path` is a format; by split if there are several. The files may be compressed.
        text: The field with the text; `a.b` is a field inside another. Rows where it is null or empty are left out.
        revision: A branch, tag or commit of the hub. A preparation reads the commit that it saw first, to the end.
        skip_missing: Leave out rows without the field, and report their number. Otherwise such a row is an error.

    Raises:
        ValueError: the `datasets` library is missing, or the arguments do not fit together.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        splits: str | list[str] = "train",
        files: str | list[str] | dict[str, str | list[str]] | None = None,
        text: str = "text",
        revision: str | None = None,
        skip_missing: bool = False,
    ) -> None:
        if not is_installed("datasets"):
            raise ValueError("prepare.source: needs the datasets package; pip install 'lmtrain[data]'")
        self.path, self.name, self.field, self.revision = path, name, text, revision
        self.skip_missing = skip_missing
        self.splits = [splits] if isinstance(splits, str) else splits
        self.files = None if files is None else _by_split(files, self.splits)
        self.is_local = path in FORMATS or Path(path).expanduser().is_dir()
        self._check()
        self.stamps: dict[str, Stamp] = {}
        self._commit: str | None = None
        self._dataset: Dataset | None = None

    def _check(self) -> None:
        key = f"prepare.source.path={self.path}"
        if self.path in FORMATS and self.files is None:
            raise ValueError(f"{key}: needs prepare.source.files, the files to read")
        if self.path in FORMATS and self.name is not None:
            raise ValueError(f"prepare.source.name={self.name}: files have no configurations; leave it null")
        if self.is_local and self.revision is not None:
            raise ValueError(f"prepare.source.revision={self.revision}: local files have no revisions; leave it null")
        if self.is_local:
            return
        if Path(self.path).expanduser().is_file():
            raise ValueError(
                f"{key}: is a file; set path to its format ({', '.join(FORMATS)}), and prepare.source.files to the file"
            )
        if self.path.startswith(("/", ".", "~")):
            raise ValueError(f"{key}: no such folder in {Path.cwd()}")
        if nearest := difflib.get_close_matches(self.path, FORMATS, 1, cutoff=0.8):
            raise ValueError(f"{key}: not a format; did you mean {nearest[0]!r}?")

    def scan(self, advance: Advance) -> Inputs:
        dataset = self.open()
        if dataset.commit is not None:
            for split, files in dataset.files.items():  # the first rows show a wrong field at once
                next(dataset.batches(split, next(iter(files))), None)
            return {self.path: {"commit": dataset.commit}}
        inputs: Inputs = {}
        for split, files in dataset.files.items():
            others = other_names(self.files[split]) if self.files and self.path in FORMATS else {}
            for name, path in files.items():
                try:
                    inputs[name] = self._scan_file(dataset, split, name, Path(path), advance)
                except OSError as error:
                    raise ValueError(f"{name}: {error.strerror or error}") from error
                if name in others:
                    inputs[name]["other_names"] = others[name]
        if not self.text_bytes(inputs):
            raise ValueError(f"prepare.source.text={self.field}: no text in {first_few(inputs)}")
        return inputs

    def _scan_file(self, dataset: Dataset, split: str, name: str, path: Path, advance: Advance) -> Scanned:
        self.stamps[name] = size, mtime_ns = stamp_of(path)
        sha256 = input_sha256(path)
        check_zstandard(name, path)
        rows = empty = text_bytes = 0
        missing_before = dataset.missing_rows
        for _, count, texts in dataset.batches(split, name):
            read = sum(utf8_bytes(text) for text in texts if text)
            rows, empty, text_bytes = rows + count, empty + sum(not text for text in texts), text_bytes + read
            advance(read)
        check_unchanged(name, path, self.stamps)
        missing = dataset.missing_rows - missing_before
        counted = {"text_bytes": text_bytes, "rows": rows, "empty_rows": empty - missing}
        if missing:
            counted["missing_rows"] = missing
        return {"bytes": size, "mtime_ns": mtime_ns, "sha256": sha256, **counted}

    def text_bytes(self, inputs: Inputs) -> int | None:
        # None for the hub: its own information counts the Arrow bytes of all columns, not the bytes of the text.
        if any("text_bytes" not in scanned for scanned in inputs.values()):
            return None
        return sum(int(scanned["text_bytes"]) for scanned in inputs.values())

    def changes(self, inputs: Inputs) -> list[str]:
        then = inputs.get(self.path, {}).get("commit")
        if then is None:
            return input_changes(inputs, self._paths(), self.stamps)
        try:
            self._commit = self._resolve()
        except OSError:  # the hub can't be reached, so no change is known
            self._commit = str(then)
        return [] if self._commit == then else [f"{self.path}: commit {then} → {self._commit}"]

    def _paths(self) -> dict[str, Path]:
        """Return the present files; an empty dictionary if there are none."""
        try:
            # The files of a format are found without the library, because importing it takes seconds.
            files = self._matching() if self.path in FORMATS else self._opened(None).files
        except (ValueError, OSError):
            return {}
        return {name: Path(file) for found in files.values() for name, file in found.items()}

    def read(self, position: Any = None, *, part_bytes: int = PART_BYTES) -> "RowReader":
        return RowReader(self, position, part_bytes)

    def open(self, commit: str | None = None) -> Dataset:
        """Return the dataset; a hub dataset at `commit`, or at the commit that was seen first."""
        if not self.is_local:
            self._commit = commit or self._commit or self._resolve()
        if self._dataset is None or self._dataset.commit != self._commit:
            self._dataset = self._opened(self._commit)
        return self._dataset

    def _opened(self, commit: str | None) -> Dataset:
        if self.path in FORMATS:
            return open_files(self.path, self._matching(), self.field, self.skip_missing)
        return open_dataset(
            self.path, self.name, self.splits, self.files, self.field, commit, skip_missing=self.skip_missing
        )

    def _matching(self) -> dict[str, dict[str, str]]:
        assert self.files is not None
        return {
            split: {name: str(path.absolute()) for name, path in matching_files(self.files[split]).items()}
            for split in self.splits
        }

    def _resolve(self) -> str:
        if self.revision is not None and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        return commit_of(self.path, self.revision)


@dataclass
class RowPosition:
    """The position at a row of a file, with `start` bytes of the row's text done."""

    split: str | None = None
    file: str | None = None
    before: int = 0  # rows of the split in earlier files
    row: int = 0
    start: int = 0
    commit: str | None = None


class RowReader(PositionedReader[RowPosition]):
    """Reads the rows of the source's splits; each row with text is a document."""

    def __init__(self, source: HuggingFace, position: Any, part_bytes: int) -> None:
        self.source, self.part_bytes = source, part_bytes
        super().__init__(RowPosition(**(position or {})))

    def _read(self) -> Iterator[Document]:
        dataset = self.source.open(self._at.commit)
        self._at.commit = dataset.commit
        splits = self.source.splits
        for split in splits[0 if self._at.split is None else splits.index(self._at.split) :]:
            if split != self._at.split:
                self._at.split, self._at.file, self._at.before = split, None, 0
            files = dataset.files[split]
            names = list(files)
            if self._at.file is not None and self._at.file not in files:
                raise ValueError(f"{self._at.file}: was removed since the preparation began; prepare again")
            before = self._at.before
            for name in names[0 if self._at.file is None else names.index(self._at.file) :]:
                if name != self._at.file:
                    self._at.file, self._at.before, self._at.row = name, before, 0
                if self.source.is_local:
                    check_unchanged(name, Path(files[name]), self.source.stamps)
                for first, count, texts in dataset.batches(split, name, self._at.row):
                    before += count
                    for row, text in enumerate(texts, first):
                        if text:
                            yield from self._of_row(row, text)
                if self.source.is_local:
                    check_unchanged(name, Path(files[name]), self.source.stamps)

    def _of_row(self, row: int, text: str) -> Iterator[Document]:
        name = f"{self._at.split}:{self._at.before + row}"
        for document, after in text_parts(name, text, self._at.start, self.part_bytes):
            self._at.row, self._at.start = (row + 1, 0) if document.last else (row, after)
            yield document


def _by_split(files: str | list[str] | dict[str, str | list[str]], splits: list[str]) -> dict[str, list[str]]:
    if not isinstance(files, dict):
        if len(splits) != 1:
            raise ValueError(f"prepare.source.splits={', '.join(splits)}: give files by split, {{{splits[0]}: …}}")
        files = {splits[0]: files}
    if missing := [split for split in splits if split not in files]:
        raise ValueError(f"prepare.source.splits={missing[0]}: prepare.source.files has {', '.join(files)}")
    return {split: [found] if isinstance(found, str) else found for split, found in files.items()}

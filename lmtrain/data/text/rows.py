"""Streams the rows of datasets with the `datasets` library, file by file, and extracts the text of each row."""

import codecs
import copy
import importlib
import json
import locale
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FORMATS = ("json", "parquet", "csv", "text", "arrow")
BATCH_ROWS = 64  # rows turned into Python strings at once
ALL_COLUMNS = {"columns": None, "usecols": None, "features": None}  # options that read all columns
READ_ROWS = 1024  # Parquet rows read at once; the default, the size of the first row group, fails if that is 0
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
BLOCK_BYTES = 1 << 20  # bytes of lines in memory at once; the library's default of 10 MB is three times slower
MISTAKES = {  # errors of the hub that are the user's mistake
    "DataFilesNotFoundError",
    "DatasetNotFoundError",
    "EmptyDatasetError",
    "GatedRepoError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
}


class NoFieldError(ValueError):
    """Raised if a row, or a whole file, lacks the field with the text."""


FilesBySplit = dict[str, dict[str, str]]  # by split and name: the path or address that the library opens


class Dataset:
    """The files of a dataset, and the texts in one field of their rows.

    A position is a row of a file, which any version of the library can find again. Its own `state_dict` is not faster,
    because continuing from it also reads the file from its start.

    JSON Lines are parsed here. The library's JSON reader takes the types of all fields from the first 10 MB. If a later
    value has another type, it fails or silently changes texts: a number among texts makes it quote the others.

    With `skip_missing`, a row without the field has no text and is counted in `missing_rows`. Otherwise it is an error.
    """

    def __init__(
        self,
        builder: Any,
        lines: Any,
        files: FilesBySplit,
        field: str,
        commit: str | None = None,
        skip_missing: bool = False,
    ) -> None:
        self.builder, self.lines, self.files, self.field, self.commit = builder, lines, files, field, commit
        self.skip_missing = skip_missing
        self.missing_rows = 0  # read so far
        for by_line in (builder, lines) if builder.name == "text" else (lines,):
            _set(by_line, encoding="utf-8-sig", chunksize=BLOCK_BYTES)
        if builder.name == "json":  # for files that consist of one array
            _set(builder, on_mixed_types=None, parse_agent_traces=False)
        if builder.name == "csv":
            _set(builder, keep_default_na=False, na_filter=False, chunksize=1000)  # "NA" is text
        if builder.name == "parquet":
            _set(builder, batch_size=READ_ROWS)
        if "." in field:  # a column with a dot in its name, or a nested field: only the columns show which
            return
        if builder.name == "csv":
            text = library("datasets").Value("string")  # even if all values look like numbers
            _set(builder, usecols=[field], features=library("datasets").Features({field: text}))
        if builder.name == "parquet":
            _set(builder, columns=[field])
        if builder.name == "parquet" and commit is None:  # read in blocks; over a network, whole columns are faster
            options = {"pre_buffer": False, "use_buffered_stream": True, "buffer_size": BLOCK_BYTES}
            _set(builder, fragment_scan_options=library("pyarrow.dataset").ParquetFragmentScanOptions(**options))

    def batches(self, split: str, name: str, skip: int = 0) -> Iterator[tuple[int, int, list[str | None]]]:
        """Yield the rows of a file in batches: number of the first row, count of rows, texts (none before row `skip`).

        Raises:
            ValueError: a row has no text, or the file can't be read.
            OSError: the hub or the disk does not answer.
        """
        tables, texts = self._tables_and_texts(split, name)
        row = 0
        for table in tables:
            skipped = min(max(skip - row, 0), table.num_rows)
            if skipped:
                yield row, skipped, []
            if skipped < table.num_rows:
                yield row + skipped, table.num_rows - skipped, texts(name, row + skipped, table.slice(skipped))
            row += table.num_rows

    def _tables_and_texts(
        self, split: str, name: str
    ) -> tuple[Iterator[Any], Callable[[str, int, Any], list[str | None]]]:
        if self.builder.name == "json":
            tables = self._tables(self.lines, split, name)
            first = next(tables, None)
            lines = [] if first is None else first.column("text").to_pylist()
            if not next((line for line in lines if line.strip()), "").lstrip().startswith("["):
                return chain([] if first is None else [first], tables), self._of_lines
        return self._tables(self.builder, split, name), self._of_columns

    def _tables(self, builder: Any, split: str, name: str) -> Iterator[Any]:
        if builder.name == "csv" and self.commit is None and not Path(self.files[split][name]).stat().st_size:
            return  # an empty file has no header
        try:
            yield from self._stream(builder, split, name).with_format("arrow").iter(BATCH_ROWS)
        except Exception as error:  # from any library that opens, unpacks or parses the file
            if self.commit is None and isinstance(error, OSError) and error.errno is not None:
                raise
            if self.commit is not None and not isinstance(error, ValueError):
                raise OSError(f"{name}: the download from the hub broke off ({one_line(error)})") from error
            try:
                self._check_column(split, name)
            except NoFieldError:
                if not self.skip_missing:
                    raise
                yield from self._stream(builder, split, name, **ALL_COLUMNS).with_format("arrow").iter(BATCH_ROWS)
                return
            hint = "; rename it, as the library misreads [ ] and :: in names" if re.search(r"\[|\]|::", name) else ""
            raise ValueError(f"{name}: can't be read as {self.builder.name} ({one_line(error)}){hint}") from error

    def _stream(self, builder: Any, split: str, name: str, **options: Any) -> Any:
        encoding = locale.getpreferredencoding(False)
        by_fsspec = self.commit is not None or Path(name).suffix in COMPRESSED
        if builder.name == "text" and by_fsspec and codecs.lookup(encoding).name != "utf-8":
            raise ValueError(f"the datasets library would use the locale's encoding, {encoding}; set PYTHONUTF8=1")
        data_files = library("datasets.data_files")
        copied = object.__new__(type(builder))  # copy.copy would share the attributes, which reading changes
        copied.__dict__ |= builder.__dict__ | {"config": copy.copy(builder.config), "info": copy.copy(builder.info)}
        file = data_files.DataFilesList([self.files[split][name]], [()])
        _set(copied, data_files=data_files.DataFilesDict({split: file}), **options)
        return copied.as_streaming_dataset(split)

    def _check_column(self, split: str, name: str) -> None:
        """Raise NoFieldError if a file can't be read because it lacks the column."""
        try:
            stream = self._stream(self.builder, split, name, **ALL_COLUMNS)
            columns = next(stream.with_format("arrow").iter(1)).column_names
        except Exception:  # the file can't be read for another reason
            return
        if self.field.split(".")[0] not in columns:
            raise NoFieldError(f"{name} {_no_field(self.field, columns)}")

    def _of_columns(self, name: str, first: int, table: Any) -> list[str | None]:
        column = self.field if self.field in table.column_names else self.field.split(".")[0]
        if column not in table.column_names and self.skip_missing:
            self.missing_rows += table.num_rows
            return [None] * int(table.num_rows)
        if column not in table.column_names:
            raise NoFieldError(f"{name} {_no_field(column, table.column_names)}")
        values = table.column(column).to_pylist()
        return self._each(values, lambda value: self._text({column: value}), f"{name}, row", first)

    def _of_lines(self, name: str, first: int, table: Any) -> list[str | None]:
        return self._each(table.column("text").to_pylist(), self._of_line, f"{name}, line", first + 1)

    def _each(
        self, values: Iterable[Any], text: Callable[[Any], str | None], where: str, first: int
    ) -> list[str | None]:
        texts: list[str | None] = []
        for value in values:
            try:
                texts.append(text(value))
            except NoFieldError as error:
                if not self.skip_missing:
                    raise ValueError(f"{where} {first + len(texts)} {error}") from error
                self.missing_rows += 1
                texts.append(None)
            except ValueError as error:
                raise ValueError(f"{where} {first + len(texts)} {error}") from error
        return texts

    def _of_line(self, line: str) -> str | None:
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON ({error}); each line must be an object") from error
        text = self._text(row)
        if text is not None and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"has half a character ({text[error.start]!a}) in {self.field}") from error
        return text

    def _text(self, row: Any) -> str | None:
        value = row
        for field in [self.field] if isinstance(row, dict) and self.field in row else self.field.split("."):
            if value is None:
                return None
            if not isinstance(value, dict):
                raise ValueError(f"has the type {type(value).__name__}, not an object with the field {field!r}")
            if field not in value:
                raise NoFieldError(_no_field(field, value))
            value = value[field]
        if value is None or isinstance(value, str):
            return value
        raise ValueError(f"has the type {type(value).__name__} in {self.field}, not text")


def _no_field(field: str, there: Iterable[Any]) -> str:
    return (
        f"has no field {field!r} (prepare.source.text), only {', '.join(map(str, there))}; "
        "prepare.source.skip_missing=true skips such rows"
    )


def open_files(kind: str, files: FilesBySplit, field: str, skip_missing: bool) -> Dataset:
    """Return local files as a dataset."""
    with TemporaryDirectory() as cache:
        return Dataset(_builder(kind, cache), _builder("text", cache), files, field, skip_missing=skip_missing)


def open_dataset(
    path: str,
    name: str | None,
    splits: list[str],
    patterns: dict[str, list[str]] | None,
    field: str,
    commit: str | None,
    skip_missing: bool,
) -> Dataset:
    """Return the dataset in a folder, or, with a commit, a dataset of the hub.

    Raises:
        ValueError: it has no such configuration, split or files, or its format can't be read.
        OSError: the hub does not answer.
    """
    key = f"prepare.source.path={path}"
    place = path if commit else Path(path).expanduser().absolute().as_posix()
    with TemporaryDirectory() as cache:
        try:
            builder = library("datasets").load_dataset_builder(
                place, name, data_files=patterns, revision=commit, cache_dir=cache
            )
        except Exception as error:
            raise _failed(key, error, commit is not None) from error
        if builder.name not in FORMATS:
            raise ValueError(f"{key}: has the format {builder.name}, but only {', '.join(FORMATS)} can be read")
        available = builder.config.data_files
        if missing := [split for split in splits if split not in available]:
            raise ValueError(f"prepare.source.splits={missing[0]}: {path} has only {', '.join(map(str, available))}")
        within = f"hf://datasets/{path}@{commit}/" if commit else f"{place}/"
        shown = "" if commit else f"{Path(path).as_posix()}/"
        files = {split: {shown + file.removeprefix(within): file for file in available[split]} for split in splits}
        return Dataset(builder, _builder("text", cache), files, field, commit, skip_missing)


def commit_of(path: str, revision: str | None) -> str:
    """Return the commit of a revision of a hub dataset.

    Raises:
        ValueError: there is no such dataset or revision.
        OSError: the hub does not answer.
    """
    try:
        return str(library("huggingface_hub").HfApi().dataset_info(path, revision=revision).sha)
    except Exception as error:
        raise _failed(f"prepare.source.path={path}: no such folder here, and the hub says", error, True) from error


def library(module: str) -> Any:
    """Return a module of `datasets` or of a library that it uses, with progress bars and logs turned off."""
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    importlib.import_module("huggingface_hub.utils.logging").set_verbosity(logging.CRITICAL)
    return importlib.import_module(module)


def _builder(kind: str, cache: str) -> Any:
    return getattr(library(f"datasets.packaged_modules.{kind}.{kind}"), kind.capitalize())(cache_dir=cache)


def _set(builder: Any, **options: Any) -> None:
    for key, value in options.items():
        if hasattr(builder.config, key):  # some formats and versions lack some options
            setattr(builder.config, key, value)


def _failed(what: str, error: Exception, on_hub: bool) -> ValueError | OSError:
    """Return a ValueError for a user's mistake, or an OSError for a hub that may answer later."""
    mistake = not on_hub or isinstance(error, ValueError) or type(error).__name__ in MISTAKES
    return (ValueError if mistake else OSError)(f"{what}: {one_line(error)}")


def one_line(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]} …"

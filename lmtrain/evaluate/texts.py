"""Reads text files and turns them into tokens, to measure a model on them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.data.writing.lost_text import LostTextMeter
from lmtrain.errors import DataError
from lmtrain.evaluate.token_losses import TokenStream
from lmtrain.files.limited import read_limited

MAX_BYTES = 4 << 30  # of a file
JSON_LINES = (".jsonl", ".ndjson")


def read_documents(path: Path, separator: str | None = None) -> list[str]:
    """Return the documents of a file of UTF-8 text; empty ones are left out.

    A file whose name ends in `.jsonl` has a JSON object with the key `text` in each line. Of any other file, the parts
    between the separators are documents; without a separator, the file is one.

    Raises:
        DataError: The file is not UTF-8 or has no text, or a line is not such an object.
        OSError: The file can't be read.
    """
    content = read_limited(path, MAX_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start:,})") from error
    if is_json_lines(path):
        documents = list(_texts_of_lines(path, text))
    else:
        documents = text.split(separator) if separator else [text]
    documents = [document for document in documents if document]
    if not documents:
        raise DataError(f"{path}: has no text")
    return documents


def is_json_lines(path: Path) -> bool:
    """Return whether a file has a JSON object in each line, by its name."""
    return path.suffix.lower() in JSON_LINES


def _texts_of_lines(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise DataError(f'{path}: line {number} is not a JSON object with a key "text"') from error
        if not isinstance(found, str):
            raise DataError(f"{path}: the text in line {number} is not a string")
        yield found


def text_stream(name: str, documents: Sequence[str], tokenizer: StoredTokenizer) -> TokenStream:
    """Return the tokens of documents: the end of text before the first one, and after each.

    So every token of the text is predicted, and the end of each document, too, as in training. A tokenizer without an
    end of text joins the documents, and the first token is not predicted.

    Raises:
        DataError: The text has characters that the tokenizer does not know.
    """
    try:
        encoded = tokenizer.encode_batch(documents)
        sizes = np.array([len(document.encode()) for document in documents], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    lost = LostTextMeter(tokenizer)(documents)
    kept_share = 1 - lost.lost_bytes / max(1, lost.checked_bytes)  # text without a token is not predicted
    text_bytes = kept_share * float(sizes.sum())
    end = tokenizer.end_of_text
    if end is not None:
        mark = np.array([end], dtype=np.uint32)
        marked = np.concatenate([mark, *(part for each in encoded for part in (each, mark))])
        return TokenStream(
            name,
            len(marked),
            lambda first, last: marked[first:last],
            end_of_text=end,
            bytes=text_bytes,
            document_bytes=None if lost.lost_bytes else sizes,
        )
    ids, lengths = np.concatenate(encoded), np.array([len(each) for each in encoded])
    if len(ids):
        sizes[0] -= len(tokenizer.decode([int(ids[0])]).encode())  # the first token is not predicted
    return TokenStream(
        name,
        len(ids),
        lambda first, last: ids[first:last],
        starts=lengths.cumsum() - lengths,
        bytes=text_bytes,
        document_bytes=None if lost.lost_bytes or not lengths.all() else sizes[int(lengths[0] == 1) :],
    )

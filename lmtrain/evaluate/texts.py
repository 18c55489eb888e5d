"""Reads text files and turns them into tokens, to measure a model on them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lmtrain.data.stored_tokenizer import StoredTokenizer
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
    if path.suffix in JSON_LINES:
        documents = list(_texts_of_lines(path, text))
    else:
        documents = text.split(separator) if separator else [text]
    documents = [document for document in documents if document]
    if not documents:
        raise DataError(f"{path}: has no text")
    return documents


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
    end of text gives one document, whose first token is not predicted.

    Raises:
        DataError: The text has characters that the tokenizer does not know.
    """
    end = tokenizer.end_of_text
    sizes = [len(document.encode()) for document in documents]
    try:
        encoded = tokenizer.encode_batch(documents)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    if end is None:
        ids = np.concatenate(encoded)
        return TokenStream(name, len(ids), lambda first, last: ids[first:last], bytes=float(sum(sizes)))
    mark = np.array([end], dtype=np.uint32)
    marked = np.concatenate([mark, *(part for each in encoded for part in (each, mark))])
    return TokenStream(
        name,
        len(marked),
        lambda first, last: marked[first:last],
        end_of_text=end,
        bytes=float(sum(sizes)),
        document_bytes=np.array(sizes, dtype=np.float64),
    )

"""Where text comes from: each source yields documents, in an order that is the same everywhere."""

import glob
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """One text, and the name that tells it apart (it also decides its split)."""

    name: str
    text: str


class TextFiles:
    """Plain UTF-8 text files, one document each, sorted by path.

    Raises:
        ValueError: no file matches, or one is not UTF-8.
    """

    def __init__(self, files: str | list[str]) -> None:
        self.patterns = [files] if isinstance(files, str) else files

    def __iter__(self) -> Iterator[Document]:
        found = {
            Path(name)
            for pattern in self.patterns
            for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)
        }
        paths = sorted(path for path in found if path.is_file())
        if not paths:
            raise ValueError(f"prepare.source.files={', '.join(self.patterns)}: no such file in {Path.cwd()}")
        for path in paths:
            try:
                # Not read_text, which would turn \r\n into \n.
                yield Document(path.as_posix(), path.read_bytes().decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 text (byte {error.start:,}: {error.reason})") from error


class StandardLibrary:
    """The source of the running interpreter's standard library: real text that every machine has.

    Tests and installed packages are left out; so are the few bytes that are not UTF-8.
    """

    EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"})

    def __iter__(self) -> Iterator[Document]:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root)
            if self.EXCLUDED.isdisjoint(name.parts):
                text = path.read_bytes().decode("utf-8", errors="ignore")
                if text.strip():
                    yield Document(name.as_posix(), text)

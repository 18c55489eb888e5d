"""The kinds of files that a comparison can be written to. What makes them is imported only when it is needed."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # with scipy
    from lmtrain.comparison.run_comparison import RunComparison

# The module and function that make the file's text or bytes.
OUTPUTS: Mapping[str, tuple[str, str]] = {
    "csv": ("lmtrain.comparison.output.text_files", "as_csv"),
    "json": ("lmtrain.comparison.output.text_files", "as_json"),
    "markdown": ("lmtrain.comparison.output.text_files", "as_markdown"),
    "html": ("lmtrain.comparison.output.page", "as_html"),
    "png": ("lmtrain.comparison.output.picture", "as_png"),
    "pdf": ("lmtrain.comparison.output.picture", "as_pdf"),
    "svg": ("lmtrain.comparison.output.picture", "as_svg"),
}
# Suffixes accepted besides the kind's own name. With any other suffix, the wrong program would open the file.
SUFFIXES = {"csv": {"txt"}, "json": {"txt"}, "markdown": {"md", "txt"}, "html": {"htm"}}
NEEDED = {"html": "plotly", **dict.fromkeys(("png", "pdf", "svg"), "matplotlib")}


def output_bytes(kind: str, comparison: "RunComparison") -> bytes:
    """Return the content of an output file; `kind` is a key of `OUTPUTS`."""
    module, name = OUTPUTS[kind]
    content: str | bytes = getattr(importlib.import_module(module), name)(comparison)
    return content.encode() if isinstance(content, str) else content

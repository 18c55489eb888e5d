"""Puts generated Markdown into pages: a block such as `{config-keys} trainer` becomes what it names.

A page is expanded before it is parsed, so that headings and links of the generated text work like those of the page.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import api_reference
import command_reference
import config_reference
import studies
from myst_parser.slugs import github_slugify
from sphinx.application import Sphinx

GENERATORS: Mapping[str, Callable[..., str]] = {
    "command-help": command_reference.command_help,
    "config-choices": config_reference.config_choices,
    "config-keys": config_reference.config_keys,
    "config-root": config_reference.root_keys,
    "config-hydra": config_reference.hydra_keys,
    "config-experiments": config_reference.experiment_table,
    "python-api": api_reference.python_api,
    "python-object": api_reference.python_object,
    "study": studies.study,
}
BLOCK = re.compile(rf"^```\{{({'|'.join(GENERATORS)})\}}(?: (.*))?\n```$", re.MULTILINE)
CONFIG_KEY = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+")


def expand(text: str, generators: Mapping[str, Callable[..., str]] = GENERATORS) -> str:
    """Return a page's text with generated Markdown in place of the blocks that ask for it."""
    return BLOCK.sub(lambda block: generators[block[1]](*([block[2]] if block[2] else [])), text)


def slug(title: str) -> str:
    """Return the anchor of a heading: GitHub's, or the config key that the heading is, with its dots."""
    return title if CONFIG_KEY.fullmatch(title) else github_slugify(title)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension to the build."""
    app.connect("source-read", _expand_page)
    app.connect("env-get-outdated", _pages_with_blocks)
    app.connect("autodoc-process-signature", api_reference.readable_signature)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _expand_page(app: Sphinx, page: str, content: list[str]) -> None:
    blocks = BLOCK.finditer(content[0])
    command_reference.print_all([block[2] or "" for block in blocks if block[1] == "command-help"])
    content[0] = expand(content[0])


def _pages_with_blocks(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Return the pages that are read anew in every build, as what they are made of may have changed."""
    return [page for page in env.found_docs if BLOCK.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]

"""Every relative link of the documentation and the READMEs leads to a file that is there, and to a heading in it."""

import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from generated_markdown import GENERATORS, expand, slug
from markdown_it import MarkdownIt
from markdown_it.token import Token
from myst_parser.slugs import unique_slug
from support.documentation import DOCS, ROOT

PAGES = [
    *(page for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (page := ROOT / name).is_file()),
    *sorted((ROOT / "experiments").rglob("*.md")),
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
]
QUICK = GENERATORS | {"command-help": lambda command="": ""}  # help has no links, and takes its time


@cache
def tokens_of(page: Path) -> list[Token]:
    text = page.read_text(encoding="utf-8")
    return MarkdownIt().enable("table").parse(expand(text, QUICK) if page.is_relative_to(DOCS) else text)


def links_of(page: Path) -> Iterator[str]:
    for token in tokens_of(page):
        for part in token.children or ():
            if target := part.attrGet("href") or part.attrGet("src"):
                yield str(target)


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, and those that it sets itself, `(name)=`."""
    found: set[str] = set()
    for heading, inline in itertools.pairwise(tokens_of(page)):
        if heading.type == "heading_open":
            title = "".join(part.content for part in inline.children or () if part.type in ("text", "code_inline"))
            found.add(unique_slug(slug(title), found))
    return frozenset(found | set(re.findall(r"^\((\S+)\)=$", page.read_text(encoding="utf-8"), re.MULTILINE)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links_of(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors_of(target)):
            broken.append(f"{link}: no such heading; there are {', '.join(sorted(anchors_of(target)))}")
    assert broken == []


def test_the_check_finds_a_broken_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `trainer.max_steps` thing\n\n## `trainer.max_steps`\n\n[a](b.md) `[c](d.md)`\n", encoding="utf-8"
    )
    assert list(links_of(page)) == ["b.md"]
    assert anchors_of(page) == {"a-trainermax_steps-thing", "trainer.max_steps"}

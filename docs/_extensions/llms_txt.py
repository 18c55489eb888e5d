"""Writes the site for programs that read Markdown: each page as PAGE.md, all as llms-full.txt, their list as llms.txt.

See https://llmstxt.org. The pages are the sources of the site with everything generated in place.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import api_reference
from docutils import nodes
from generated_markdown import GENERATORS, expand
from sphinx.application import Sphinx

# Where a page has Sphinx document an object, its text has the docstrings themselves.
AS_TEXT = GENERATORS | {"python-api": api_reference.api_as_text, "python-object": api_reference.object_as_text}
TOCTREE = re.compile(r"^```\{toctree\}\n.*?^```\n?", re.MULTILINE | re.DOTALL)
CARD = re.compile(r"^:::\{grid-item-card\} (.+)\n:link: (.+)\n:link-type: doc\n\n((?:.+\n)+):::\n", re.MULTILINE)
GRID = re.compile(r"^:::+.*\n(?::\w+: .*\n)*", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension to the build."""
    app.connect("build-finished", _write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    pages = list(in_reading_order(app.env.toctree_includes, app.config.root_doc))
    out, texts = Path(app.outdir), {}
    for page in pages:
        texts[page] = as_markdown(Path(app.env.doc2path(page)).read_text(encoding="utf-8"))
        (out / f"{page}.md").write_text(texts[page], encoding="utf-8")
    summaries = {page: first_paragraph(app.env.get_doctree(page)) for page in pages}
    titles = {page: text.partition("\n")[0].removeprefix("# ") for page, text in texts.items()}
    (out / "llms.txt").write_text(overview(pages, titles, summaries), encoding="utf-8")
    full = "\n\n---\n\n".join(f"<!-- {page}.md -->\n\n{text.strip()}" for page, text in texts.items())
    (out / "llms-full.txt").write_text(f"{full}\n", encoding="utf-8")


def in_reading_order(children: Mapping[str, Sequence[str]], page: str) -> Iterator[str]:
    """Yield a page and all pages below it, in the order of the toctrees."""
    yield page
    for child in children.get(page, ()):
        yield from in_reading_order(children, child)


def as_markdown(source: str) -> str:
    """Return a page's source as plain Markdown: generated texts in place, no list of pages, cards as list items."""
    text = TOCTREE.sub("", expand(source, AS_TEXT))
    text = CARD.sub(lambda card: f"- [{card[1]}]({card[2]}.md): {card[3].strip()}\n", text)
    return re.sub(r"\n{3,}", "\n\n", GRID.sub("", text))


def first_paragraph(page: nodes.document) -> str:
    """Return the first paragraph of a page, as plain text in one line."""
    paragraph = next(page.findall(nodes.paragraph), None)
    return " ".join(paragraph.astext().split()) if paragraph is not None else ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, without a colon at its end."""
    return re.split(r"(?<=[.!?:]) (?=[A-Z])", text)[0].rstrip(":")


def overview(pages: Sequence[str], titles: Mapping[str, str], summaries: Mapping[str, str]) -> str:
    """Return llms.txt: what the project is, then each section with its pages and the first sentence of each."""
    root, *others = pages
    lines = [
        f"# {titles[root]}",
        "",
        f"> {summaries[root]}",
        "",
        "All pages in one file: [llms-full.txt](llms-full.txt)",
    ]
    for page in others:
        if page.endswith("/index") and page.count("/") == 1:
            lines += ["", f"## {titles[page]}", ""]
        lines.append(f"- [{titles[page]}]({page}.md): {first_sentence(summaries[page])}".removesuffix(": "))
    return "\n".join(lines) + "\n"

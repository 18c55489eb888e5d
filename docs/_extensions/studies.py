"""Makes a page of the site from the README of a study, whose one source stays beside its results in `experiments/`."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "experiments"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?\)")


def study(name: str) -> str:
    """Return the text of a study as a page of `docs/studies`: its links lead from there to the same places."""
    folder = STUDIES / name
    text = (folder / "README.md").read_text(encoding="utf-8")

    def moved(link: re.Match[str]) -> str:
        before, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target:
            return link[0]
        path = Path(os.path.normpath(folder / target))
        if path.name == "README.md" and path.parent.parent == STUDIES:
            return f"{before}{path.parent.name}.md{anchor})"
        return f"{before}{os.path.relpath(path, ROOT / 'docs' / 'studies')}{anchor})"

    return LINK.sub(moved, text)

"""Writes a comparison as one HTML file that needs no network: it contains plotly.js, the data and the script."""

import base64
import hashlib
import html
import time
from importlib.resources import files

from plotly.offline import get_plotlyjs

from lmtrain.comparison.output.page_data import as_script, page_data
from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.terminal.units import counted

SCRIPTS = ("data.js", "curves.js", "table.js", "settings.js", "main.js")  # joined into one script, in this order


def as_html(comparison: RunComparison) -> str:
    """Return the page.

    The texts of runs may be hostile, so the page contains them only as JSON data. Its content security policy allows
    no script but the page's two, and no network access.
    """
    folder = files("lmtrain.comparison.output") / "web"
    plotly = get_plotlyjs()
    script = "\n".join(
        ["(() => {", '"use strict";', *((folder / name).read_text("utf-8") for name in SCRIPTS), "})();"]
    )
    parts = {
        "POLICY": f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(f"{counted(len(comparison.runs), 'run')} compared"),
        "WRITTEN": html.escape(time.strftime("%Y-%m-%d %H:%M")),
        "STYLE": (folder / "page.css").read_text("utf-8"),
        "DATA": as_script(page_data(comparison)),
        "PLOTLY": plotly,
        "SCRIPT": script,
    }
    # The template is split before it is filled in, because a part may contain the placeholder of another.
    pieces = (folder / "page.html").read_text("utf-8").split("@@")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

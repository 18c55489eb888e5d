"""Settings of the documentation site: `python -m sphinx -W -n -q -b html docs docs/_build/html`."""

import sys
from pathlib import Path

from lmtrain import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "lmtrain"
author = "the authors of lmtrain"
project_copyright = author
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "generated_markdown",
    "llms_txt",
    "mathml",
]
exclude_patterns = ["_build", "_extensions", "skills", "**/*.ipynb"]
nitpicky = True
# Annotations name torch, NumPy and parts of lmtrain that have no page; links to them need another site, or none.
nitpick_ignore_regex = [(r"py:.*", r".*")]
default_role = "code"  # in docstrings, `this` is code, as in Markdown

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "lmtrain"
html_math_renderer = "mathml"
html_copy_source = False  # PAGE.md has more: what is generated, too
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_heading_slug_func = "generated_markdown.slug"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

"""Settings of the documentation site: `sphinx-build -W -b html docs docs/_build/html`."""

from lmtrain import __version__

project = "lmtrain"
copyright = "the authors of lmtrain"
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_llms_txt",
]
html_theme = "furo"
html_title = "lmtrain"
exclude_patterns = ["_build"]
nitpicky = True
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

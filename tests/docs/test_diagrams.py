"""The diagrams show what the package has."""

import re

from support.documentation import DOCS, ROOT


def test_the_layers_have_every_folder_and_file_of_the_package() -> None:
    picture = (DOCS / "images" / "layers.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r">(\w+(?:/|\.py))<", picture))
    package = (ROOT / "lmtrain").iterdir()
    there = {f"{path.name}/" if path.is_dir() else path.name for path in package if path.suffix in ("", ".py")}
    assert there - {"__init__.py", "__pycache__/"} == shown

"""The tutorial notebook runs from its first cell to its last, in a kernel of its own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command_line import clean_environment

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "notebook.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")


@pytest.mark.slow
def test_the_tutorial_notebook_runs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    notebook = nbformat.read(PAGE, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=clean_environment() | {"PYTHONIOENCODING": "utf-8"})
    assert "unknown key; optimizer has lr" in shown(notebook, "compose(quick)", "text")
    assert "<svg" in shown(notebook, "run", "text/html")
    assert "val/loss" in shown(notebook, "run.frame()", "text/html")
    compared = shown(notebook, "compare(", "text/html")
    assert "<svg" in compared
    assert "lr=0.003 is better than lr=0.0003" in compared
    assert shown(notebook, "verdict = ", "text").startswith("better difference -0.")
    assert shown(notebook, "load_run(", "text").startswith("import ")
    assert len(list((tmp_path / "outputs" / "rates").iterdir())) == 6
    if request.config.getoption("--renew-docs"):
        for number, cell in enumerate(notebook.cells, 1):
            cell["id"] = f"cell-{number}"
            cell.get("metadata", {}).pop("execution", None)  # times of the cells
        written = tmp_path / "renewed.ipynb"
        nbformat.write(notebook, written)
        shutil.copyfile(written, PAGE)


def shown(notebook: Any, code: str, kind: str) -> str:
    """Return what a cell shows: of a kind such as `text/html`, or as `text` what it prints.

    It is the cell whose code is `code`; without one, the first whose code contains that.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source]
    cell = next((cell for cell in cells if cell.source == code), cells[0])
    return "".join(
        output.get("text", "") if kind == "text" else output.get("data", {}).get(kind, "") for output in cell.outputs
    )

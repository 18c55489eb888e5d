"""Pictures draw a trunk, its branches and their replicates in one colour, and join their curves."""

from pathlib import Path

import pytest
from support.browser import Page, start
from support.synthetic_families import write_branch, write_trunk, write_two_families

from lmtrain.comparison.output.family_names import family_names
from lmtrain.comparison.output.page import as_html
from lmtrain.comparison.output.picture import draw_figure, mean_curves
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs


def test_seeds_share_the_name_of_their_family(tmp_path: Path) -> None:
    comparison = compare(load_runs([write_two_families(tmp_path)]))
    found = family_names(comparison)
    assert found.names == ["lr=0.003", "lr=0.01"]
    of_runs = {(run.path.name.partition("-")[0], of) for run, of in zip(comparison.runs, found.number, strict=True)}
    assert of_runs == {("low", 0), ("more", 1)}


def test_one_family_is_called_trunk(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_branch(write_trunk(tmp_path / f"{seed}", seed), 100, 3.0)
    assert family_names(compare(load_runs([tmp_path]))).names == ["trunk"]


def test_a_figure_has_a_colour_per_family_and_dashed_branches(tmp_path: Path) -> None:
    curves = mean_curves(compare(load_runs([write_two_families(tmp_path)])))
    (axes,) = draw_figure(curves, "val/loss").axes
    means = {line for line in axes.lines if not str(line.get_label()).startswith("_")}
    looks = {(str(line.get_label()), line.get_color(), line.get_linestyle()) for line in means}
    blue, orange = "#0072b2", "#d55e00"
    assert looks == {
        ("lr=0.003", blue, "-"),
        ("lr=0.003, decayed", blue, "--"),
        ("lr=0.01", orange, "-"),
        ("lr=0.01, decayed", orange, "--"),
    }
    branches = [curve for curve in curves if curve.branch]
    assert [curve.x.tolist() for curve in branches] == [[100, 150], [200, 250]] * 2


@pytest.mark.slow
def test_a_page_has_the_colours_and_the_order_of_families(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(as_html(compare(load_runs([write_two_families(tmp_path / "runs")]))), encoding="utf-8")
    browser = start(tmp_path / "profile")
    try:
        page = Page(browser, file)
        curves = page.curves()
        trunk, first, second, other = (curves[f"run{number}"]["line"] for number in (0, 1, 2, 6))
        assert trunk["color"] == first["color"] == second["color"] != other["color"]
        assert (trunk["dash"], first["dash"], second["dash"], other["dash"]) == ("solid", "dash", "dash", "solid")
        assert [curves[f"run{number}"]["x"] for number in (1, 2)] == [[100, 150], [200, 250]]
        page.choose("x", "tokens")
        assert page.curves()["run1"]["x"][0] == pytest.approx(100 * 1024)
        assert "lr=0.003, decayed" in page.text("#legend")
        mark = "return getComputedStyle(document.querySelectorAll('#runs tbody th')[arguments[0]], '::before').content"
        assert [page.run(mark, place) for place in (0, 1, 2, 3)] == ["none", '"└ "', '"└ "', "none"]
        page.click("#runs thead th:nth-child(2) button")
        assert page.run(mark, 1) == "none"
        assert page.complaints() == []
    finally:
        browser.quit()

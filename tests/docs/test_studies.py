"""A study's README as a page of the site."""

from studies import STUDIES, study
from support.documentation import DOCS


def test_links_and_pictures_lead_to_the_same_places() -> None:
    text = study("seed_noise")
    assert "](../../experiments/seed_noise/curves.png)" in text
    assert (DOCS / "studies" / "../../experiments/seed_noise/curves.png").resolve().is_file()


def test_every_study_is_a_page() -> None:
    studies = {path.parent.name for path in STUDIES.glob("*/README.md")}
    assert studies == {path.stem for path in (DOCS / "studies").glob("*.md")} - {"index"}
    index = (DOCS / "studies" / "index.md").read_text(encoding="utf-8")
    for name in studies:
        title = study(name).partition("\n")[0].removeprefix("# ")
        assert f"[{title}]({name}.md)" in index
        assert f"\n{name}\n" in index

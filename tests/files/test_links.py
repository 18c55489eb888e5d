"""Links that lead out of a folder are found; links inside it, and the user's own at its top level, are allowed."""

from pathlib import Path

import pytest

from lmtrain.files.links import refuse_links, stays_inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "run" / "inner").mkdir(parents=True)
    return tmp_path / "run"


def test_an_entry_that_is_a_link_is_refused_whatever_its_target(folder: Path) -> None:
    refuse_links(folder)
    (folder / "link").symlink_to("inner")
    with pytest.raises(ValueError, match=r"/run/link: a link"):
        refuse_links(folder)
    refuse_links(folder, ["inner", "another"])
    with pytest.raises(ValueError, match=r"/run/link: a link"):
        refuse_links(folder, ["link"])


@pytest.mark.parametrize("target", ["../../mine", "../..", "../../run-of-another", "/", "../inner/../../mine", "loop"])
def test_a_link_in_an_inner_folder_may_not_lead_out(folder: Path, target: str) -> None:
    (folder / "inner" / "loop").symlink_to("loop")
    (folder / "inner" / "to").symlink_to("../inner/here")
    (folder / "inner" / "gone").symlink_to("../nowhere")
    refuse_links(folder, below=["inner", "nothing", "inner/to"])
    if target != "loop":  # it leads nowhere
        (folder / "inner" / "out").symlink_to(target)
        with pytest.raises(ValueError, match=r"/run/inner/out: a link that leads out of .*/run;"):
            refuse_links(folder, below=["inner"])


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("inner", True),
        ("inner/new/er", True),
        ("inner/../inner/x", True),
        (".", False),
        ("..", False),
        ("../run-of-another", False),
        ("../mine", False),
        ("inner/out/x", False),
        ("inner/../link/x", False),
        ("link/x", True),
        ("link", False),
        ("link/back/x", False),
        ("/x", False),
    ],
)
def test_stays_inside_follows_links(folder: Path, path: str, inside: bool) -> None:
    (folder / "inner" / "out").symlink_to("../../mine")
    (folder / "link").symlink_to("../mine")  # a direct entry, like `outputs` to a larger disk
    (folder.parent / "mine" / "back").symlink_to("..")
    assert stays_inside(Path(path), folder) is inside
    assert stays_inside(folder / path, folder) is inside

"""Globs match each real file once, also in folders with links that lead anywhere."""

import glob
import os
from pathlib import Path

import pytest

from lmtrain.data.text.inputs import remarks_on
from lmtrain.data.text.matching import matching_files, other_names
from lmtrain.data.text.source import TextFiles


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.txt", "**", "**/*.txt", "*/*", "a/**/*.txt", "a/**", "**/b/*", "**/b/**/c.txt", "./a/*.txt", "a/?.txt"),
        *("a/[x-z].txt", "a/[!x].txt", ".hidden/*", ".*/*", "**/.h.txt", "none/**", "a/x.txt", "a/../*.txt", "a//x*"),
    ],
)
def test_without_links_the_files_are_those_of_pythons_glob(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "x.txt", "a/x.txt", "a/y.txt", "a/b/c.txt", "a/b/b/c.txt", "a/.h.txt", ".hidden/x.txt", "B.txt")
    expected = sorted({Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()})
    found = list(matching_files([pattern]).values()) if expected else []
    assert found == expected
    if expected:
        absolute = matching_files([f"{tmp_path}/{pattern}"]).values()
        assert sorted(path.resolve() for path in absolute) == sorted(path.resolve() for path in found)


@pytest.mark.parametrize("loops", [1, 2, 9])
def test_a_file_in_a_loop_of_links_counts_once(tmp_path: Path, loops: int) -> None:
    write(tmp_path, "books/a.txt", "books/deep/b.txt")
    for number in range(loops):
        (tmp_path / "books" / f"loop{number}").symlink_to(tmp_path / "books")
        (tmp_path / "books" / "deep" / f"up{number}").symlink_to("..")
    assert list(matching_files(["books/**/*.txt"])) == ["books/a.txt", "books/deep/b.txt"]


def test_links_to_nothing_or_to_themselves_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "books/a.txt")
    for name, target in {
        "itself": "itself",
        "itself.txt": "itself.txt",
        "gone": "nowhere",
        "gone.txt": "nowhere",
    }.items():
        (tmp_path / "books" / name).symlink_to(target)
    assert list(matching_files(["**/*.txt"])) == list(matching_files(["books/**"])) == ["books/a.txt"]


def test_folders_that_link_to_each_other_count_once(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{name}.txt" for name in "abcdefghij"))
    for name in "abcdefghij":
        for target in "abcdefghij":
            (tmp_path / name / f"to_{target}").symlink_to(tmp_path / target)
    assert list(matching_files(["**/*.txt"])) == [f"{name}/{name}.txt" for name in "abcdefghij"]


def test_files_that_only_a_link_leads_to_are_found(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/a.txt", "elsewhere/more/b.txt", "books/c.txt")
    (tmp_path / "books" / "linked").symlink_to(tmp_path / "elsewhere")
    found = ["books/c.txt", "books/linked/a.txt", "books/linked/more/b.txt"]
    assert list(matching_files(["books/**/*.txt"])) == found
    assert list(matching_files(["books/linked/*.txt"])) == ["books/linked/a.txt"]


def test_a_file_of_several_names_is_read_once_and_reported(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "c.txt")
    (tmp_path / "a.txt").symlink_to("b.txt")
    os.link(tmp_path / "c.txt", tmp_path / "d.txt")
    assert list(matching_files(["*.txt"])) == ["b.txt", "c.txt"]
    assert list(matching_files(["*.txt", f"{tmp_path}/b.txt"])) == [f"{tmp_path}/b.txt", "c.txt"]
    assert other_names(["*.txt"]) == {"b.txt": ["a.txt"], "c.txt": ["d.txt"]}
    (remark,) = remarks_on(TextFiles("*.txt").scan(lambda size: None))
    assert remark == "a.txt, d.txt: left out, because the same files are read under other names"


def test_brackets_in_a_name_are_found(tmp_path: Path) -> None:
    write(tmp_path, "books [v2]/a.txt", "books v/b.txt", "c[1].txt")
    assert list(matching_files(["books [v2]/*.txt"])) == ["books [v2]/a.txt"]
    assert list(matching_files(["books [[]v2]/*.txt"])) == ["books [v2]/a.txt"]
    assert list(matching_files(["books [tuv]/*.txt"])) == ["books v/b.txt"]
    assert list(matching_files(["c[1].txt"])) == ["c[1].txt"]


def test_the_message_says_how_to_write_brackets(tmp_path: Path) -> None:
    write(tmp_path, "my books [v2]/a.txt")
    with pytest.raises(ValueError, match="no such file") as raised:
        matching_files(["* [v2]/*.txt"])
    written = str(raised.value).rpartition(" as in ")[2]
    assert list(matching_files([written])) == ["my books [v2]/a.txt"]

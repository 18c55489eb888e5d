"""The ledger: levels, final verdicts, several processes, kills, and damage."""

import json
import multiprocessing
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lmtrain.comparison.statistics.online_fdr import next_level
from lmtrain.decide.ledger import DROP, KEEP, UNDECIDED, Ledger
from lmtrain.errors import ConfigError


def opened(folder: Path, level: float | None = None, planned: int | None = None) -> Ledger:
    ledger = Ledger(folder)
    ledger.open_campaign(level, planned)
    return ledger


events = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 6)),
        st.tuples(st.sampled_from([KEEP, DROP, UNDECIDED]), st.integers(0, 6)),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(events)
def test_levels_are_fixed_at_the_start_and_final_verdicts_stay(
    tmp_path_factory: pytest.TempPathFactory, happenings: list[tuple[str, int]]
) -> None:
    ledger = opened(tmp_path_factory.mktemp("campaign"), 0.1, 20)
    levels: dict[int, float] = {}
    verdicts: dict[int, str] = {}
    before = b""
    for what, idea in happenings:
        if what == "start":
            kept = sum(verdict == KEEP for verdict in verdicts.values())
            wanted = levels.setdefault(idea, next_level(len(levels) + 1, kept, level=0.1, planned=20))
            assert ledger.start(str(idea), {}).level == wanted
        elif idea in levels:
            if verdicts.get(idea) not in (KEEP, DROP):
                verdicts[idea] = what
            assert ledger.end(str(idea), {"verdict": what}).verdict == verdicts[idea]
        content = ledger.path.read_bytes()
        assert content.startswith(before)  # append-only
        before = content
    found = ledger.read()
    assert {int(key): entry.level for key, entry in found.entries.items()} == levels
    assert {int(key): entry.verdict for key, entry in found.entries.items() if entry.verdict} == verdicts
    assert sum(levels.values()) <= 0.1 * (found.kept + 1)


@settings(max_examples=25)
@given(st.data())
def test_a_ledger_cut_anywhere_goes_on_with_levels_that_are_not_larger(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("campaign")
    ledger = opened(folder)
    for idea in range(4):
        ledger.start(str(idea), {"changes": [f"optimizer.lr={idea}"]})
        ledger.end(str(idea), {"verdict": KEEP if idea % 2 else DROP})
    whole = ledger.path.read_bytes()
    first = whole.index(b"\n") + 1
    cut = data.draw(st.integers(first, len(whole)))
    ledger.path.write_bytes(whole[:cut])
    known = ledger.read()
    entry = ledger.start("new", {})
    assert entry.number > len(known.entries)
    assert entry.level <= next_level(len(known.entries) + 1, known.kept)
    assert ledger.path.read_bytes().startswith(whole[:cut])
    assert ledger.end("new", {"verdict": KEEP}).is_final
    assert ledger.read().entries["new"].verdict == KEEP
    for key, old in known.entries.items():
        assert ledger.read().entries[key].verdict == old.verdict


def test_a_damaged_line_in_the_middle_counts_as_an_idea(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for idea in range(3):
        ledger.start(str(idea), {})
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for damage in (b"\x00\xff\n", b"[]\n", b'{"event": "started", "key": "1", "number": "two", "level": 2}\n'):
        ledger.path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
        found = ledger.read()
        assert (found.damaged, found.next_number, sorted(found.entries)) == (1, 5, ["0", "2"])


def test_the_level_of_a_campaign_cannot_be_changed(tmp_path: Path) -> None:
    ledger = opened(tmp_path, 0.1, 50)
    assert (ledger.open_campaign(None, 50).level, ledger.read().planned) == (0.1, 50)
    with pytest.raises(ConfigError, match=r"--level 0\.2: the campaign in .* began with 0\.1"):
        ledger.open_campaign(0.2, None)
    ledger.start("idea", {})
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text("".join(lines[1:]))
    with pytest.raises(ConfigError, match="its first line, with the level of the campaign, is damaged"):
        ledger.read()
    ledger.path.write_text(json.dumps(json.loads(lines[0]) | {"format": 2}) + "\n")
    with pytest.raises(ConfigError, match="format 2; this version of lmtrain reads 1"):
        ledger.read()


def start_many(folder: Path, name: str) -> None:
    ledger = opened(folder)
    for idea in range(10):
        ledger.start(f"{name} {idea}", {"padding": "x" * 5000})


def test_several_processes_get_different_numbers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start_many, args=(tmp_path, str(name))) for name in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = Ledger(tmp_path).read()
    assert found.damaged == 0
    assert [entry.number for entry in found.entries.values()] == list(range(1, 31))

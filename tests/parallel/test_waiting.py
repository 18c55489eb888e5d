"""Tests what is said about processes that can't meet."""

import socket

import pytest
from support.ranks import free_port

from lmtrain.parallel.waiting import reason_to_wait, saying_who_waits
from lmtrain.parallel.world import World

FIRST, SECOND = World(0, 3, 0), World(1, 3, 0)
ELSEWHERE = "192.0.2.77"  # an address for documentation, which no host has


def reason(monkeypatch: pytest.MonkeyPatch, world: World, address: str, port: int) -> str:
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr("lmtrain.parallel.waiting.CONNECTION_TIMEOUT_S", 0.2)
    return reason_to_wait(world)


def test_the_first_process_says_how_many_others_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = reason(monkeypatch, FIRST, "127.0.0.1", 29500)
    assert words.startswith(f"rank 0 on {socket.gethostname()}: waits for the other 2 of 3 processes at MASTER_ADDR=")
    assert words.endswith("MASTER_PORT=29500; other hosts can't reach this loopback address")


def test_an_address_of_another_host_is_wrong_for_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    words = reason(monkeypatch, FIRST, ELSEWHERE, 29500)
    assert f"{ELSEWHERE} is not an address of this host" in words


def test_a_name_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = reason(monkeypatch, SECOND, "nowhere.invalid", 29500)
    assert "MASTER_ADDR=nowhere.invalid MASTER_PORT=29500: not known on this host (" in words


def test_a_port_where_nobody_listens_gives_the_reason_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    words = reason(monkeypatch, SECOND, "127.0.0.1", free_port())
    assert "can't reach rank 0 there, which is this host itself (Connection refused)" in words


def test_an_address_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = reason(monkeypatch, SECOND, ELSEWHERE, 29500)
    assert f"MASTER_ADDR={ELSEWHERE} MASTER_PORT=29500: can't reach rank 0 there (" in words


def test_a_process_whose_connection_works_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = reason(monkeypatch, SECOND, "127.0.0.1", listener.getsockname()[1])
    assert "rank 1 on" in words
    assert "waits for the other 2 of 3 processes" in words


def test_a_line_appears_only_after_a_while(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with saying_who_waits(FIRST, patience_s=30):
        pass
    assert capsys.readouterr().err == ""
    with saying_who_waits(FIRST, patience_s=0) as timer:
        timer.join(10)
    assert capsys.readouterr().err.count("waits for the other 2") == 1

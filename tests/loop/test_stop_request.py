"""The first signal is recorded or raises, depending on where it arrives; the second ends the process immediately."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lmtrain.errors import InterruptedBySignal, ending_by_signal
from lmtrain.loop.stop_request import REPEAT_S, SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_raises_where_it_arrives(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        with pytest.raises(InterruptedBySignal) as raised:
            os.kill(os.getpid(), number)
        assert raised.value.number == stop.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_only_recorded(number: int) -> None:
    with StopRequest() as stop:
        stop.defers = True
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        with pytest.raises(InterruptedBySignal), stop.at_once():
            pytest.fail("the block must not start")
        assert stop.defers


def test_an_at_once_block_is_interrupted_where_the_signal_arrives() -> None:
    with StopRequest() as stop:
        stop.defers = True
        done = []

        def evaluate() -> None:
            with stop.at_once():
                done.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(2)

        with pytest.raises(InterruptedBySignal):
            evaluate()
        assert done == [1]
        assert stop.defers


def test_a_hang_up_after_another_signal_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        stop.defers = True
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)  # a second request would end this process
        assert stop.signal == signal.SIGTERM


def test_a_second_signal_raises_in_a_process_that_continues_after_the_run() -> None:
    with StopRequest(owns_process=False, repeat_s=0.0) as stop:
        stop.defers = True
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(InterruptedBySignal) as raised:
            os.kill(os.getpid(), signal.SIGINT)  # would otherwise end this process
        assert raised.value.number == signal.SIGINT


def test_a_signal_that_arrives_twice_counts_once() -> None:
    with StopRequest() as stop:
        stop.defers = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a second request would end this process
        assert stop.signal == signal.SIGTERM


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGUSR1, signal.SIGTERM)])
def test_a_second_signal_ends_the_process_immediately(first: int, second: int) -> None:
    script = """
import time
from lmtrain.loop.stop_request import StopRequest
with StopRequest() as stop:
    stop.defers = True
    print("ready", flush=True)
    try:
        while True:
            time.sleep(0.01)
    finally:
        print("cleaned up", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    time.sleep(REPEAT_S + 0.3)
    assert process.poll() is None
    process.send_signal(second)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == ending_by_signal(second).exit_code
    assert output == ""
    assert "a second signal exits without saving" in errors
    assert f"{signal.Signals(second).name} again: exiting without saving" in errors


def test_exit_codes() -> None:
    assert [ending_by_signal(number).exit_code for number in SIGNALS] == [130, 143, 143, 143, 143]


def test_under_nohup_a_hang_up_does_not_stop() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, previous)

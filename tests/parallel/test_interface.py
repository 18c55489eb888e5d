"""Tests which network interface processes use."""

import os
import socket
import sys

import pytest

from lmtrain.parallel.interface import (
    INTERFACE,
    check_chosen_interface,
    gloo_on,
    interface_for,
    is_loopback,
    own_address,
)

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are found on Linux only")


def test_the_address_towards_this_host_is_a_loopback_address() -> None:
    assert is_loopback(own_address("127.0.0.1"))
    assert own_address("nowhere.invalid") is None
    assert is_loopback("127.0.1.1")  # what Debian gives a host's own name
    assert is_loopback("::1")
    assert not is_loopback("fe80::1%eth0")


def test_processes_of_one_host_need_no_interface() -> None:
    assert interface_for(["127.0.0.1", "127.0.0.1"], 0) is None
    assert interface_for([None, None], 1) is None


@LINUX
def test_a_host_that_others_reach_uses_the_interface_of_that_address() -> None:
    other = "192.0.2.77"
    if (own := own_address(other)) is None or is_loopback(own):
        pytest.skip("this machine has no network")
    names = {name for _, name in socket.if_nameindex()}
    assert interface_for([other, own], 1) in names
    # The first process knows its own host at a loopback address, so the way to another host decides.
    assert interface_for(["127.0.1.1", other], 0) == interface_for([other, own], 1)


def test_a_choice_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "ib0")
    with gloo_on("eth0"):
        assert os.environ[INTERFACE] == "ib0"
    monkeypatch.delenv(INTERFACE)
    with gloo_on("eth0"):
        assert os.environ[INTERFACE] == "eth0"
    assert INTERFACE not in os.environ


@LINUX
def test_a_wrong_choice_of_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "lo")
    check_chosen_interface(["127.0.0.1", "127.0.0.1"])
    with pytest.raises(ValueError, match=r"GLOO_SOCKET_IFNAME=lo: on .*other hosts can't be reached"):
        check_chosen_interface(["127.0.0.1", "192.0.2.77"])
    monkeypatch.setenv(INTERFACE, "lo,none0")
    with pytest.raises(ValueError, match=r"GLOO_SOCKET_IFNAME=none0: on .*no such interface, only .*lo"):
        check_chosen_interface(["127.0.0.1", "127.0.0.1"])

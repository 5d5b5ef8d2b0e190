"""Autodetection of this node's address for other hosts."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from calico_libnetwork.dataplane.addresses import first_found, holding, of_uplinks
from calico_libnetwork.dataplane.rtnetlink import AddressInfo, LinkInfo


def link(index: int, name: str, *, up: bool = True, mtu: int = 1500) -> LinkInfo:
    return LinkInfo(index, name, up=up, running=up, mac="", mtu=mtu, kind="", group=0, master=0, peer=0)


def address(index: int, text: str, *, scope: int = 0) -> AddressInfo:
    interface = ipaddress.ip_interface(text)
    return AddressInfo(index, interface.ip, interface.network.prefixlen, scope)


LINKS = [link(1, "lo"), link(2, "docker0"), link(3, "eth0"), link(4, "eth1", mtu=9000)]


def test_the_first_interface_by_index_wins_and_carries_its_subnet() -> None:
    addresses = [
        address(4, "10.1.0.1/16"),
        address(3, "10.0.0.9/24"),
        address(3, "10.0.0.1/24"),
        address(2, "172.17.0.1/16"),
    ]
    found = first_found(LINKS, addresses, 4)
    assert found is not None
    assert (found.interface, found.mtu, str(found.address)) == ("eth0", 1500, "10.0.0.1/24")


@pytest.mark.parametrize(
    "name",
    [
        "lo",
        "docker0",
        "docker_gwbridge",
        "br-0123456789ab",
        "veth12ab",
        "cali0123456789a",
        "tunl0",
        "vxlan.calico",
        "virbr0",
        "cni0",
        "flannel.1",
        "dummy0",
        "kube-ipvs0",
        "wg0",
    ],
)
def test_interfaces_that_are_no_uplinks(name: str) -> None:
    assert first_found([link(3, name)], [address(3, "10.0.0.1/24")], 4) is None


@pytest.mark.parametrize("name", ["eth0", "ens3", "enp0s31f6", "bond0", "wlan0", "brx", "br0", "loft0", "team0"])
def test_interfaces_that_may_be_uplinks(name: str) -> None:
    assert first_found([link(3, name)], [address(3, "10.0.0.1/24")], 4) is not None


@pytest.mark.parametrize(
    ("text", "version", "scope"),
    [
        ("127.0.0.2/8", 4, 0),
        ("169.254.3.4/16", 4, 0),
        ("fe80::1/64", 6, 0),
        ("fd00::1/64", 6, 253),
        ("10.0.0.1/24", 6, 0),
    ],
)
def test_addresses_that_others_cannot_use(text: str, version: Any, scope: int) -> None:
    assert first_found([link(3, "eth0")], [address(3, text, scope=scope)], version) is None


def test_an_interface_that_is_down_is_passed_over() -> None:
    links = [link(3, "eth0", up=False), link(4, "eth1")]
    found = first_found(links, [address(3, "fd00::1/64"), address(4, "fd01::1/64")], 6)
    assert found is not None
    assert found.interface == "eth1"


def test_the_interface_that_holds_a_given_address() -> None:
    found = holding(LINKS, [address(4, "10.1.0.1/16")], ipaddress.ip_interface("10.1.0.1/32"))
    assert found is not None
    assert (found.interface, found.mtu, str(found.address)) == ("eth1", 9000, "10.1.0.1/16")
    assert holding(LINKS, [], ipaddress.ip_interface("10.1.0.1/32")) is None


def test_only_addresses_that_reach_others_are_the_hosts_own() -> None:
    links = [*LINKS, link(5, "vxlan.calico"), link(6, "eth2", up=False)]
    addresses = [
        address(3, "10.0.0.1/24"),
        address(3, "fd00::1/64"),
        address(3, "fe80::1/64", scope=253),
        address(2, "172.17.0.1/16"),
        address(5, "10.88.0.0/32"),
        address(6, "10.2.0.1/24"),
    ]
    assert {str(each) for each in of_uplinks(links, addresses)} == {"10.0.0.1", "fd00::1", "10.2.0.1"}

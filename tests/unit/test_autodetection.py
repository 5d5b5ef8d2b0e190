"""Which address a host takes for itself, by calico/node's methods; ``can-reach`` is in tests/system."""

from __future__ import annotations

import pytest

from calico_libnetwork.config import load
from calico_libnetwork.dataplane.autodetection import detect, source_towards
from calico_libnetwork.errors import CalicoError
from tests.unit.test_addresses import address, link

LINKS = [link(1, "lo"), link(2, "docker0"), link(3, "eth0"), link(4, "eth1"), link(5, "wlan0", up=False)]
ADDRESSES = [
    address(2, "172.17.0.1/16"),
    address(3, "10.0.0.1/24"),
    address(4, "10.1.0.1/16"),
    address(4, "10.2.0.1/16"),
    address(4, "fd00::1/64"),
    address(5, "192.0.2.1/24"),
]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("first-found", "10.0.0.1/24"),
        ("interface=eth1", "10.1.0.1/16"),
        ("interface=th1", "10.1.0.1/16"),  # an expression matches anywhere, as Go's does
        ("interface=^th1", None),
        ("interface=ens.*, eth[1-9]", "10.1.0.1/16"),
        ("interface=docker0", "172.17.0.1/16"),  # what is asked for by name is not left out
        ("interface=wlan0", None),
        ("skip-interface=eth0", "10.1.0.1/16"),
        ("skip-interface=eth0,eth1", None),
        ("cidr=10.2.0.0/16", "10.2.0.1/16"),
        ("cidr=198.51.100.0/24, 10.1.0.0/16", "10.1.0.1/16"),
        ("cidr=198.51.100.0/24", None),
    ],
)
async def test_methods(method: str, expected: str | None) -> None:
    found = await detect({4: method, 6: "interface=eth1"}, lambda: (LINKS, ADDRESSES))
    assert {version: str(interface) for version, interface in found.items()} == {
        6: "fd00::1/64",
        **({4: expected} if expected else {}),
    }


async def test_a_destination_without_a_way_or_an_address_finds_none() -> None:
    found = await detect({4: "can-reach=no such name", 6: "can-reach=192.0.2.1"}, lambda: (LINKS, ADDRESSES))
    assert found == {}
    assert str(source_towards("127.0.0.1", 4)) == "127.0.0.1"


@pytest.mark.parametrize(
    "value", ["", "last-found", "interface=", "interface=a,,b", "interface=(", "cidr=10.0.0.0/33", "cidr=fd00::/8"]
)
def test_a_bad_method_stops_the_start_with_a_sentence(value: str) -> None:
    with pytest.raises(CalicoError, match="IP_AUTODETECTION_METHOD"):
        load(environment={"IP_AUTODETECTION_METHOD": value or "can-reach="})


def test_methods_are_set_per_family() -> None:
    config = load(
        environment={"IP_AUTODETECTION_METHOD": "can-reach=192.0.2.1", "IP6_AUTODETECTION_METHOD": "cidr=fd00::/8"}
    )
    assert (config.ip_autodetection_method, config.ip6_autodetection_method) == ("can-reach=192.0.2.1", "cidr=fd00::/8")

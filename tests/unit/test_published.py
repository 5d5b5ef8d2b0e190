"""Published ports as elements of the table: where they lead, whose they are, what is left out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from calico_libnetwork.dataplane.rules import Ruleset, RulesSettings
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.model import kinds
from calico_libnetwork.model.kinds import ResourceKey
from tests import policy_worlds as worlds

V4, V6 = worlds.addresses(1)
_MAPS = ("published4", "published4_at", "published6", "published6_at", "hairpin4", "hairpin6")


def port(host_port: int, port: int = 80, *, protocol: str = "TCP", at: str = "") -> dict[str, Any]:
    return {"name": "published", "protocol": protocol, "port": port, "hostPort": host_port, "hostIP": at}


class Host:
    def __init__(self) -> None:
        self.ruleset = Ruleset(node=worlds.NODE, settings=RulesSettings())
        self.table, self._arp = Table("inet", "calico-libnetwork"), Table("arp", "calico-libnetwork")

    def put(self, number: int, *ports: dict[str, Any], created: str = "2026-11-24T10:00:00Z", **spec: Any) -> None:
        key, document = worlds.workload(number, ports=list(ports), **spec)
        document["metadata"]["creationTimestamp"] = created
        self.ruleset.update(key, kinds.decode(key, msgspec.json.encode(document)))

    def delete(self, number: int) -> None:
        self.ruleset.update(self.key(number), None)

    def key(self, number: int) -> ResourceKey:
        return worlds.workload(number)[0]

    def elements(self) -> dict[str, dict[str, str]]:
        """Of the maps that have any."""
        self.ruleset.render(self.table, self._arp)
        found: dict[str, dict[str, str]] = {}
        for (name, element), value in self.table.elements.desired.items():
            if name in _MAPS:
                found.setdefault(name, {})[element] = value
        return found

    def findings(self) -> list[tuple[ResourceKey, str]]:
        self.elements()
        return [(finding.key, finding.text) for finding in self.ruleset.findings if finding.feature == "published-port"]


def test_a_published_port_leads_to_the_endpoint_in_each_of_its_families() -> None:
    host = Host()
    host.put(1, port(8080), port(5353, 53, protocol="UDP"))
    assert host.elements() == {
        "published4": {"tcp . 8080": f"{V4} . 80", "udp . 5353": f"{V4} . 53"},
        "published6": {"tcp . 8080": f"{V6} . 80", "udp . 5353": f"{V6} . 53"},
        "hairpin4": {f"{V4} . {V4}": ""},
        "hairpin6": {f"{V6} . {V6}": ""},
    }
    host.put(1, ipNetworks=[f"{V4}/32"])
    assert host.elements() == {}


@pytest.mark.parametrize(
    ("at", "maps"),
    [
        ("192.0.2.1", {"published4_at": {"192.0.2.1 . tcp . 8080": f"{V4} . 80"}}),
        ("2001:db8::1", {"published6_at": {"2001:db8::1 . tcp . 8080": f"{V6} . 80"}}),
        ("0.0.0.0", {"published4": {"tcp . 8080": f"{V4} . 80"}}),
        ("::", {"published6": {"tcp . 8080": f"{V6} . 80"}}),
    ],
)
def test_one_at_an_address_of_the_host_leads_from_there_alone(at: str, maps: dict[str, dict[str, str]]) -> None:
    host = Host()
    host.put(1, port(8080, at=at))
    assert {name: found for name, found in host.elements().items() if "hairpin" not in name} == maps


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (port(8080, at="127.0.0.1"), "127.0.0.1 leads to no container"),
        (port(8080, at="::1"), "::1 leads to no container"),
        (port(8080, at="nowhere"), "'nowhere' does not appear to be an IPv4 or IPv6 address"),
        (port(8080, protocol="ICMP"), "'ICMP' is no protocol with ports"),
        (port(70000), "70000 is no port"),
        (port(8080, 0), "0 is no port"),
    ],
)
def test_one_that_cannot_be_published_is_a_finding_and_the_endpoint_stays_open(
    wrong: dict[str, Any], text: str
) -> None:
    host = Host()
    host.put(1, wrong, port(8081))
    assert host.elements()["published4"] == {"tcp . 8081": f"{V4} . 80"}
    assert host.findings() == [(host.key(1), f"{text}; it is not published")]
    assert worlds.interface(1) in host.ruleset.local_endpoints


def test_a_port_that_is_only_a_name_and_one_of_another_node_publish_nothing() -> None:
    host = Host()
    host.put(1, {"name": "http", "protocol": "TCP", "port": 80})
    host.put(2, port(8080), node="n2")
    assert host.elements() == {}
    assert host.findings() == []


def test_of_two_endpoints_with_one_port_the_newer_has_it_until_it_goes() -> None:
    host = Host()
    host.put(2, port(8080), created="2026-11-24T10:00:01Z")
    host.put(1, port(8080), port(8081))
    newer = worlds.addresses(2)[0]
    assert host.elements()["published4"] == {"tcp . 8080": f"{newer} . 80", "tcp . 8081": f"{V4} . 80"}
    said = f"port 8080/tcp of this host is published for {host.key(2)}, and not for this endpoint"
    assert set(host.findings()) == {(host.key(1), said)}
    host.delete(2)
    assert host.elements()["published4"] == {"tcp . 8080": f"{V4} . 80", "tcp . 8081": f"{V4} . 80"}
    assert host.findings() == []
    host.delete(1)
    assert host.elements() == {}


def test_an_endpoint_written_again_with_the_same_ports_changes_nothing() -> None:
    host = Host()
    host.put(1, port(8080), profiles=["a"])
    host.elements()
    host.table.elements.observe_exactly(dict(host.table.elements.desired))
    host.put(1, port(8080), profiles=["a"], mac="02:00:00:00:00:01")
    host.elements()
    assert host.table.elements.in_sync


def test_ports_of_datagrams_are_told_once_each_time_they_lead_elsewhere() -> None:
    host = Host()
    assert host.ruleset.take_datagram_ports() == frozenset()
    host.put(1, port(8080), port(5353, 53, protocol="UDP"))
    host.elements()
    assert host.ruleset.take_datagram_ports() == {5353}
    assert host.ruleset.take_datagram_ports() == frozenset()

"""BGP sessions of a node: table of Calico's rules."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from calico_libnetwork.routing.bgp_settings import BgpSettings, bgp_settings
from calico_libnetwork.routing.cluster import Finding
from calico_libnetwork.routing.peers import Session, sessions
from tests.unit.routing_objects import member, resource

A = member("a", "10.0.0.1/24", "fd00::1/64", labels={"rack": "r1"})
B = member("b", "10.0.0.2/24", "fd00::2/64", labels={"rack": "r2"})
C = member("c", "10.0.0.10/24", labels={"rack": "r1", "reflector": "yes"})


def peer(name: str = "p", **spec: Any) -> Any:
    return resource("BGPPeer", name, spec)


def settings(**spec: Any) -> BgpSettings:
    found, findings = bgp_settings({"default": resource("BGPConfiguration", "default", spec)}, "a")
    assert findings == []
    return found


def of(
    own: Any = A,
    others: tuple[Any, ...] = (B, C),
    peers: tuple[Any, ...] = (),
    config: BgpSettings | None = None,
    passwords: dict[tuple[str, str], str] | None = None,
) -> tuple[dict[str, Session], list[Finding]]:
    found, findings = sessions(
        own,
        {other.name: other for other in others},
        {item.name: item for item in peers},
        config or BgpSettings(),
        passwords or {},
    )
    return {session.name: session for session in found}, findings


def test_mesh_has_a_session_per_other_node_and_family() -> None:
    found, findings = of()
    assert list(found) == ["Mesh_10_0_0_10", "Mesh_10_0_0_2", "Mesh_fd00__2"]
    assert found["Mesh_fd00__2"].source == ipaddress.ip_address("fd00::1")
    assert findings == []


def test_the_side_whose_peer_is_the_greater_string_waits() -> None:
    b = member("b", "10.0.0.9/24")
    c = member("c", "10.0.0.10/24")
    of_b, _ = of(b, (c,))
    of_c, _ = of(c, (b,))
    assert of_c["Mesh_10_0_0_9"].passive
    assert not of_b["Mesh_10_0_0_10"].passive  # "10.0.0.10" < "10.0.0.9" as text, not as number


def test_mesh_off_leaves_no_session() -> None:
    assert of(config=settings(nodeToNodeMeshEnabled=False)) == ({}, [])


def test_reflectors_are_not_in_the_mesh_on_either_side() -> None:
    reflector = member("c", "10.0.0.10/24", routeReflectorClusterID="1.0.0.1")
    assert "Mesh_10_0_0_10" not in of(others=(B, reflector))[0]
    assert of(reflector, (A, B))[0] == {}


def test_nodes_that_route_without_bird_are_not_in_the_mesh() -> None:
    direct = member("b", "10.0.0.2/24", annotations={"calico-libnetwork/routes": "direct"})
    assert of(others=(direct, C))[0].keys() == {"Mesh_10_0_0_10"}


def test_as_numbers_of_node_and_cluster() -> None:
    b = member("b", "10.0.0.2/24", asNumber="1.10")
    found, _ = of(others=(b, C), config=settings(asNumber=65001))
    assert (found["Mesh_10_0_0_2"].as_number, found["Mesh_10_0_0_2"].local_as_number) == (65546, 65001)
    assert found["Mesh_10_0_0_2"].external
    assert not found["Mesh_10_0_0_10"].external


def test_mesh_password_and_restart_time() -> None:
    config = settings(nodeMeshPassword={"secretKeyRef": {"name": "s", "key": "k"}}, nodeMeshMaxRestartTime="1m30s")
    found, _ = of(config=config, passwords={("s", "k"): "secret"})
    assert found["Mesh_10_0_0_2"].password == "secret"
    assert found["Mesh_10_0_0_2"].restart_time == 90
    assert "secret" not in repr(found["Mesh_10_0_0_2"])


def test_an_unknown_password_leaves_the_sessions_out() -> None:
    config = settings(nodeMeshPassword={"secretKeyRef": {"name": "s", "key": "k"}})
    found, findings = of(config=config)
    assert found == {}
    assert [finding.subject for finding in findings] == ["BGPConfiguration(default)"]


@pytest.mark.parametrize("password", ['with"quote', "line\nbreak", "x" * 81, ""])
def test_a_password_that_cannot_be_written_leaves_the_session_out(password: str) -> None:
    tor = peer(peerIP="10.0.0.254", password={"secretKeyRef": {"name": "s", "key": "k"}})
    found, findings = of(peers=(tor,), passwords={("s", "k"): password}, config=settings(nodeToNodeMeshEnabled=False))
    assert found == {}
    assert password not in findings[0].text or not password


def test_global_peer_by_address() -> None:
    found, _ = of(
        peers=(
            peer(
                peerIP="10.0.0.254:1790",
                asNumber=65000,
                keepaliveTime="10s",
                maxRestartTime="1m0s",
                ttlSecurity=1,
                nextHopMode="Self",
                numAllowedLocalASNumbers=2,
                localASNumber=65010,
                reachableBy="10.0.0.253",
                filters=["f"],
            ),
        )
    )
    session = found["Global_10_0_0_254_port_1790"]
    assert (session.port, session.as_number, session.local_as_number) == (1790, 65000, 65010)
    assert (session.keepalive_time, session.restart_time, session.ttl_security) == (10, 60, 1)
    assert (session.next_hop, session.allowed_local_as, session.filters) == ("self", 2, ("f",))
    assert session.reachable_by == ipaddress.ip_address("10.0.0.253")
    assert not session.passive


@pytest.mark.parametrize(
    ("peer_ip", "name", "port"),
    [
        ("fd77::fe", "Global_fd77__fe", 0),
        ("[fd77::fe]:1790", "Global_fd77__fe_port_1790", 1790),
        ("192.0.2.1", "Global_192_0_2_1", 0),
    ],
)
def test_forms_of_peer_ip(peer_ip: str, name: str, port: int) -> None:
    found, _ = of(peers=(peer(peerIP=peer_ip),))
    assert found[name].port == port


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"node": "a"}, True),
        ({"node": "b"}, False),
        ({"nodeSelector": "rack == 'r1'"}, True),
        ({"nodeSelector": "rack == 'r2'"}, False),
        ({}, True),
    ],
)
def test_which_nodes_a_peer_is_for(spec: dict[str, str], expected: bool) -> None:
    found, _ = of(
        peers=(peer(peerIP="192.0.2.1", asNumber=65000, **spec),), config=settings(nodeToNodeMeshEnabled=False)
    )
    assert bool(found) is expected


def test_source_address_none_leaves_it_to_the_kernel() -> None:
    found, _ = of(peers=(peer(peerIP="192.0.2.1", sourceAddress="None"),))
    assert found["Global_192_0_2_1"].source is None


@pytest.mark.parametrize("text", ["x", "", "10.0.0.1.2", "10.0.0.2:http"])
def test_a_peer_without_usable_address_is_a_finding(text: str) -> None:
    found, findings = of(peers=(peer(peerIP=text),))
    assert list(found) == ["Mesh_10_0_0_10", "Mesh_10_0_0_2", "Mesh_fd00__2"]
    assert [finding.subject for finding in findings] == ["BGPPeer(p)"]


def test_peering_with_containers_is_named_as_not_supported() -> None:
    _, findings = of(peers=(peer(localWorkloadSelector="all()", asNumber=65000),))
    assert [finding.subject for finding in findings] == ["BGPPeer(p)"]
    assert findings[0].text.startswith("spec.localWorkloadSelector is not supported")


def test_a_bad_selector_is_one_finding_and_the_other_peers_stay() -> None:
    found, findings = of(peers=(peer("bad", nodeSelector="x =", peerIP="192.0.2.1"), peer("good", peerIP="192.0.2.2")))
    assert "Global_192_0_2_2" in found
    assert [finding.subject for finding in findings] == ["BGPPeer(bad)"]


def test_reflector_topology_by_selectors() -> None:
    """Clients peer with reflectors, and the reflectors with their clients by the reverse of the same object."""
    to_reflectors = peer("to-reflectors", nodeSelector="!has(reflector)", peerSelector="has(reflector)")
    reflector = member("c", "10.0.0.10/24", labels={"reflector": "yes"}, routeReflectorClusterID="1.0.0.1")
    config = settings(nodeToNodeMeshEnabled=False)
    of_client, _ = of(A, (B, reflector), (to_reflectors,), config)
    assert list(of_client) == ["Node_10_0_0_10"]
    assert of_client["Node_10_0_0_10"].reflector_cluster == ""
    of_reflector, _ = of(reflector, (A, B), (to_reflectors,), config)
    assert list(of_reflector) == ["Node_10_0_0_1", "Node_10_0_0_2"]
    assert {session.reflector_cluster for session in of_reflector.values()} == {"1.0.0.1"}


def test_reflectors_of_one_cluster_are_no_clients_of_each_other() -> None:
    one = member("c", "10.0.0.10/24", labels={"reflector": "yes"}, routeReflectorClusterID="1.0.0.1")
    two = member("d", "10.0.0.11/24", labels={"reflector": "yes"}, routeReflectorClusterID="1.0.0.1")
    among = peer(nodeSelector="has(reflector)", peerSelector="has(reflector)")
    found, _ = of(one, (two,), (among,))
    assert found["Node_10_0_0_11"].reflector_cluster == ""


def test_reverse_peering_of_a_peer_that_names_our_address() -> None:
    found, _ = of(A, (B,), (peer(node="b", peerIP="10.0.0.1", asNumber=64512),), settings(nodeToNodeMeshEnabled=False))
    assert list(found) == ["Node_10_0_0_2"]


def test_manual_reverse_peering_is_left_to_the_user() -> None:
    manual = peer(node="b", peerIP="10.0.0.1", asNumber=64512, reversePeering="Manual")
    assert of(A, (B,), (manual,), settings(nodeToNodeMeshEnabled=False)) == ({}, [])


def test_a_global_peer_wins_over_one_that_names_nodes_and_both_over_the_mesh() -> None:
    found, _ = of(
        others=(B,), peers=(peer("one", node="a", peerIP="10.0.0.2"), peer("two", peerIP="10.0.0.2", asNumber=64512))
    )
    assert list(found) == ["Global_10_0_0_2", "Mesh_fd00__2"]


def test_a_node_is_no_peer_of_itself() -> None:
    found, _ = of(others=(), peers=(peer(peerIP="10.0.0.1"), peer("all", peerSelector="all()")))
    assert found == {}


def test_listen_ports_of_cluster_and_node() -> None:
    configurations = {
        "default": resource("BGPConfiguration", "default", {"listenPort": 1790}),
        "node.c": resource("BGPConfiguration", "node.c", {"listenPort": 1791}),
    }
    config, _ = bgp_settings(configurations, "a")
    found, _ = of(config=config, peers=(peer(node="a", peerIP="10.0.0.10"),))
    assert found["Mesh_10_0_0_2"].port == 1790
    assert found["Node_10_0_0_10_port_1791"].port == 1791


def test_the_order_of_objects_does_not_matter() -> None:
    peers = tuple(peer(f"p{number}", peerIP=f"192.0.2.{number}") for number in range(1, 6))
    assert of(others=(B, C), peers=peers) == of(others=(C, B), peers=tuple(reversed(peers)))

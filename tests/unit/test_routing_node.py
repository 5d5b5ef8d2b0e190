"""What the Node resource of this host should hold, and how routes are carried."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from calico_libnetwork.model.documents import Document
from calico_libnetwork.routing.cluster import RoutedPool
from calico_libnetwork.routing.mode import decide
from calico_libnetwork.routing.node import DETECTED_ANNOTATION, NodeWishes, conflicts, desired_node, missing, new_node
from tests.unit.routing_objects import member

DETECTED: dict[Any, Any] = {4: ipaddress.ip_interface("10.0.0.1/24"), 6: ipaddress.ip_interface("fd00::1/64")}
MARK = DETECTED_ANNOTATION


def wishes(**fields: Any) -> NodeWishes:
    return NodeWishes(**({"name": "a", "settings": {}, "detected": DETECTED, "routes": "direct"} | fields))


def stored(**bgp: str) -> Document:
    return {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "a", "uid": "u", "creationTimestamp": "t"},
        "spec": {"bgp": bgp, "orchRefs": [{"orchestrator": "x"}]} if bgp else {},
        "status": {},
    }


def test_a_new_node_holds_the_detected_addresses() -> None:
    node = new_node(wishes(), uid="u", created="2026-08-22T13:33:21Z")
    assert node["spec"] == {"bgp": {"ipv4Address": "10.0.0.1/24", "ipv6Address": "fd00::1/64"}}
    assert node["metadata"]["annotations"] == {
        MARK: "10.0.0.1/24,fd00::1/64",
        "calico-libnetwork/routes": "direct",
    }


def test_a_second_look_changes_nothing() -> None:
    node = new_node(wishes(), uid="u", created="t")
    assert desired_node(node, wishes()) == node


def test_addresses_that_others_wrote_are_kept_with_all_other_fields() -> None:
    before = stored(ipv4Address="192.0.2.1/24", asNumber="64513")
    node = desired_node(before, wishes(detected={4: DETECTED[4]}))
    assert node["spec"] == before["spec"]
    assert MARK not in node["metadata"]["annotations"]


def test_a_detected_address_follows_the_host_until_somebody_else_sets_it() -> None:
    node = new_node(wishes(), uid="u", created="t")
    moved = desired_node(node, wishes(detected={4: ipaddress.ip_interface("10.0.9.9/24"), 6: DETECTED[6]}))
    assert moved["spec"]["bgp"]["ipv4Address"] == "10.0.9.9/24"
    moved["spec"]["bgp"]["ipv4Address"] = "192.0.2.1/24"
    assert desired_node(moved, wishes())["spec"]["bgp"]["ipv4Address"] == "192.0.2.1/24"


def test_an_interface_that_is_down_for_a_moment_changes_nothing() -> None:
    node = new_node(wishes(), uid="u", created="t")
    assert desired_node(node, wishes(detected={})) == node


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("192.0.2.7/25", "192.0.2.7/25"), ("192.0.2.7", "192.0.2.7/26"), ("192.0.2.8", "192.0.2.8/32"), ("none", None)],
)
def test_the_setting_wins(setting: str, expected: str | None) -> None:
    held = (ipaddress.ip_interface("192.0.2.7/26"),)
    node = desired_node(stored(ipv4Address="10.9.9.9/24"), wishes(settings={4: setting, 6: "none"}, held=held))
    assert (node["spec"].get("bgp") or {}).get("ipv4Address") == expected


def test_without_any_address_there_is_no_empty_bgp() -> None:
    assert "bgp" not in desired_node(stored(), wishes(detected={}))["spec"]


def test_tunnel_addresses_come_and_go() -> None:
    node = desired_node(
        stored(), wishes(tunnels={"ipv4VXLANTunnelAddr": "10.66.0.1", "ipv4IPIPTunnelAddr": "10.66.0.2"})
    )
    assert node["spec"]["ipv4VXLANTunnelAddr"] == "10.66.0.1"
    assert node["spec"]["bgp"]["ipv4IPIPTunnelAddr"] == "10.66.0.2"
    gone = desired_node(node, wishes(tunnels={"ipv4VXLANTunnelAddr": None}))
    assert "ipv4VXLANTunnelAddr" not in gone["spec"]
    assert gone["spec"]["bgp"]["ipv4IPIPTunnelAddr"] == "10.66.0.2"


def test_a_conflicting_address_is_named_with_both_nodes() -> None:
    own = member("a", "10.0.0.1/24", "fd00::1/64")
    (finding,) = conflicts(own, {"b": member("b", "10.0.0.1/16"), "c": member("c", "10.0.0.3/24")})
    assert finding.subject == "Node(a)"
    assert "10.0.0.1 is also that of Node(b)" in finding.text


def test_a_node_without_address_is_told_what_to_set() -> None:
    assert missing(member("a", "10.0.0.1/24")) == []
    assert "set IP or IP6" in missing(member("a"))[0].text


OURS: dict[str, Any] = {"annotations": {"calico-libnetwork/routes": "direct"}}


def pool_of(**modes: Any) -> Any:
    return RoutedPool("p", ipaddress.ip_network("10.66.0.0/16"), **modes)


@pytest.mark.parametrize(
    ("others", "pools", "peers", "mesh", "mode"),
    [
        ((), [pool_of()], (), True, "direct"),
        ((member("b", "10.0.0.2/24", **OURS),), [pool_of()], (), True, "direct"),
        ((member("b", "10.0.0.2/24"),), [pool_of()], (), True, "bird"),
        ((member("b", "10.0.0.2/24"),), [pool_of()], (), False, "direct"),
        ((member("b", "10.0.0.2/24"),), [pool_of(vxlan="Always")], (), True, "direct"),
        ((member("b", "10.0.0.2/24"),), [pool_of(ipip="Always")], (), True, "bird"),
        ((member("b", "10.1.0.2/24", **OURS),), [pool_of()], (), True, "bird"),
        ((member("b"),), [pool_of()], (), True, "direct"),
        ((), [pool_of()], ("tor",), True, "bird"),
        ((), [pool_of()], ("tor",), False, "bird"),
    ],
)
def test_when_bird_is_needed(others: Any, pools: Any, peers: Any, mesh: bool, mode: str) -> None:
    decision = decide(
        "auto",
        bird_installed=True,
        own=member("a", "10.0.0.1/24"),
        others={other.name: other for other in others},
        pools=pools,
        peers=peers,
        mesh=mesh,
    )
    assert decision.mode == mode
    assert decision.reason


def test_the_reason_for_direct_routes_says_nothing_untrue_of_a_calico_node() -> None:
    beside: dict[str, Any] = {"bird_installed": True, "own": member("a", "10.0.0.1/24"), "peers": ()}
    beside["others"] = {"b": member("b", "10.0.0.2/24")}
    assert "encapsulated" in decide("auto", pools=[pool_of(vxlan="Always")], mesh=True, **beside).reason
    assert "mesh is off" in decide("auto", pools=[pool_of()], mesh=False, **beside).reason


@pytest.mark.parametrize("setting", ["direct", "bird", "none"])
def test_a_setting_decides(setting: Any) -> None:
    decision = decide(setting, bird_installed=True, own=None, others={}, pools=[], peers=(), mesh=True)
    assert (decision.mode, decision.findings) == (setting, ())

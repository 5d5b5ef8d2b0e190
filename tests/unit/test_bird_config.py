"""BIRD's configuration as text; that BIRD accepts it is shown in tests/system/test_bird.py."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest

from calico_libnetwork.routing.bgp_settings import BgpSettings, bgp_settings
from calico_libnetwork.routing.bird_config import BirdInput, render, router_id
from calico_libnetwork.routing.cluster import Finding, RoutedPool, parse_pool
from calico_libnetwork.routing.peers import sessions
from tests.unit.routing_objects import member, pool, resource

A = member("a", "10.0.0.1/24", "fd00::1/64")
B = member("b", "10.0.0.2/24", "fd00::2/64")


def parsed(*pools: Any) -> tuple[RoutedPool, ...]:
    return tuple(found for item in pools if (found := parse_pool(item)[0]) is not None)


POOLS = parsed(pool("pool4", "10.66.0.0/16"), pool("pool6", "fd66::/48"))


def text(
    *,
    own: Any = A,
    peers: tuple[Any, ...] = (),
    pools: tuple[RoutedPool, ...] = POOLS,
    filters: tuple[Any, ...] = (),
    configuration: dict[str, Any] | None = None,
    blocks: tuple[str, ...] = (),
    ipip_supported: bool = False,
) -> tuple[str, list[Finding]]:
    settings = BgpSettings()
    findings: list[Finding] = []
    if configuration is not None:
        settings, findings = bgp_settings({"default": resource("BGPConfiguration", "default", configuration)}, "a")
    found, more = sessions(own, {"b": B}, {item.name: item for item in peers}, settings, {("s", "k"): "secret"})
    rendered, last = render(
        BirdInput(
            node=own.name,
            addresses={family: interface.ip for family, interface in own.interfaces.items()},
            settings=settings,
            sessions=found,
            pools=pools,
            blocks=tuple(ipaddress.ip_network(block) for block in blocks),
            filters={item.name: item for item in filters},
            ipip_supported=ipip_supported,
        )
    )
    return rendered, [*findings, *more, *last]


def parts(rendered: str) -> dict[str, str]:
    """Top-level declarations by their first line without the brace."""
    found = re.findall(r"^((?:protocol|filter)[^\n]*) \{\n(.*?)^\}$", rendered, re.MULTILINE | re.DOTALL)
    return dict(found)


def bgp_filter(name: str = "f", **rules: Any) -> Any:
    return resource("BGPFilter", name, rules)


def tor(**spec: Any) -> Any:
    return resource("BGPPeer", "tor", {"peerIP": "10.0.0.254", "asNumber": 65000, **spec})


def test_mesh_session_of_each_family() -> None:
    rendered, findings = text()
    assert findings == []
    assert "router id 10.0.0.1;" in rendered
    session = parts(rendered)["protocol bgp Mesh_10_0_0_2"]
    assert "neighbor 10.0.0.2 as 64512;" in session
    assert "source address 10.0.0.1;" in session
    assert "passive on;" in session
    assert "ipv4 {" in session
    assert "ipv6 {" in parts(rendered)["protocol bgp Mesh_fd00__2"]


def test_kernel_routes_persist_and_are_learned() -> None:
    rendered, _ = text()
    for family in (4, 6):
        kernel = parts(rendered)[f"protocol kernel kernel{family}"]
        assert "learn; persist; scan time 2; graceful restart; merge paths on;" in kernel


def test_own_routes_of_protocol_80_are_exported_inside_pools_only() -> None:
    export = parts(text()[0])["filter cal_export4_internal"]
    assert export.strip().splitlines() == [
        "if !(net ~ [ 10.66.0.0/16+ ]) then reject;",
        "  if source = RTS_BGP || (source = RTS_STATIC && dest = RTD_BLACKHOLE) then accept;",
        "  if source != RTS_INHERIT || !defined(krt_source) || krt_source != 80 then reject;",
        '  if dest = RTD_BLACKHOLE || ifname ~ "cali*" then accept;',
        "  reject;",
    ]


@pytest.mark.parametrize(
    ("spec", "ipip_supported", "internal", "external"),
    [
        ({}, False, True, True),
        ({"vxlanMode": "Always"}, False, False, True),
        ({"vxlanMode": "CrossSubnet"}, False, False, True),
        ({"ipipMode": "Always"}, False, False, True),
        ({"ipipMode": "Always"}, True, True, True),
        ({"ipipMode": "CrossSubnet"}, False, True, True),
        ({"disableBGPExport": True}, False, False, False),
    ],
)
def test_which_pools_peers_hear_of(spec: dict[str, Any], ipip_supported: bool, internal: bool, external: bool) -> None:
    pools = parsed(pool("p", "10.66.0.0/16", **spec), pool("q", "10.67.0.0/16"))
    rendered, _ = text(peers=(tor(),), pools=pools, ipip_supported=ipip_supported)
    shown = {
        kind: re.search(r"!\(net ~ \[ (.*?) \]\)", parts(rendered)[f"filter cal_export4_{kind}"])
        for kind in ("internal", "external")
    }
    assert ("10.66.0.0/16+" in str(shown["internal"] and shown["internal"][1])) is internal
    assert ("10.66.0.0/16+" in str(shown["external"] and shown["external"][1])) is external


def test_own_blocks_are_named_but_for_those_of_one_address() -> None:
    rendered, _ = text(blocks=("10.66.0.64/26", "10.66.0.0/26", "10.66.1.1/32", "fd66::/122"))
    assert "protocol static static4 { ipv4; route 10.66.0.0/26 blackhole; route 10.66.0.64/26 blackhole; }" in rendered
    assert "protocol static static6 { ipv6; route fd66::/122 blackhole; }" in rendered


def test_without_pools_nothing_is_exported() -> None:
    export = parts(text(pools=())[0])["filter cal_export4_internal"]
    assert export.strip() == "reject;"


def test_encapsulated_pools_are_kept_out_of_the_kernel() -> None:
    pools = parsed(pool("p", "10.66.0.0/16", vxlanMode="CrossSubnet"), pool("q", "10.67.0.0/16"))
    assert "if net ~ [ 10.66.0.0/16+ ] then reject;" in parts(text(pools=pools)[0])["filter cal_kernel_out4"]


def test_everything_a_peer_may_say() -> None:
    peer = tor(
        ttlSecurity=2,
        nextHopMode="Keep",
        keepaliveTime="10s",
        maxRestartTime="1m0s",
        numAllowedLocalASNumbers=1,
        localASNumber=65001,
        reachableBy="10.0.0.253",
        password={"secretKeyRef": {"name": "s", "key": "k"}},
    )
    rendered, findings = text(peers=(peer,))
    assert findings == []
    session = parts(rendered)["protocol bgp Global_10_0_0_254"]
    for statement in (
        "local as 65001;",
        "multihop 2;",
        "ttl security on;",
        'password "secret";',
        "keepalive time 10;",
        "graceful restart time 60;",
        "allow local as 1;",
        "next hop keep;",
    ):
        assert statement in session
    assert "route 10.0.0.254/32 via 10.0.0.253;" in rendered


def test_reflector_marks_its_clients() -> None:
    reflector = member("a", "10.0.0.1/24", routeReflectorClusterID="1.0.0.1", labels={"r": ""})
    clients = resource("BGPPeer", "c", {"nodeSelector": "!has(r)", "peerSelector": "has(r)"})
    rendered, _ = text(own=reflector, peers=(clients,))
    assert "rr client; rr cluster id 1.0.0.1;" in parts(rendered)["protocol bgp Node_10_0_0_2"]


def test_listen_port_bind_mode_log_and_ignored_interfaces() -> None:
    rendered, _ = text(
        configuration={
            "listenPort": 1790,
            "bindMode": "NodeIP",
            "logSeverityScreen": "Debug",
            "ignoredInterfaces": ["eth7"],
        }
    )
    session = parts(rendered)["protocol bgp Mesh_10_0_0_2"]
    assert "local port 1790 as 64512;" in session
    assert "neighbor 10.0.0.2 port 1790 as 64512;" in session
    assert "strict bind on;" in session
    assert "debug protocols all;" in rendered
    assert '-"eth7", "*"' in rendered


def test_communities_of_prefix_advertisements() -> None:
    rendered, findings = text(
        configuration={
            "communities": [{"name": "large", "value": "63400:300:100"}],
            "prefixAdvertisements": [
                {"cidr": "10.66.0.0/17", "communities": ["large", "63400:120", "nope"]},
                {"cidr": "x", "communities": ["1:2"]},
            ],
        }
    )
    assert (
        "if net ~ 10.66.0.0/17 then { bgp_community.add((63400, 120)); bgp_large_community.add((63400, 300, 100)); }"
        in parts(rendered)["filter cal_export4_internal"]
    )
    assert "cal_export6" not in rendered or "community" not in parts(rendered)["filter cal_export6_internal"]
    assert [finding.subject for finding in findings] == ["BGPConfiguration(default)"] * 2


@pytest.mark.parametrize(
    ("rule", "statement"),
    [
        ({"action": "Accept"}, "accept;"),
        (
            {"action": "Accept", "matchOperator": "In", "cidr": "44.0.0.0/16"},
            "if (net ~ 44.0.0.0/16) then { accept; }",
        ),
        (
            {"action": "Reject", "matchOperator": "NotIn", "cidr": "44.0.0.0/16"},
            "if (net !~ 44.0.0.0/16) then { reject; }",
        ),
        (
            {"action": "Accept", "matchOperator": "Equal", "cidr": "44.0.0.0/16"},
            "if (net = 44.0.0.0/16) then { accept; }",
        ),
        (
            {"action": "Reject", "matchOperator": "NotEqual", "cidr": "44.0.0.0/16"},
            "if (net != 44.0.0.0/16) then { reject; }",
        ),
        (
            {"action": "Accept", "matchOperator": "In", "cidr": "44.0.0.0/16", "prefixLength": {"min": 20, "max": 26}},
            "if (net ~ [ 44.0.0.0/16{20,26} ]) then { accept; }",
        ),
        (
            {"action": "Accept", "matchOperator": "NotIn", "cidr": "44.0.0.0/16", "prefixLength": {"max": 26}},
            "if (net !~ [ 44.0.0.0/16{16,26} ]) then { accept; }",
        ),
        (
            {"action": "Reject", "source": "RemotePeers", "interface": "eth*"},
            'if (source = RTS_BGP) && (ifname ~ "eth*") then { reject; }',
        ),
        (
            {"action": "Accept", "communities": {"values": ["1:2"]}, "asPathPrefix": [65000, 65001]},
            "if ((1, 2) ~ bgp_community) && (bgp_path ~ [= 65000 65001 * =]) then { accept; }",
        ),
        (
            {
                "action": "Accept",
                "operations": [{"addCommunity": {"value": "1:2:3"}}, {"prependASPath": {"prefix": [1, 2]}}],
            },
            "bgp_large_community.add((1, 2, 3)); bgp_path.prepend(2); bgp_path.prepend(1); accept;",
        ),
        ({"action": "Reject", "peerType": "eBGP"}, "reject;"),
        ({"action": "Reject", "priority": 512}, "if (cal_priority4() = 512) then { reject; }"),
    ],
)
def test_filter_rules(rule: dict[str, Any], statement: str) -> None:
    for direction in ("import", "export"):
        rendered, findings = text(
            peers=(tor(filters=["f"]),), filters=(resource("BGPFilter", "f", {f"{direction}V4": [rule]}),)
        )
        assert findings == []
        (name,) = re.findall(rf"{direction} filter (cal_{direction}4_external_\w+);", rendered)
        assert parts(rendered)[f"filter {name}"].strip().splitlines()[0] == statement


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "Accept", "matchOperator": "In", "cidr": "fd00::/8"},
        {"action": "Accept", "matchOperator": "Around", "cidr": "10.0.0.0/8"},
        {"action": "Accept", "interface": 'eth0"; quit'},
        {"action": "Accept", "source": "Elsewhere"},
        {"action": "Accept", "communities": {"values": ["x"]}},
        {"action": "Accept", "priority": 1 << 30},
        {"action": "Accept", "operations": [{"setPriority": {"value": 1 << 30}}]},
        {"action": "Perhaps"},
    ],
)
def test_a_filter_rule_that_cannot_be_expressed_is_left_out_and_named(rule: dict[str, Any]) -> None:
    rendered, findings = text(peers=(tor(filters=["f"]),), filters=(bgp_filter(exportV4=[rule, {"action": "Reject"}]),))
    assert [finding.subject for finding in findings] == ["BGPFilter(f)"]
    assert findings[0].text.startswith("spec.exportV4[0] is left out: ")
    assert "quit" not in rendered


def test_a_priority_travels_as_local_preference() -> None:
    rule = {"action": "Accept", "operations": [{"setPriority": {"value": 512}}]}
    rendered, findings = text(peers=(tor(filters=["f"]),), filters=(bgp_filter(importV4=[rule]),))
    assert findings == []
    (name,) = re.findall(r"import filter (cal_import4_external_\w+);", rendered)
    assert parts(rendered)[f"filter {name}"].strip().splitlines()[0] == "bgp_local_pref = 2147483135; accept;"
    assert "function" not in rendered


def test_a_priority_for_an_external_peer_is_named_as_having_no_effect() -> None:
    rule = {"action": "Accept", "operations": [{"setPriority": {"value": 512}}]}
    _, findings = text(peers=(tor(filters=["f"]),), filters=(bgp_filter(exportV4=[rule]),))
    assert [(finding.severity, finding.subject) for finding in findings] == [("warning", "BGPFilter(f)")]
    assert "setPriority has no effect there" in findings[0].text
    assert text(peers=(tor(asNumber=64512, filters=["f"]),), filters=(bgp_filter(exportV4=[rule]),))[1] == []


def test_the_priority_of_routes_that_name_none_is_the_configured_normal_one() -> None:
    rule = {"action": "Reject", "priority": 512}
    settings = {"ipv4NormalRoutePriority": 2000}
    rendered, _ = text(
        peers=(tor(filters=["f"]),), filters=(bgp_filter(importV4=[rule], importV6=[rule]),), configuration=settings
    )
    assert "  return 2000;" in rendered
    assert "  return 1024;" not in rendered  # no session of IPv6 has the filter


def test_a_filter_for_internal_peers_says_nothing_to_external_ones() -> None:
    rendered, _ = text(
        peers=(tor(filters=["f"]),), filters=(bgp_filter(importV4=[{"action": "Reject", "peerType": "iBGP"}]),)
    )
    (name,) = re.findall(r"import filter (cal_import4_external_\w+);", rendered)
    assert parts(rendered)[f"filter {name}"].strip() == "accept;"


def test_a_missing_filter_is_named() -> None:
    _, findings = text(peers=(tor(filters=["nope"]),))
    assert [finding.subject for finding in findings] == ["BGPFilter(nope)"]


def test_filters_of_one_peer_leave_the_text_of_other_sessions_alone() -> None:
    before, _ = text(peers=(tor(),))
    after, _ = text(peers=(tor(filters=["f"]),), filters=(bgp_filter(importV4=[{"action": "Reject"}]),))
    assert parts(before)["protocol bgp Mesh_fd00__2"] == parts(after)["protocol bgp Mesh_fd00__2"]


def test_router_id_without_ipv4_is_a_stable_hash() -> None:
    own = member("a", ipv6="fd00::1/64")
    rendered, _ = text(own=own)
    assert f"router id {router_id('a', {})};" in rendered
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", router_id("a", {}))

"""What a rule means, and what becomes of one that cannot be enforced as written."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import Rule
from calico_libnetwork.policy.entity import PortMatch, parse_network
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.rule import ICMPMatch, RuleMatch, compile_rules

_GLOBAL = ResourceKey("GlobalNetworkPolicy", "p")


def _compile(rule: dict[str, Any], key: ResourceKey = _GLOBAL) -> tuple[RuleMatch | None, list[Finding]]:
    findings: list[Finding] = []
    rules = [msgspec.convert(rule, Rule)]
    compiled = compile_rules(rules, key=key, direction="ingress", findings=findings)
    return (compiled[0] if compiled else None), findings


def _clean(rule: dict[str, Any], key: ResourceKey = _GLOBAL) -> RuleMatch:
    compiled, findings = _compile({"action": "Allow", **rule}, key)
    assert not findings
    assert compiled is not None
    return compiled


@pytest.mark.parametrize(
    ("text", "action"),
    [("Allow", "allow"), ("allow", "allow"), ("Deny", "deny"), ("Log", "log"), ("Pass", "pass"), ("next-tier", "pass")],
)
def test_actions_are_read_in_any_case(text: str, action: str) -> None:
    assert _clean({"action": text}).action == action


@pytest.mark.parametrize(
    ("rule", "versions"),
    [
        ({}, {4, 6}),
        ({"ipVersion": 4}, {4}),
        ({"protocol": "ICMP"}, {4}),
        ({"protocol": "ICMPv6"}, {6}),
        ({"protocol": 58}, {6}),
        ({"source": {"nets": ["10.0.0.0/8"]}}, {4}),
        ({"source": {"notNets": ["fd00::/8"]}}, {6}),
        ({"source": {"nets": ["10.0.0.0/8", "fd00::/8"]}}, {4, 6}),
        ({"source": {"notNets": ["0.0.0.0/0", "fd00::/8"]}}, {6}),
        ({"source": {"notNets": ["0.0.0.0/1", "128.0.0.0/1", "fd00::/8"]}}, {6}),
        ({"source": {"selector": "has(a)"}}, {4, 6}),
    ],
)
def test_protocol_and_networks_limit_the_ip_versions(rule: dict[str, Any], versions: set[int]) -> None:
    assert _clean(rule).versions == versions


@pytest.mark.parametrize(
    "rule",
    [
        {"ipVersion": 4, "source": {"nets": ["fd00::/8"]}},
        {"source": {"nets": ["10.0.0.0/8"]}, "destination": {"nets": ["fd00::/8"]}},
        {"source": {"notNets": ["0.0.0.0/0"]}},
    ],
)
def test_a_rule_no_packet_can_match_is_left_out_with_a_warning(rule: dict[str, Any]) -> None:
    for action in ("Allow", "Deny"):
        compiled, findings = _compile({"action": action, **rule})
        assert compiled is None
        assert [finding.severity for finding in findings] == ["warning"]


_ACCOUNTS = "spec.ingress[0].source.serviceAccounts"
_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"http": {"methods": ["GET"]}}, "http", "spec.ingress[0].http"),
    ({"protocol": "XYZ"}, "protocol", "spec.ingress[0].protocol"),
    ({"protocol": 256}, "protocol", "spec.ingress[0].protocol"),
    ({"notProtocol": 0}, "protocol", "spec.ingress[0].notProtocol"),
    ({"ipVersion": 5}, "ipVersion", "spec.ingress[0].ipVersion"),
    ({"ipVersion": 6, "protocol": "ICMP"}, "ipVersion", "spec.ingress[0].ipVersion"),
    ({"icmp": {"type": 8}}, "icmp", "spec.ingress[0].icmp"),
    ({"protocol": "TCP", "notICMP": {"type": 8}}, "icmp", "spec.ingress[0].notICMP"),
    ({"protocol": "ICMP", "icmp": {"code": 1}}, "icmp", "spec.ingress[0].icmp"),
    ({"protocol": "ICMP", "icmp": {"type": 255}}, "icmp", "spec.ingress[0].icmp"),
    ({"protocol": "ICMP", "icmp": {"type": 3, "code": 256}}, "icmp", "spec.ingress[0].icmp"),
    ({"source": {"nets": ["10.0.0.0/33"]}}, "nets", "spec.ingress[0].source.nets[0]"),
    ({"source": {"nets": ["10.0.0.0/8", "fe80::1%eth0"]}}, "nets", "spec.ingress[0].source.nets[1]"),
    ({"destination": {"notNets": ["x"]}}, "nets", "spec.ingress[0].destination.notNets[0]"),
    ({"source": {"selector": "a ="}}, "selector", "spec.ingress[0].source.selector"),
    ({"source": {"selector": "global()"}}, "selector", "spec.ingress[0].source.selector"),
    ({"source": {"notSelector": "("}}, "selector", "spec.ingress[0].source.notSelector"),
    ({"source": {"namespaceSelector": "!global()"}}, "selector", "spec.ingress[0].source.namespaceSelector"),
    ({"source": {"namespaceSelector": "a ="}}, "selector", "spec.ingress[0].source.namespaceSelector"),
    ({"source": {"serviceAccounts": {"selector": "a ="}}}, "selector", f"{_ACCOUNTS}.selector"),
    ({"source": {"serviceAccounts": {"names": "x"}}}, "serviceAccounts", _ACCOUNTS),
    ({"destination": {"ports": [80]}}, "ports", "spec.ingress[0].destination.ports"),
    ({"protocol": "ICMP", "destination": {"ports": [80]}}, "ports", "spec.ingress[0].destination.ports"),
    ({"notProtocol": "TCP", "source": {"notPorts": [80]}}, "ports", "spec.ingress[0].source.notPorts"),
    ({"protocol": "TCP", "destination": {"ports": [0]}}, "ports", "spec.ingress[0].destination.ports[0]"),
    ({"protocol": "TCP", "destination": {"ports": [80, "90:80"]}}, "ports", "spec.ingress[0].destination.ports[1]"),
    ({"protocol": "TCP", "destination": {"ports": ["a b"]}}, "ports", "spec.ingress[0].destination.ports[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "feature", "field"), _FAULTS, ids=[str(fault[0])[:70] for fault in _FAULTS])
def test_an_unusable_match_leaves_out_an_allow_and_widens_a_deny(
    rule: dict[str, Any], feature: str, field: str
) -> None:
    for action in ("Allow", "Pass", "Log"):
        compiled, findings = _compile({"action": action, **rule})
        assert compiled is None
        assert [(finding.severity, finding.feature, finding.field) for finding in findings] == [
            ("error", feature, field)
        ]
        assert findings[0].text.endswith("the rule is left out")
    compiled, findings = _compile({"action": "Deny", **rule})
    assert compiled is not None
    assert compiled.action == "deny"
    assert compiled.source.nets == ()
    assert compiled.destination.ports is None
    assert [(finding.severity, finding.field) for finding in findings] == [("error", field)]
    assert findings[0].text.endswith("the rule denies without this condition")


def test_an_unknown_action_denies() -> None:
    compiled, findings = _compile({"action": "Accept", "protocol": "TCP"})
    assert compiled is not None
    assert (compiled.action, compiled.protocol) == ("deny", 6)
    assert [finding.feature for finding in findings] == ["action"]


def test_pass_in_a_profile_denies() -> None:
    compiled, findings = _compile({"action": "Pass"}, ResourceKey("Profile", "p"))
    assert compiled is not None
    assert compiled.action == "deny"
    assert [finding.severity for finding in findings] == ["error"]


@pytest.mark.parametrize("action", ["Allow", "Deny"])
def test_services_match_nothing(action: str) -> None:
    compiled, findings = _compile({"action": action, "destination": {"services": {"name": "s", "namespace": "n"}}})
    assert compiled is None
    assert [(finding.severity, finding.feature) for finding in findings] == [("warning", "services")]


@pytest.mark.parametrize(
    ("entity", "namespace", "positive"),
    [
        ({"selector": "has(a)"}, "", "has(a)"),
        ({"selector": "has(a)"}, "ns", '(projectcalico.org/namespace == "ns" && has(a))'),
        ({"notSelector": "has(a)"}, "ns", 'projectcalico.org/namespace == "ns"'),
        ({"notSelector": "has(a)"}, "", None),
        ({"nets": ["10.0.0.0/8"]}, "ns", None),
        ({"selector": " "}, "", "all()"),
        ({"namespaceSelector": "all()"}, "ns", "has(projectcalico.org/namespace)"),
        ({"namespaceSelector": "global()"}, "ns", "!has(projectcalico.org/namespace)"),
        ({"namespaceSelector": "a == 'b'", "selector": "has(c)"}, "ns", '(pcns.a == "b" && has(c))'),
        ({"serviceAccounts": {"names": ["x", "y"]}}, "", 'projectcalico.org/serviceaccount in {"x", "y"}'),
        (
            {"serviceAccounts": {"selector": "has(z)"}}, "ns",
            '(projectcalico.org/namespace == "ns" && has(pcsa.z))',
        ),
    ],
)  # fmt: skip
def test_the_selectors_of_an_entity_become_one(entity: dict[str, Any], namespace: str, positive: str | None) -> None:
    key = ResourceKey("NetworkPolicy" if namespace else "GlobalNetworkPolicy", "p", namespace)
    compiled = _clean({"source": entity}, key).source
    assert (compiled.selector.canonical if compiled.selector else None) == positive


def test_ports_are_merged_and_names_kept_apart() -> None:
    ports = [90, "80:85", 84, 86, "http", "8080", "http"]
    compiled = _clean({"protocol": "TCP", "destination": {"ports": ports}})
    assert compiled.destination.ports == PortMatch(((80, 86), (90, 90), (8080, 8080)), ("http",))
    assert _clean({"destination": {"ports": ["http"]}}).destination.ports == PortMatch((), ("http",))


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_an_ipv4_address_written_as_ipv6_is_the_ipv4_address(text: str, network: str) -> None:
    assert parse_network(text) == ip_network(network)


@pytest.mark.parametrize("text", ["10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255", "10.0.0.0/+8", "fe80::1%eth0", ""])
def test_a_network_calico_does_not_read_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="no address or CIDR"):
        parse_network(text)


def test_networks_and_icmp_are_read() -> None:
    compiled = _clean({"protocol": "icmp", "icmp": {"type": 8}, "notICMP": {"type": 3, "code": 0}})
    assert (compiled.icmp, compiled.not_icmp) == (ICMPMatch(8), ICMPMatch(3, 0))
    nets = _clean({"source": {"nets": ["10.0.0.1/8", "10.1.2.3"]}}).source.nets
    assert nets == (ip_network("10.0.0.0/8"), ip_network("10.1.2.3/32"))

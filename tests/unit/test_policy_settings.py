"""FelixConfiguration's fields as far as the rules depend on them."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.settings import Options, RulesSettings, initial_options, read_options

_DEFAULT = ResourceKey("FelixConfiguration", "default")


def _read(spec: dict[str, Any]) -> tuple[Options, list[Finding]]:
    findings: list[Finding] = []
    return read_options(RulesSettings(), {_DEFAULT: spec}, node="n1", findings=findings), findings


@pytest.mark.parametrize(
    ("field", "value", "attribute", "expected"),
    [
        ("interfacePrefix", "tap,cali", "prefixes", ("cali", "tap")),
        ("defaultEndpointToHostAction", "ACCEPT", "endpoint_to_host", "accept"),
        ("iptablesFilterDenyAction", "Reject", "deny", "reject"),
        ("nftablesFilterDenyAction", "Drop", "deny", "drop"),
        ("logPrefix", 'a"b\nc', "log_prefix", "a_b_c"),
        ("logActionRateLimit", "10/second", "log_limit", "10/second"),
        ("logActionRateLimitBurst", 7, "log_burst", 7),
        ("disableConntrackInvalidCheck", True, "drop_invalid", False),
        ("vxlanPort", 4790, "vxlan_port", 4790),
        ("allowVXLANPacketsFromWorkloads", True, "allow_vxlan", True),
        ("allowIPIPPacketsFromWorkloads", True, "allow_ipip", True),
        ("workloadSourceSpoofing", "Any", "allow_spoofing", True),
        ("natPortRange", "2000", "nat_ports", "2000"),
        ("natPortRange", "2000:3000", "nat_ports", "2000-3000"),
        ("natOutgoingAddress", "192.0.2.1", "nat_address", "192.0.2.1"),
        ("natOutgoingExclusions", "IPPoolsAndHostIPs", "nat_exclude_nodes", True),
        ("iptablesNATOutgoingInterfaceFilter", "!eth+", "nat_interfaces", "!eth*"),
        ("externalNodesList", ["192.0.2.0/24"], "vxlan_sources", (ip_network("192.0.2.0/24"),)),
        ("interfacePrefix", "", "prefixes", ("cali",)),
    ],
)
def test_fields_are_read(field: str, value: Any, attribute: str, expected: Any) -> None:
    options, findings = _read({field: value})
    assert getattr(options, attribute) == expected
    assert not findings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interfacePrefix", "cali,a b"),
        ("defaultEndpointToHostAction", "Allow"),
        ("nftablesFilterDenyAction", "x"),
        ("logActionRateLimit", "10"),
        ("logActionRateLimit", 10),
        ("logActionRateLimitBurst", 0),
        ("disableConntrackInvalidCheck", "yes"),
        ("vxlanPort", 70000),
        ("natPortRange", "5:4"),
        ("natPortRange", "x"),
        ("natOutgoingAddress", "x"),
        ("iptablesNATOutgoingInterfaceFilter", 'eth0" accept'),
        ("externalNodesList", ["x"]),
        ("externalNodesList", 5),
    ],
)
def test_unusable_values_are_findings_and_leave_the_default(field: str, value: Any) -> None:
    options, findings = _read({field: value})
    assert options == initial_options(RulesSettings())
    assert [(finding.severity, finding.field) for finding in findings] == [("error", f"spec.{field}")]


def test_the_nodes_own_configuration_wins_field_by_field() -> None:
    own = ResourceKey("FelixConfiguration", "node.n1")
    specs: dict[ResourceKey, dict[str, Any]] = {
        own: {"vxlanPort": 1},
        _DEFAULT: {"vxlanPort": 2, "nftablesFilterDenyAction": "Reject"},
    }
    options = read_options(RulesSettings(), specs, node="n1", findings=[])
    assert (options.vxlan_port, options.deny) == (1, "reject")
    other = read_options(RulesSettings(), specs, node="n2", findings=[])
    assert other.vxlan_port == 2


@pytest.mark.parametrize(
    ("field", "value", "harmless"),
    [
        ("wireguardEnabled", True, False),
        ("wireguardEnabledV6", True, False),
        ("bpfEnabled", True, False),
        ("chainInsertMode", "append", "Insert"),
        ("ipv6Support", False, True),
        ("vxlanEnabled", False, True),
        ("nftablesMarkMask", 0xFF000000, 0xFFFF0000),
        ("removeExternalRoutes", False, True),
        ("deviceRouteProtocol", 3, 80),
        ("deviceRouteSourceAddress", "192.0.2.1", ""),
        ("routeSyncDisabled", True, False),
        ("ipForwarding", "Disabled", "Enabled"),
        ("mtuIfacePattern", "^eth", ""),
        ("floatingIPs", "Enabled", "Disabled"),
        ("awsSrcDstCheck", "Disable", "DoNothing"),
    ],
)
def test_what_is_asked_for_and_not_done_is_a_finding(field: str, value: Any, harmless: Any) -> None:
    options, findings = _read({field: value})
    assert options == initial_options(RulesSettings())
    assert [(finding.severity, finding.field) for finding in findings] == [("error", f"spec.{field}")]
    assert not _read({field: harmless})[1]


def test_what_a_node_turns_off_for_itself_is_no_finding_there() -> None:
    own = ResourceKey("FelixConfiguration", "node.n1")
    specs: dict[ResourceKey, dict[str, Any]] = {own: {"wireguardEnabled": False}, _DEFAULT: {"wireguardEnabled": True}}
    found: dict[str, list[Finding]] = {"n1": [], "n2": []}
    for node, findings in found.items():
        read_options(RulesSettings(), specs, node=node, findings=findings)
    assert not found["n1"]
    assert [finding.key for finding in found["n2"]] == [_DEFAULT]

"""From resources to the desired tables: text, incremental updates, findings."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec
import pytest

from calico_libnetwork.dataplane.rules import Ruleset, RulesSettings
from calico_libnetwork.dataplane.rules.matching import rule_texts
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import Rule
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.rule import compile_rules
from calico_libnetwork.policy.unreadable import read
from tests import policy_worlds as worlds

Spec = dict[str, Any]


class Host:
    """A ruleset and its tables, fed with documents."""

    def __init__(self, settings: RulesSettings | None = None) -> None:
        self.ruleset = Ruleset(node="n1", settings=settings or RulesSettings())
        self.table = Table("inet", "calico-libnetwork")
        self.arp = Table("arp", "calico-libnetwork")

    def put(
        self, kind: str, name: str, spec: Spec, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> None:
        metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
        document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
        self.put_document(ResourceKey(kind, name, namespace), document)

    def put_document(self, key: ResourceKey, document: Spec) -> None:
        value = msgspec.json.encode(document)
        try:
            self.ruleset.update(key, read(key, value, first=True))
        except Unreadable as error:
            self.ruleset.update(key, error)

    def put_workload(self, number: int, *, labels: Mapping[str, str] | None = None, **spec: Any) -> ResourceKey:
        endpoint = f"{number:04x}".ljust(64, "0")
        defaults = {
            "orchestrator": "libnetwork",
            "workload": "libnetwork",
            "node": "n1",
            "endpoint": endpoint,
            "interfaceName": worlds.interface(number),
            "ipNetworks": [f"{address}/{address.max_prefixlen}" for address in worlds.addresses(number)],
        }
        key = ResourceKey("WorkloadEndpoint", f"n1-libnetwork-libnetwork-{endpoint}", "libnetwork")
        self.put(key.kind, key.name, defaults | spec, key.namespace, labels)
        return key

    def break_(self, kind: str, name: str, namespace: str = "") -> None:
        key = ResourceKey(kind, name, namespace)
        self.ruleset.update(key, Unreadable("nonsense", b"", first=False))

    def delete(self, key: ResourceKey) -> None:
        self.ruleset.update(key, None)

    def render(self) -> frozenset[str]:
        return self.ruleset.render(self.table, self.arp)

    def content(self) -> tuple[dict[Any, Any], ...]:
        self.render()
        tables = (self.table, self.arp)
        return tuple(dict(part.desired) for table in tables for part in (table.chains, table.sets, table.elements))

    def path(self, number: int, direction: str) -> list[str]:
        """Every rule an endpoint's packets may meet, jumps followed."""
        self.render()
        name = {"egress": "from_wl", "ingress": "to_wl"}[direction]
        verdict = self.table.elements.desired[name, f'"{worlds.interface(number)}"']
        return self._rules(verdict.removeprefix("goto "))

    def _rules(self, chain: str) -> list[str]:
        rules = []
        for rule in self.table.chains.desired[chain].rules:
            if rule.startswith("jump "):
                rules += self._rules(rule.removeprefix("jump "))
            else:
                rules.append(rule)
        return rules

    def findings(self) -> list[tuple[str, str, str]]:
        self.render()
        return [(str(finding.key), finding.severity, finding.feature) for finding in self.ruleset.findings]


_CONNTRACK = "ct state vmap { established : accept, related : accept, invalid : drop }"


def _texts(rule: Spec, network_sets: Mapping[int, str] | None = None) -> list[str]:
    findings: list[Finding] = []
    key = ResourceKey("GlobalNetworkPolicy", "p")
    compiled = compile_rules([msgspec.convert(rule, Rule)], key=key, direction="ingress", findings=findings)
    assert not findings
    return rule_texts(compiled[0], "accept", lambda selector: network_sets or {})


@pytest.mark.parametrize(
    ("rule", "texts"),
    [
        ({}, ["accept"]),
        ({"protocol": "TCP"}, ["meta l4proto tcp accept"]),
        ({"protocol": 47}, ["meta l4proto 47 accept"]),
        ({"notProtocol": "UDP"}, ["meta l4proto != udp accept"]),
        ({"ipVersion": 4}, ["meta nfproto ipv4 accept"]),
        ({"protocol": "ICMP"}, ["meta nfproto ipv4 meta l4proto icmp accept"]),
        (
            {"protocol": "ICMP", "icmp": {"type": 3, "code": 1}},
            ["meta nfproto ipv4 meta l4proto icmp icmp type 3 icmp code 1 accept"],
        ),
        (
            {"protocol": "ICMPv6", "notICMP": {"type": 128, "code": 0}},
            ["meta nfproto ipv6 meta l4proto icmpv6 icmpv6 type . icmpv6 code != { 128 . 0 } accept"],
        ),
        (
            {"protocol": "TCP", "destination": {"ports": [80, "90:92"], "notPorts": [91]}, "source": {"ports": [7]}},
            ["meta l4proto tcp tcp sport 7 tcp dport != 91 tcp dport { 80, 90-92 } accept"],
        ),
        (
            {"source": {"nets": ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1"]}},
            ["meta nfproto ipv4 ip saddr { 10.0.0.0/8, 192.0.2.1 } accept"],
        ),
        (
            {"source": {"nets": ["0.0.0.0/0", "::/0"], "notNets": ["10.0.0.0/8", "::1.2.3.4"]}},
            [
                "meta nfproto ipv4 ip saddr != 10.0.0.0/8 accept",
                "meta nfproto ipv6 ip6 saddr != ::1.2.3.4 accept",
            ],
        ),
    ],
)
def test_a_rule_is_as_few_nft_rules_as_can_be(rule: Spec, texts: list[str]) -> None:
    assert _texts({"action": "Allow", **rule}) == texts


def test_a_selector_with_networks_is_two_sets_and_negated_neither_of_them() -> None:
    rule = {
        "action": "Allow",
        "ipVersion": 4,
        "source": {"selector": "has(a)"},
        "destination": {"notSelector": "has(a)"},
    }
    (plain,) = _texts(rule)
    name = plain.split("@")[1].split()[0]
    assert name.startswith("s4_")
    assert plain == f"meta nfproto ipv4 ip saddr @{name} ip daddr != @{name} accept"
    assert _texts(rule, {4: "n4_x", 6: "n6_x"}) == [
        f"meta nfproto ipv4 ip saddr @{one} ip daddr != @{name} ip daddr != @n4_x accept" for one in (name, "n4_x")
    ]


def test_numbers_and_names_of_ports_are_alternatives() -> None:
    number, name = _texts({"action": "Allow", "ipVersion": 6, "protocol": "TCP", "destination": {"ports": [80, "web"]}})
    assert number == "meta nfproto ipv6 meta l4proto tcp tcp dport 80 accept"
    assert "ip6 daddr . meta l4proto . th dport @np6_" in name


def test_without_resources_the_table_is_closed() -> None:
    host = Host()
    host.render()
    chains = host.table.chains.desired
    assert chains["forward_egress"].rules[-2:] == ("iifname vmap @from_wl", 'iifname "cali*" drop')
    assert chains["forward_ingress"].rules == ("oifname vmap @to_wl", 'oifname "cali*" drop')
    assert chains["input_egress"].rules[-2:] == ("iifname vmap @from_wl", 'iifname "cali*" drop')
    assert chains["input_host"].rules[-1] == 'iifname "cali*" drop'
    assert not host.table.elements.desired
    assert set(host.table.sets.desired) >= {"from_wl", "to_wl"}


def test_an_endpoint_without_profile_and_policy_is_isolated() -> None:
    host = Host()
    host.put_workload(1)
    assert host.path(1, "egress") == host.path(1, "ingress") == [_CONNTRACK, "drop"]


def test_a_missing_profile_denies_in_its_place_until_it_arrives() -> None:
    host = Host()
    host.put_workload(1, profiles=["later", "projectcalico-default-allow"])
    assert host.path(1, "egress") == [_CONNTRACK, "drop", "accept", "drop"]
    host.put("Profile", "later", {"egress": [{"action": "Deny", "protocol": "TCP"}]})
    assert host.path(1, "egress") == [_CONNTRACK, "meta l4proto tcp drop", "accept", "drop"]


def test_pass_sets_a_mark_that_ends_the_tier() -> None:
    host = Host()
    host.put(
        "GlobalNetworkPolicy", "a", {"order": 1, "types": ["Egress"], "egress": [{"action": "Pass", "ipVersion": 4}]}
    )
    host.put("GlobalNetworkPolicy", "b", {"order": 2, "types": ["Egress"], "egress": [{"action": "Deny"}]})
    host.put_workload(1, profiles=["projectcalico-default-allow"])
    clear = "meta mark set meta mark & 0xfffdffff"
    assert host.path(1, "egress") == [
        _CONNTRACK, clear,
        "meta nfproto ipv4 meta mark set meta mark | 0x00020000 return", "meta mark & 0x00020000 != 0 return",
        "drop", "drop",
        clear, "accept", "drop",
    ]  # fmt: skip
    assert host.path(1, "ingress") == [_CONNTRACK, "accept", "drop"]


def test_log_rules_name_what_they_were_told_to() -> None:
    host = Host()
    prefix = {"logPrefix": 'x"%t %k %p %n', "logActionRateLimit": "10/minute"}
    host.put("FelixConfiguration", "default", prefix)
    spec = {"tier": "security", "types": ["Egress"], "egress": [{"action": "Log"}]}
    host.put("NetworkPolicy", "security.a", spec, namespace="libnetwork")
    host.put_workload(1)
    log = (
        'limit rate 10/minute burst 5 packets log prefix "x_security np libnetwork/security.a security.a: " level info'
    )
    assert host.path(1, "egress") == [_CONNTRACK, log, "drop", "drop"]


def test_a_name_that_nft_would_misread_stays_inside_its_quotes() -> None:
    host = Host()
    host.put_workload(1)
    key = ResourceKey("GlobalNetworkPolicy", "a")
    annotations = {"projectcalico.org/metadata": '{"name": "x\\" accept\\nadd"}'}
    spec = {"selector": "all()", "ingress": [{"action": "Log"}], "tier": 'odd" drop'}
    metadata = {"name": "a", "annotations": annotations}
    head = {"kind": key.kind, "apiVersion": "projectcalico.org/v3"}
    host.put_document(key, head | {"metadata": metadata, "spec": spec})
    host.put("FelixConfiguration", "default", {"logPrefix": "%t %n"})
    assert 'log prefix "odd_ drop x_ accept_add: " level info' in host.path(1, "ingress")


@pytest.mark.parametrize("kind", ["StagedGlobalNetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy"])
def test_a_staged_policy_is_said_not_to_be_in_force(kind: str) -> None:
    host = Host()
    key = ResourceKey(kind, "a", "" if "Global" in kind else "libnetwork")
    host.put(kind, key.name, {"selector": "all()", "types": ["Ingress"]}, key.namespace)
    assert host.findings() == [(str(key), "warning", "staged")]
    host.delete(key)
    assert host.findings() == []


def test_endpoints_with_the_same_policy_share_their_chains() -> None:
    host = Host()
    host.put("GlobalNetworkPolicy", "a", {"selector": "role == 'web'", "ingress": [{"action": "Allow"}]})
    for number in range(1, 50):
        host.put_workload(number, labels={"role": "web"}, profiles=["red"])
    host.render()
    signatures = [name for name in host.table.chains.desired if name.startswith("sig_")]
    assert len(signatures) == 2


def test_one_more_endpoint_writes_its_elements_and_nothing_else() -> None:
    host = Host()
    host.put(
        "Profile",
        "red",
        {"labelsToApply": {"red": ""}, "ingress": [{"action": "Allow", "source": {"selector": "has(red)"}}]},
    )
    host.put_workload(1, profiles=["red"])
    _apply(host)
    host.put_workload(2, profiles=["red"])
    assert host.render() == {worlds.interface(2)}
    assert host.table.chains.in_sync
    assert host.table.sets.in_sync
    assert len(host.table.elements.changes()) == 4  # two verdicts, an address of each version
    assert len(host.arp.elements.changes()) == 1


def test_a_changed_rule_rewrites_one_chain() -> None:
    host = Host()
    for number in range(1, 6):
        host.put_workload(number, labels={"number": str(number)})
    host.put("GlobalNetworkPolicy", "a", {"ingress": [{"action": "Allow", "protocol": "TCP"}]})
    _apply(host)
    host.put("GlobalNetworkPolicy", "a", {"ingress": [{"action": "Allow", "protocol": "UDP"}]})
    assert host.render() == frozenset()
    assert len(host.table.chains.changes()) == 1
    assert host.table.elements.in_sync
    assert not host.table.chains.removals()


def _apply(host: Host) -> None:
    """As if the kernel had taken everything."""
    host.render()
    for table in (host.table, host.arp):
        table.chains.observe_exactly(table.chains.desired)
        table.sets.observe_exactly(table.sets.desired)
        table.elements.observe_exactly(table.elements.desired)


@pytest.mark.parametrize("seed", range(25))
def test_any_path_to_a_world_ends_in_the_same_tables(seed: int) -> None:
    random = Random(seed)
    host = Host()
    world: worlds.World = {}
    for _ in range(12):
        wanted = worlds.make_world(random) if random.random() < 0.2 else worlds.change(random, world)
        for key in world.keys() - wanted.keys():
            host.delete(key)
        for key, document in wanted.items():
            if document is not world.get(key):
                host.put_document(key, document)
        world = wanted
        fresh = Host()
        for key in random.sample(sorted(world), k=len(world)):
            fresh.put_document(key, world[key])
        assert host.content() == fresh.content()
        assert host.ruleset.findings == fresh.ruleset.findings
        assert host.ruleset.local_endpoints == fresh.ruleset.local_endpoints
    for key in world:
        host.delete(key)
    assert host.content() == Host().content()


def test_an_unreadable_policy_keeps_its_last_readable_version() -> None:
    host = Host()
    host.put_workload(1, profiles=["projectcalico-default-allow"])
    host.put("GlobalNetworkPolicy", "a", {"types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "TCP"}]})
    before = host.path(1, "ingress")
    host.break_("GlobalNetworkPolicy", "a")
    assert host.path(1, "ingress") == before
    assert host.findings() == [("GlobalNetworkPolicy(a)", "error", "unreadable")]
    host.put("GlobalNetworkPolicy", "a", {"selector": "a ==", "types": ["Ingress"]})
    assert host.path(1, "ingress") == before
    host.delete(ResourceKey("GlobalNetworkPolicy", "a"))
    assert host.path(1, "ingress") == [_CONNTRACK, "accept", "drop"]
    assert host.findings() == []


def test_a_version_that_was_read_stays_though_nothing_was_rendered_between() -> None:
    host = Host()
    host.put_workload(1, profiles=["projectcalico-default-allow"])
    host.put("GlobalNetworkPolicy", "a", {"types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "TCP"}]})
    host.break_("GlobalNetworkPolicy", "a")
    assert host.path(1, "ingress") == [_CONNTRACK, "meta l4proto tcp accept", "drop", "accept", "drop"]
    assert [finding.text for finding in host.ruleset.findings] == [
        "it cannot be read; its last readable version stays in force"
    ]


def test_of_a_policy_never_readable_only_what_its_selector_says_is_closed() -> None:
    host = Host()
    for number, role in ((1, "db"), (2, "web")):
        host.put_workload(number, labels={"role": role}, profiles=["projectcalico-default-allow"])
    key = ResourceKey("GlobalNetworkPolicy", "a")
    document = {"spec": {"selector": "role == 'db'", "types": ["Ingress"], "ingress": "all"}}
    for _ in range(2):
        host.ruleset.update(key, Unreadable("x", msgspec.json.encode(document), first=False))
        assert host.path(1, "ingress") == [_CONNTRACK, "drop", "accept", "drop"]
        for number, direction in ((1, "egress"), (2, "ingress"), (2, "egress")):
            assert host.path(number, direction) == [_CONNTRACK, "accept", "drop"]
        assert [finding.text for finding in host.ruleset.findings] == [
            "it cannot be read; it denies, where its selector says, what the rest of its tier does not allow"
        ]
    host.ruleset.update(key, Unreadable("x", b"{", first=False))
    assert host.path(2, "egress") == [_CONNTRACK, "drop", "accept", "drop"]
    host.ruleset.update(key, Unreadable("x", b"{", first=True))
    assert host.path(1, "ingress") == [_CONNTRACK, "accept", "drop"]
    assert [finding.text for finding in host.ruleset.findings] == [
        "it cannot be read; it has never been a policy and is left out"
    ]


def test_a_policy_never_readable_closes_its_tier_on_every_endpoint() -> None:
    host = Host()
    host.put_workload(1, profiles=["projectcalico-default-allow"])
    host.break_("GlobalNetworkPolicy", "a")
    assert host.path(1, "egress") == [_CONNTRACK, "drop", "accept", "drop"]
    host.put("GlobalNetworkPolicy", "a", {"selector": "(", "types": ["Ingress"]})
    assert host.path(1, "ingress") == [_CONNTRACK, "drop", "accept", "drop"]
    ignoring = Host(RulesSettings(invalid_policy="ignore"))
    ignoring.put_workload(1, profiles=["projectcalico-default-allow"])
    ignoring.break_("GlobalNetworkPolicy", "a")
    assert ignoring.path(1, "egress") == [_CONNTRACK, "accept", "drop"]
    assert ignoring.findings() == [("GlobalNetworkPolicy(a)", "error", "unreadable")]


@pytest.mark.parametrize("kind", ["Profile", "Tier", "IPPool", "Node", "FelixConfiguration", "GlobalNetworkSet"])
def test_anything_unreadable_is_a_finding(kind: str) -> None:
    host = Host()
    host.break_(kind, "x")
    assert host.findings() == [(f"{kind}(x)", "error", "unreadable")]
    host.delete(ResourceKey(kind, "x"))
    assert host.findings() == []


def test_two_endpoints_with_one_interface_the_lower_has_it_and_the_other_follows() -> None:
    host = Host()
    late = host.put_workload(2, interfaceName="cali1", profiles=["a"])
    early = host.put_workload(1, interfaceName="cali1", profiles=["b"])
    host.render()
    assert host.ruleset.local_endpoints["cali1"].key == early
    assert host.findings() == [(str(late), "warning", "endpoint")]
    host.delete(early)
    assert host.render() == {"cali1"}
    assert host.ruleset.local_endpoints["cali1"].key == late
    assert host.findings() == []
    host.delete(late)
    host.render()
    assert not host.table.elements.desired
    assert not host.arp.elements.desired


@pytest.mark.parametrize(
    ("spec", "feature"),
    [
        ({"interfaceName": "eth0"}, "endpoint"),
        ({"interfaceName": 'cali" : accept'}, "endpoint"),
        ({"interfaceName": ""}, "endpoint"),
        ({"ipNetworks": ["10.0.0.0/24"]}, "endpoint"),
        ({"ipNetworks": ["x"]}, "endpoint"),
    ],
)
def test_an_endpoint_that_cannot_be_policed_stays_closed(spec: Spec, feature: str) -> None:
    host = Host()
    key = host.put_workload(1, **spec)
    assert host.findings() == [(str(key), "error", feature)]
    assert not host.ruleset.local_endpoints
    assert not host.table.elements.desired


def test_an_endpoint_without_addresses_is_ignored_and_one_of_another_node_only_a_member() -> None:
    host = Host()
    host.put_workload(1, ipNetworks=None)
    host.put_workload(2)
    host.put(
        "GlobalNetworkPolicy",
        "a",
        {"types": ["Ingress"], "ingress": [{"action": "Allow", "source": {"selector": "has(x)"}}]},
    )
    endpoint = "f" * 64
    spec = {
        "node": "n2",
        "orchestrator": "libnetwork",
        "endpoint": endpoint,
        "interfaceName": "cali9",
        "ipNetworks": ["10.9.9.9"],
    }
    host.put("WorkloadEndpoint", f"n2-libnetwork-libnetwork-{endpoint}", spec, "libnetwork", {"x": ""})
    host.render()
    assert list(host.ruleset.local_endpoints) == [worlds.interface(2)]
    members = [element for name, element in host.table.elements.desired if name.startswith("s4_")]
    assert members == ["10.9.9.9"]


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("n1-libnetwork-libnetwork-e", True),
        ("n1--x-libnetwork-libnetwork-e", False),
        ("n11-libnetwork-libnetwork-e", False),
        ("n2-libnetwork-libnetwork-e", False),
        ("n1", True),
    ],
)
def test_the_name_says_whose_endpoint_it_is(name: str, *, local: bool) -> None:
    host = Host()
    spec = {
        "node": "n1",
        "orchestrator": "libnetwork",
        "endpoint": "e",
        "interfaceName": "cali9",
        "ipNetworks": ["10.9.9.9"],
    }
    host.put("WorkloadEndpoint", name, spec, "libnetwork")
    host.render()
    assert bool(host.ruleset.local_endpoints) is local


def test_networks_that_change_are_a_new_set_and_equal_networks_the_same() -> None:
    host = Host()
    host.put_workload(1)
    rules = [{"action": "Allow", "source": {"selector": selector}} for selector in ("has(a)", "has(b)")]
    host.put("GlobalNetworkPolicy", "p", {"types": ["Ingress"], "ingress": rules})

    def sets() -> dict[str, set[str]]:
        host.render()
        found: dict[str, set[str]] = {name: set() for name in host.table.sets.desired if name.startswith("n4_")}
        for name, element in host.table.elements.desired:
            if name in found:
                found[name].add(element)
        return found

    nets = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1", "192.0.2.128/25"]
    host.put("GlobalNetworkSet", "s", {"nets": nets}, labels={"a": "", "b": ""})
    before = sets()
    assert list(before.values()) == [{"10.0.0.0/8", "192.0.2.1", "192.0.2.128/25"}]
    host.put("GlobalNetworkSet", "s", {"nets": ["10.1.0.0/16"]}, labels={"a": "", "b": ""})
    assert list(sets().values()) == [{"10.1.0.0/16"}]
    assert sets().keys().isdisjoint(before)
    host.put("GlobalNetworkSet", "s", {"nets": ["10.1.0.0/16"]}, labels={"b": ""})
    host.put("GlobalNetworkSet", "t", {"nets": ["fd00::/8"]}, labels={"a": ""})
    assert list(sets().values()) == [{"10.1.0.0/16"}]
    host.delete(ResourceKey("GlobalNetworkSet", "s"))
    assert sets() == {}


def test_two_owners_of_one_address_keep_it_in_the_set_until_both_are_gone() -> None:
    host = Host()
    host.put(
        "GlobalNetworkPolicy",
        "a",
        {"types": ["Ingress"], "ingress": [{"action": "Allow", "source": {"selector": "has(x)"}}]},
    )
    host.put_workload(1, ipNetworks=["10.0.0.1"])
    first = host.put_workload(2, ipNetworks=["10.0.0.9"], labels={"x": ""})
    second = host.put_workload(3, ipNetworks=["10.0.0.9"], labels={"x": ""})
    host.put_workload(4, ipNetworks=["10.0.0.9"])

    def members() -> list[str]:
        host.render()
        return [element for name, element in host.table.elements.desired if name.startswith("s4_")]

    assert members() == ["10.0.0.9"]
    host.delete(first)
    assert members() == ["10.0.0.9"]
    host.delete(second)
    assert members() == []


def test_host_endpoints_of_this_node_are_reported_unprotected() -> None:
    host = Host()
    host.put("HostEndpoint", "own", {"node": "n1", "interfaceName": "eth0"})
    host.put("HostEndpoint", "other", {"node": "n2", "interfaceName": "eth0"})
    assert host.findings() == [("HostEndpoint(own)", "error", "host-endpoint")]


def test_configuration_of_the_node_wins_and_bad_values_are_findings() -> None:
    host = Host()
    host.put("FelixConfiguration", "default", {"defaultEndpointToHostAction": "Drop", "vxlanPort": 4790})
    host.put("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": "RETURN", "natPortRange": "5:x"})
    host.put("FelixConfiguration", "node.n2", {"vxlanPort": 1})
    host.render()
    assert list(host.table.chains.desired["input_host"].rules) == ['iifname "cali*" accept']
    assert "udp dport 4790" in host.table.chains.desired["forward_egress"].rules[0]
    assert host.findings() == [("FelixConfiguration(node.n1)", "error", "configuration")]
    host.delete(ResourceKey("FelixConfiguration", "node.n1"))
    host.render()
    assert host.table.chains.desired["input_host"].rules[-1] == 'iifname "cali*" drop'


def test_a_prefix_more_is_closed_too() -> None:
    host = Host()
    host.put_workload(1, interfaceName="tap1")
    assert not host.ruleset.local_endpoints
    host.put("FelixConfiguration", "default", {"interfacePrefix": "tap"})
    host.render()
    assert host.table.chains.desired["forward_ingress"].rules == (
        "oifname vmap @to_wl", 'oifname "cali*" drop', 'oifname "tap*" drop',
    )  # fmt: skip
    assert list(host.ruleset.local_endpoints) == ["tap1"]


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({}, "ip saddr @masq4 ip daddr != @pools4 masquerade fully-random"),
        ({"natOutgoingAddress": "192.0.2.9"}, "ip saddr @masq4 ip daddr != @pools4 snat ip to 192.0.2.9 fully-random"),
        (
            {"natOutgoingExclusions": "IPPoolsAndHostIPs", "iptablesNATOutgoingInterfaceFilter": "eth+"},
            'ip saddr @masq4 ip daddr != @pools4 ip daddr != @nodes4 oifname "eth*" masquerade fully-random',
        ),
        (
            {"natPortRange": "4000:5000"},
            "ip saddr @masq4 ip daddr != @pools4 meta l4proto { 6, 17 } masquerade to :4000-5000 fully-random",
        ),
    ],
)
def test_pools_with_nat_outgoing_are_masqueraded(spec: Spec, rule: str) -> None:
    host = Host()
    host.put("FelixConfiguration", "default", spec)
    host.put("IPPool", "a", {"cidr": "10.65.0.0/16", "natOutgoing": True, "disabled": True})
    host.put("IPPool", "b", {"cidr": "10.66.0.0/16"})
    host.put("IPPool", "c", {"cidr": "10.67.0.0/16", "natOutgoing": True, "allowedUses": ["LoadBalancer"]})
    host.put("IPPool", "d", {"cidr": "fd00::/64", "natOutgoing": True})
    host.put("Node", "n2", {"bgp": {"ipv4Address": "192.0.2.7/24"}})
    host.render()
    assert host.table.chains.desired["postrouting_nat"].rules[0] == rule
    elements = set(host.table.elements.desired)
    assert elements == {
        ("pools4", "10.65.0.0/16"), ("pools4", "10.66.0.0/16"), ("masq4", "10.65.0.0/16"),
        ("pools6", "fd00::/64"), ("masq6", "fd00::/64"), ("nodes4", "192.0.2.7"), ("vxlan4", "192.0.2.7"),
    }  # fmt: skip


def test_tunnelled_packets_are_taken_from_nodes_once_a_pool_is_tunnelled() -> None:
    host = Host()
    host.put("IPPool", "a", {"cidr": "10.65.0.0/16", "vxlanMode": "CrossSubnet"})
    host.put("FelixConfiguration", "default", {"externalNodesList": ["203.0.113.0/24"]})
    host.render()
    chains = host.table.chains.desired
    assert chains["raw_prerouting"].rules[0] == "udp dport 4789 fib daddr type local notrack"
    assert chains["input_egress"].rules[0] == "udp dport 4789 fib daddr type local ip saddr != @vxlan4 drop"
    assert ("vxlan4", "203.0.113.0/24") in host.table.elements.desired


def test_spoofed_prefixes_count_where_the_configuration_allows_them() -> None:
    host = Host()
    host.put_workload(1, allowSpoofedSourcePrefixes=["10.1.0.0/16", "10.1.2.0/24", "fd01::1"])
    host.render()
    assert not [element for element in host.table.elements.desired if element[0].startswith("spoof")]
    host.put("FelixConfiguration", "default", {"workloadSourceSpoofing": "Any"})
    host.render()
    interface = worlds.interface(1)
    assert ("spoof4", f'"{interface}" . 10.1.0.0/16') in host.table.elements.desired
    assert ("spoof6", f'"{interface}" . fd01::1') in host.table.elements.desired
    assert host.table.chains.desired["raw_prerouting"].rules[0] == "iifname . ip saddr @spoof4 accept"


def test_a_match_nobody_knows_makes_a_policy_unreadable() -> None:
    host = Host()
    host.put_workload(1, profiles=["projectcalico-default-allow"])
    rule = {"action": "Allow", "destination": {"domains": ["example.com"]}}
    host.put("GlobalNetworkPolicy", "a", {"types": ["Egress"], "egress": [rule]})
    assert host.path(1, "egress") == [_CONNTRACK, "drop", "accept", "drop"]
    assert host.findings() == [("GlobalNetworkPolicy(a)", "error", "unreadable")]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("GlobalNetworkSet", {"nets": ["10.0.0.0/8", "nonsense"]}),
        ("HostEndpoint", {"node": "n2", "interfaceName": "eth0", "expectedIPs": ["nonsense"]}),
        ("IPPool", {"cidr": "nonsense"}),
        ("Node", {"bgp": {"ipv4Address": "nonsense"}}),
    ],
)
def test_nonsense_among_addresses_is_a_finding(kind: str, spec: Spec) -> None:
    host = Host()
    host.put(kind, "x", spec)
    host.render()
    (finding,) = host.ruleset.findings
    assert "'nonsense'" in str(finding)
    assert finding.severity == "error"


def test_nonsense_among_spoofed_prefixes_is_a_finding_of_the_endpoint_that_stays_open() -> None:
    host = Host()
    key = host.put_workload(1, allowSpoofedSourcePrefixes=["nonsense"])
    assert host.findings() == [(str(key), "error", "endpoint")]
    assert list(host.ruleset.local_endpoints) == [worlds.interface(1)]


def test_an_endpoint_written_again_unchanged_changes_nothing() -> None:
    host = Host()
    host.put_workload(1, labels={"a": ""})
    _apply(host)
    host.put_workload(1, labels={"a": ""})
    assert host.render() == frozenset()
    assert host.table.in_sync
    host.put_workload(1, labels={"a": ""}, mac="02:00:00:00:00:01")
    assert host.render() == {worlds.interface(1)}
    assert host.table.in_sync
    host.delete(host.put_workload(1))
    assert host.content() == Host().content()


def test_masquerading_to_an_address_keeps_the_port_range() -> None:
    host = Host()
    host.put("FelixConfiguration", "default", {"natOutgoingAddress": "2001:db8::9", "natPortRange": "4000:5000"})
    host.render()
    assert host.table.chains.desired["postrouting_nat"].rules[2:4] == (
        "ip6 saddr @masq6 ip6 daddr != @pools6 meta l4proto { 6, 17 } snat ip6 to [2001:db8::9]:4000-5000 fully-random",
        "ip6 saddr @masq6 ip6 daddr != @pools6 snat ip6 to 2001:db8::9 fully-random",
    )


def test_a_set_outside_a_namespace_and_one_inside_differ_by_the_namespace_label() -> None:
    host = Host()
    host.put_workload(1)
    source = {"selector": "has(s)", "namespaceSelector": "global()"}
    host.put("GlobalNetworkPolicy", "p", {"types": ["Ingress"], "ingress": [{"action": "Allow", "source": source}]})
    host.put("NetworkSet", "inside", {"nets": ["10.1.0.0/16"]}, "libnetwork", {"s": ""})
    host.put("GlobalNetworkSet", "outside", {"nets": ["10.2.0.0/16"]}, labels={"s": ""})
    host.render()
    assert [element for name, element in host.table.elements.desired if name.startswith("n4_")] == ["10.2.0.0/16"]


def test_the_service_account_of_an_endpoint_is_a_label_of_it() -> None:
    host = Host()
    host.put_workload(1, serviceAccountName="robot")
    rule = {"action": "Allow", "source": {"serviceAccounts": {"names": ["robot"]}}}
    host.put("GlobalNetworkPolicy", "p", {"types": ["Ingress"], "ingress": [rule]})
    host.render()
    assert [element for name, element in host.table.elements.desired if name.startswith("s4_")] == ["10.65.0.1"]

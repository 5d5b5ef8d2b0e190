"""Why a packet passes or not, in words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

import msgspec
import pytest

from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import ResourceKey, decode
from calico_libnetwork.model.resources import AnyResource
from calico_libnetwork.policy.explain import Explainer, Judgement
from calico_libnetwork.policy.flow import Flow
from calico_libnetwork.policy.settings import RulesSettings
from calico_libnetwork.policy.unreadable import read
from tests import policy_worlds as worlds
from tests.policy_oracle import Document, Oracle

ONE, TWO = IPv4Address("10.65.0.1"), IPv4Address("10.65.0.2")
OUTSIDE = IPv4Address("198.51.100.7")
WEB = Flow(TWO, ONE, 6, 1024, 80)


def _explainer(*documents: tuple[ResourceKey, Document | Unreadable]) -> Explainer:
    content: dict[ResourceKey, AnyResource | Unreadable] = {}
    for key, document in documents:
        try:
            content[key] = _read(key, document)
        except Unreadable as error:
            content[key] = error
    return Explainer(content, RulesSettings())


def _read(key: ResourceKey, document: Document | Unreadable) -> AnyResource:
    if isinstance(document, Unreadable):
        raise document
    return read(key, msgspec.json.encode(document), first=True)


def _policy(name: str, **spec: Any) -> tuple[ResourceKey, Document]:
    return worlds.document("GlobalNetworkPolicy", name, spec)


def _told(judgement: Judgement) -> list[tuple[str, str, str]]:
    return [(step.key.name if step.key else step.tier, step.verdict, step.reason) for step in judgement.steps]


_OPEN = ["projectcalico-default-allow"]
_ENDPOINTS = (
    worlds.workload(1, labels={"role": "web"}, profiles=_OPEN),
    worlds.workload(2, labels={"role": "client"}, profiles=_OPEN),
)


def test_every_step_to_the_deciding_rule_is_told_and_why_the_others_do_not_apply() -> None:
    rules = [
        {"action": "Deny", "protocol": "UDP"},
        {"action": "Allow", "protocol": "TCP", "source": {"selector": "role == 'admin'"}},
        {"action": "Log"},
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80, 443]}},
    ]
    explanation = _explainer(
        *_ENDPOINTS,
        _policy("web", selector="role == 'web'", types=["Ingress"], ingress=rules),
        _policy("db", selector="role == 'db'"),
        _policy("out", types=["Egress"], egress=[{"action": "Allow"}]),
    ).explain(WEB)
    assert explanation.allowed
    assert _told(explanation.ingress) == [
        ("web", "", "it is for UDP, and this is TCP"),
        ("web", "", 'source 10.65.0.2 is not selected by role == "admin"'),
        ("web", "log", "every condition holds"),
        ("web", "allow", "every condition holds"),
    ]
    assert explanation.ingress.deciding.rule == 3
    assert [(step.key.name, step.reason) for step in explanation.ingress.others if step.key] == [
        ("db", 'its selector role == "db" does not match the endpoint\'s labels'),
        ("out", "it is not for ingress"),
    ]
    assert _told(explanation.egress) == [("out", "allow", "every condition holds")]


def test_the_end_of_a_tier_decides_where_no_rule_does() -> None:
    explanation = _explainer(*_ENDPOINTS, _policy("none", types=["Ingress"])).explain(WEB)
    assert not explanation.allowed
    assert explanation.egress.allowed
    assert _told(explanation.ingress) == [("default", "deny", "no rule of the tier's policies matched")]


def test_pass_goes_on_to_the_profiles() -> None:
    tier = worlds.document("Tier", "first", {"order": 1})
    passing = _policy("pass", tier="first", types=["Ingress"], ingress=[{"action": "Pass"}])
    explanation = _explainer(*_ENDPOINTS, tier, passing).explain(WEB)
    assert [(name, verdict) for name, verdict, _ in _told(explanation.ingress)] == [
        ("pass", "pass"),
        ("projectcalico-default-allow", "allow"),
    ]


@pytest.mark.parametrize(
    ("profiles", "reason"),
    [
        ([], "the endpoint has no profile"),
        (["gone"], "the profile does not exist or cannot be read"),
        (["silent"], "no rule of the endpoint's profiles matched"),
    ],
)
def test_what_the_profiles_do_not_allow_is_denied(profiles: list[str], reason: str) -> None:
    silent = worlds.document("Profile", "silent", {})
    explanation = _explainer(_ENDPOINTS[1], silent, worlds.workload(1, profiles=profiles)).explain(WEB)
    assert not explanation.allowed
    assert explanation.ingress.deciding.reason == reason


def test_an_unreadable_policy_is_said_to_be_one() -> None:
    broken = ResourceKey("GlobalNetworkPolicy", "broken")
    explanation = _explainer(*_ENDPOINTS, (broken, Unreadable("x", b"", first=False))).explain(WEB)
    assert not explanation.allowed
    assert _told(explanation.ingress)[0] == (
        "broken",
        "",
        "it cannot be read, so it allows nothing (a node that has read it before keeps to that)",
    )
    partly = _policy("broken", selector="(", types=["Egress"])
    explanation = _explainer(*_ENDPOINTS, partly).explain(WEB)
    assert (explanation.egress.allowed, explanation.ingress.allowed) == (False, True)


def test_addresses_of_nobody_are_named_as_such() -> None:
    rule = {"action": "Allow", "source": {"selector": "has(role)"}}
    explanation = _explainer(*_ENDPOINTS, _policy("p", types=["Ingress"], ingress=[rule])).explain(
        Flow(OUTSIDE, ONE, 6)
    )
    assert explanation.egress.endpoint is None
    assert _told(explanation.ingress)[0][2].endswith("has(role): it belongs to no endpoint or network set")


def test_the_own_host_is_closed_unless_configured_and_always_reaches_in() -> None:
    host = IPv4Address("192.0.2.1")
    node = worlds.document("Node", "n1", {"bgp": {"ipv4Address": "192.0.2.1/24"}})
    flow = Flow(ONE, host, 17, 1024, 53)
    explanation = _explainer(*_ENDPOINTS, node).explain(flow)
    assert not explanation.allowed
    assert "defaultEndpointToHostAction is Drop" in explanation.egress.deciding.reason
    option = worlds.document("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": "Return"})
    assert _explainer(*_ENDPOINTS, node, option).explain(flow).allowed
    assert _explainer(*_ENDPOINTS, node, _policy("none")).explain(Flow(host, ONE, 6)).allowed


def test_a_host_has_more_addresses_than_its_node_tells() -> None:
    bridge = IPv4Address("172.17.0.1")
    content = {key: decode(key, msgspec.json.encode(value)) for key, value in _ENDPOINTS}
    there, flow = Explainer(content, RulesSettings(), {"n1": [bridge]}), Flow(ONE, bridge, 6, 1024, 53)
    assert not there.explain(flow).allowed
    assert "ask with the address and port of its container" in there.explain(flow).egress.deciding.reason
    assert Explainer(content, RulesSettings(), {"n2": [bridge]}).explain(flow).allowed


def test_tunnels_of_a_workloads_own_are_denied_before_policy() -> None:
    for flow in (Flow(ONE, TWO, 17, 1024, 4789), Flow(ONE, TWO, 4)):
        explanation = _explainer(*_ENDPOINTS).explain(flow)
        assert not explanation.allowed
        assert explanation.egress.deciding.reason.startswith("workloads may not send")


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"ipVersion": 6}, "the rule is not for IPv4"),
        ({"notProtocol": "TCP"}, "it is for everything but TCP"),
        ({"protocol": 47}, "it is for protocol 47, and this is TCP"),
        ({"source": {"nets": ["10.0.0.0/30"]}}, "source 10.65.0.2 is not in 10.0.0.0/30"),
        ({"source": {"notNets": ["10.65.0.0/16"]}}, "source 10.65.0.2 is in 10.65.0.0/16"),
        ({"destination": {"notSelector": "has(role)"}}, "destination 10.65.0.1 is selected by has(role)"),
        (
            {"protocol": "TCP", "destination": {"ports": ["81:90", "web"]}},
            "destination port 80 is not among 81-90, web",
        ),
        ({"protocol": "TCP", "destination": {"notPorts": [80]}}, "destination port 80 is among 80"),
    ],
)
def test_the_condition_that_fails_is_named(rule: Document, reason: str) -> None:
    policy = _policy("p", types=["Ingress"], ingress=[{"action": "Allow", **rule}])
    assert _told(_explainer(*_ENDPOINTS, policy).explain(WEB).ingress)[0] == ("p", "", reason)


def test_icmp_types_are_compared() -> None:
    echo = Flow(IPv6Address("fd00:65::2"), IPv6Address("fd00:65::1"), 58, icmp_type=128, icmp_code=0)
    rules = [
        {"action": "Deny", "protocol": "ICMPv6", "icmp": {"type": 129}},
        {"action": "Deny", "protocol": "ICMPv6", "notICMP": {"type": 128, "code": 0}},
        {"action": "Allow", "protocol": "ICMPv6", "icmp": {"type": 128}},
    ]
    explanation = _explainer(*_ENDPOINTS, _policy("p", types=["Ingress"], ingress=rules)).explain(echo)
    reasons = [reason for _, _, reason in _told(explanation.ingress)]
    assert reasons == [
        "it is for ICMP type 129",
        "it is for everything but ICMP type 128 code 0",
        "every condition holds",
    ]


@pytest.mark.parametrize("seed", range(150))
def test_the_verdict_is_what_the_rules_of_evaluation_say(seed: int) -> None:
    random = Random(seed)
    world = worlds.make_world(random)
    explainer = _explainer(*world.items())
    oracle = Oracle(world, node=worlds.NODE, host=worlds.HOST)
    for flow in worlds.make_flows(random, 24):
        explanation = explainer.explain(worlds.explained_flow(flow))
        assert worlds.allowed_on(worlds.NODE, explanation) is oracle.allows(flow), f"{flow}: {explanation}"

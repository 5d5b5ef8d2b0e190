"""Rules, policies, profiles and tiers, as Calico's schema has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from calico_libnetwork.model.validation import formats
from calico_libnetwork.model.validation.fields import (
    Boolean,
    Field,
    Integer,
    ListOf,
    Number,
    Object,
    Opaque,
    Text,
    words,
)
from calico_libnetwork.model.validation.problems import Report

Fields = dict[str, Any]

ACTIONS = words("Allow", "Deny", "Log", "Pass")
_NAMES = ListOf(Text())


def _icmp_code_needs_type(icmp: Fields, path: str, report: Report) -> None:
    if "code" in icmp and "type" not in icmp:
        report(f"{path}.code", "needs a type beside it")


_ICMP = Object(
    Field("type", Integer(0, 254), kept=True),
    Field("code", Integer(0, 255), kept=True),
    rules=[_icmp_code_needs_type],
)


def _service_stands_alone(entity: Fields, path: str, report: Report) -> None:
    if "services" not in entity:
        return
    for other in ("namespaceSelector", "selector", "notSelector", "serviceAccounts", "nets", "notNets"):
        if other in entity:
            report(f"{path}.{other}", "may not stand beside services")


_ENTITY = Object(
    Field("nets", ListOf(formats.RULE_NETWORK)),
    Field("selector", formats.SELECTOR),
    Field("namespaceSelector", formats.RULE_NAMESPACE_SELECTOR),
    Field(
        "services",
        Object(Field("name", formats.NAME, required="must name a service"), Field("namespace", formats.NAME)),
        kept=True,
    ),
    Field("ports", ListOf(formats.Port())),
    Field("notNets", ListOf(formats.RULE_NETWORK)),
    Field("notSelector", formats.SELECTOR),
    Field("notPorts", ListOf(formats.Port())),
    Field("serviceAccounts", Object(Field("names", _NAMES), Field("selector", formats.SELECTOR)), kept=True),
    rules=[_service_stands_alone],
)


def _one_path_form(http_path: Fields, path: str, report: Report) -> None:
    if len(http_path) != 1:
        report(path, "must have exact or prefix, and not both")


def _no_method_twice(http: Fields, path: str, report: Report) -> None:
    methods = http.get("methods", [])
    if len(set(methods)) < len(methods):
        report(f"{path}.methods", "may name each method once")


_HTTP_PATH = Text(
    "a path that starts with / and has no ?, # or blank",
    lambda text: text.startswith("/") and not set("? #") & set(text),
)
_HTTP = Object(
    Field("methods", _NAMES),
    Field(
        "paths",
        ListOf(Object(Field("exact", _HTTP_PATH), Field("prefix", _HTTP_PATH), rules=[_one_path_form])),
    ),
    rules=[_no_method_twice],
)


def _ip_version_is_four_or_six(rule: Fields, path: str, report: Report) -> None:
    if rule.get("ipVersion") not in (None, 4, 6):
        report(f"{path}.ipVersion", f"must be 4 or 6, not {rule['ipVersion']}")


def _ports_need_a_protocol(rule: Fields, path: str, report: Report) -> None:
    if rule.get("protocol") in formats.PROTOCOLS_WITH_PORTS:
        return
    for end, name in _of_both_ends(rule, "ports", "notPorts"):
        report(f"{path}.{end}.{name}", "need protocol TCP, UDP or SCTP in the rule")


def _of_both_ends(rule: Fields, *names: str) -> Iterator[tuple[str, str]]:
    return ((end, name) for end in ("source", "destination") for name in names if name in rule.get(end, {}))


def _icmp_needs_its_protocol(rule: Fields, path: str, report: Report) -> None:
    for name in ("icmp", "notICMP"):
        if name in rule and rule.get("protocol") not in ("ICMP", "ICMPv6"):
            report(f"{path}.{name}", "needs protocol ICMP or ICMPv6 in the rule")
    for protocol, version in (("ICMP", 4), ("ICMPv6", 6)):
        if protocol in (rule.get("protocol"), rule.get("notProtocol")) and rule.get("ipVersion", version) != version:
            report(f"{path}.ipVersion", f"must be {version} in a rule about {protocol}")


def _one_ip_version(rule: Fields, path: str, report: Report) -> None:
    seen = {rule["ipVersion"]} if "ipVersion" in rule else set()
    for end, name in _of_both_ends(rule, "nets", "notNets"):
        versions = {found.version for net in rule[end][name] if (found := formats.network(net)) is not None}
        seen |= versions
        if len(seen) > 1:
            what = "must fit the rule's ipVersion" if "ipVersion" in rule else "mixes IPv4 and IPv6 in one rule"
            report(f"{path}.{end}.{name}", what)
            return


def _http_needs_allow(rule: Fields, path: str, report: Report) -> None:
    if "http" not in rule:
        return
    if rule["action"] != "Allow":
        report(f"{path}.http", "may only stand in a rule with action Allow")
    if rule.get("protocol", "TCP") != "TCP":
        report(f"{path}.protocol", "must be TCP in a rule with http")


def _service_has_its_ports(rule: Fields, path: str, report: Report) -> None:
    for end, name in _of_both_ends(rule, "ports", "notPorts"):
        if end == "destination" and "services" in rule[end]:
            report(f"{path}.{end}.{name}", "may not stand beside services, whose ports are the service's")


RULE = Object(
    Field("action", ACTIONS, required="must be Allow, Deny, Log or Pass"),
    Field("ipVersion", Integer(), kept=True),
    Field("protocol", formats.PROTOCOL, kept=True),
    Field("icmp", _ICMP, kept=True),
    Field("notProtocol", formats.PROTOCOL, kept=True),
    Field("notICMP", _ICMP, kept=True),
    Field("source", _ENTITY),
    Field("destination", _ENTITY),
    Field("http", _HTTP, kept=True),
    Field("metadata", Object(Field("annotations", formats.ANNOTATIONS)), kept=True),
    rules=[
        _ip_version_is_four_or_six,
        _ports_need_a_protocol,
        _icmp_needs_its_protocol,
        _one_ip_version,
        _http_needs_allow,
        _service_has_its_ports,
    ],
)

PROFILE = Object(
    Field("ingress", ListOf(RULE)),
    Field("egress", ListOf(RULE)),
    Field("labelsToApply", formats.LABELS),
)


def _types_once(policy: Fields, path: str, report: Report) -> None:
    types = policy.get("types", [])
    if len(set(types)) < len(types):
        report(f"{path}.types", "may name Ingress and Egress once each")


def _types(policy: Fields) -> Fields:
    egress = ["Egress"] if "egress" in policy else []
    return {"types": (["Ingress"] if "ingress" in policy or not egress else []) + egress}


def _rules_suit_their_direction(policy: Fields, path: str, report: Report) -> None:
    for direction, end in (("ingress", "destination"), ("egress", "source")):
        for position, rule in enumerate(policy.get(direction, [])):
            here = f"{path}.{direction}[{position}]"
            if "services" in rule.get(end, {}):
                report(f"{here}.{end}.services", f"may not stand in the {end} of an {direction} rule")
            if direction == "egress" and "http" in rule:
                report(f"{here}.http", "may not stand in an egress rule")


def _services_name_their_namespace(policy: Fields, path: str, report: Report) -> None:
    for direction, end in (("ingress", "source"), ("egress", "destination")):
        for position, rule in enumerate(policy.get(direction, [])):
            services = rule.get(end, {}).get("services")
            if services is not None and "namespace" not in services:
                report(f"{path}.{direction}[{position}].{end}.services.namespace", "must be given in a global policy")


def _host_policies(policy: Fields, path: str, report: Report) -> None:
    before, untracked = policy.get("preDNAT"), policy.get("doNotTrack")
    if before and untracked:
        report(f"{path}.preDNAT", "may not be true beside doNotTrack")
    if (before or untracked) and not policy.get("applyOnForward"):
        report(f"{path}.applyOnForward", "must be true beside preDNAT or doNotTrack")
    if before and "egress" in policy:
        report(f"{path}.egress", "may not stand beside preDNAT")
    if before and "Egress" in policy.get("types", []):
        report(f"{path}.types", "may not name Egress beside preDNAT")


_FIRST = (
    Field("tier", formats.NAME, default="default"),
    Field("order", Number(), kept=True),
    Field("ingress", ListOf(RULE)),
    Field("egress", ListOf(RULE)),
    Field("selector", formats.SELECTOR),
    Field("types", ListOf(words("Ingress", "Egress"))),
)
_HINTS = Field("performanceHints", ListOf(words("AssumeNeededOnEveryNode")))
_NAMESPACED = (*_FIRST, Field("serviceAccountSelector", formats.SELECTOR), _HINTS)
_GLOBAL = (
    *_FIRST,
    Field("doNotTrack", Boolean()),
    Field("preDNAT", Boolean()),
    Field("applyOnForward", Boolean()),
    Field("serviceAccountSelector", formats.SELECTOR),
    Field("namespaceSelector", formats.SELECTOR),
    _HINTS,
)
_POLICY_RULES = [_types_once, _rules_suit_their_direction]
_GLOBAL_RULES = [_types_once, _rules_suit_their_direction, _services_name_their_namespace]
_STAGED = Field("stagedAction", words("Set", "Delete", "Learn", "Ignore"), default="Set")


def _a_deletion_says_nothing_else(policy: Fields, path: str, report: Report) -> None:
    if policy["stagedAction"] == "Delete":
        for name in policy:
            if name not in ("stagedAction", "tier", "types"):
                report(f"{path}.{name}", "may not stand in a policy with stagedAction Delete")


NETWORK_POLICY = Object(*_NAMESPACED, rules=_POLICY_RULES, derived=_types)
GLOBAL_NETWORK_POLICY = Object(*_GLOBAL, rules=[*_GLOBAL_RULES, _host_policies], derived=_types)
STAGED_NETWORK_POLICY = Object(
    _STAGED, *_NAMESPACED, rules=[_a_deletion_says_nothing_else, *_POLICY_RULES], derived=_types
)
STAGED_GLOBAL_NETWORK_POLICY = Object(
    _STAGED, *_GLOBAL, rules=[_a_deletion_says_nothing_else, *_GLOBAL_RULES, _host_policies], derived=_types
)
STAGED_KUBERNETES_NETWORK_POLICY = Object(
    _STAGED,
    Field("podSelector", Opaque()),
    Field("ingress", Opaque()),
    Field("egress", Opaque()),
    Field("policyTypes", ListOf(words("Ingress", "Egress"))),
)
TIER = Object(Field("order", Number(), kept=True), Field("defaultAction", words("Pass", "Deny"), default="Deny"))
NETWORK_SET = Object(Field("nets", ListOf(formats.CIDR_OR_NOTHING)))

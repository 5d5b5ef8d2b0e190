"""A rule of a policy or profile in the form that can be matched, and what becomes of one that cannot be.

Enforcement never gets wider because of a part that is unsupported or wrong: an Allow, Pass or Log with such a part
is left out, a Deny is kept without that part and so denies more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import ICMPFields, Rule
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.entity import EntityMatch, Network, compile_entity, covering
from calico_libnetwork.policy.findings import Fault, Finding

Action = Literal["allow", "deny", "pass", "log"]
Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")

TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "sctp": SCTP, "udplite": 136}
PORT_PROTOCOLS = (TCP, UDP, SCTP)

_NO_PORTS = "only with protocol TCP, UDP or SCTP"
_ACTIONS: dict[str, Action] = {
    "allow": "allow", "deny": "deny", "pass": "pass", "log": "log", "next-tier": "pass",
}  # fmt: skip

_ANYTHING = EntityMatch()


@dataclass(frozen=True, slots=True)
class ICMPMatch:
    type: int
    code: int | None = None


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """All conditions must hold; ``index`` is the rule's place in the resource's list.

    ``versions`` are the IP versions for which the rule exists at all.
    """

    index: int
    action: Action
    versions: frozenset[int] = frozenset((4, 6))
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: ICMPMatch | None = None
    not_icmp: ICMPMatch | None = None
    source: EntityMatch = _ANYTHING
    destination: EntityMatch = _ANYTHING

    def selectors(self) -> Iterable[Selector]:
        yield from self.source.selectors()
        yield from self.destination.selectors()


def compile_rules(
    rules: Sequence[Rule] | None, *, key: ResourceKey, direction: Direction, findings: list[Finding]
) -> tuple[RuleMatch, ...]:
    """The rules that can be enforced, in order; ``findings`` receives what is to be said about the others."""
    compiled = (
        _compile(rule, index, key=key, field=f"spec.{direction}[{index}]", findings=findings)
        for index, rule in enumerate(rules or ())
    )
    return tuple(rule for rule in compiled if rule is not None)


def _compile(rule: Rule, index: int, *, key: ResourceKey, field: str, findings: list[Finding]) -> RuleMatch | None:
    faults: list[Fault] = []
    action = _action(rule, key, f"{field}.action", findings)
    source = compile_entity(rule.source, namespace=key.namespace, field=f"{field}.source", faults=faults)
    destination = compile_entity(rule.destination, namespace=key.namespace, field=f"{field}.destination", faults=faults)
    protocol = _protocol(rule.protocol, f"{field}.protocol", faults)
    compiled = RuleMatch(
        index,
        action,
        versions=_versions(rule, protocol, field, faults),
        protocol=protocol,
        not_protocol=_protocol(rule.not_protocol, f"{field}.notProtocol", faults),
        icmp=_icmp(rule.icmp, protocol, f"{field}.icmp", faults),
        not_icmp=_icmp(rule.not_icmp, protocol, f"{field}.notICMP", faults),
        source=_with_usable_ports(source, protocol, f"{field}.source", faults),
        destination=_with_usable_ports(destination, protocol, f"{field}.destination", faults),
    )
    if rule.http is not None:
        faults.append(Fault("http", f"{field}.http", "requests are not looked into"))
    return _judge(compiled, key, field, faults, findings)


def _judge(
    compiled: RuleMatch, key: ResourceKey, field: str, faults: list[Fault], findings: list[Finding]
) -> RuleMatch | None:
    never = compiled.source.never or compiled.destination.never
    breaking = [fault for fault in faults if fault.feature != "services"]
    for fault in faults:
        outcome = ""
        if fault in breaking and not never:
            kept = compiled.action == "deny"
            outcome = "; the rule denies without this condition" if kept else "; the rule is left out"
        severity: Literal["error", "warning"] = "error" if fault in breaking else "warning"
        findings.append(Finding(key, severity, fault.feature, fault.field, fault.text + outcome))
    if never or (breaking and compiled.action != "deny"):
        return None
    versions = _narrowed(compiled)
    if not versions:
        text = "no packet can match: the addresses, protocol and IP version exclude one another"
        findings.append(Finding(key, "warning", "never", field, text))
        return None
    return replace(compiled, versions=versions)


def _action(rule: Rule, key: ResourceKey, field: str, findings: list[Finding]) -> Action:
    action = _ACTIONS.get(rule.action.lower())
    if action is None:
        text = f"{rule.action!r} is not Allow, Deny, Log or Pass; the rule denies"
    elif action == "pass" and key.kind == "Profile":
        text = "a profile has no next tier to pass to; the rule denies"
    else:
        return action
    findings.append(Finding(key, "error", "action", field, text))
    return "deny"


def _protocol(protocol: int | str | None, field: str, faults: list[Fault]) -> int | None:
    if protocol is None or protocol == "":
        return None
    text = str(protocol).lower()
    number = PROTOCOLS.get(text, int(text) if text.isascii() and text.isdigit() else -1)
    if 1 <= number <= 255:
        return number
    faults.append(
        Fault("protocol", field, f"{protocol!r} is no protocol: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, 1-255")
    )
    return None


def _versions(rule: Rule, protocol: int | None, field: str, faults: list[Fault]) -> frozenset[int]:
    implied = {ICMP: frozenset((4,)), ICMPV6: frozenset((6,))}.get(protocol or 0, frozenset((4, 6)))
    if rule.ip_version is None:
        return implied
    if rule.ip_version not in (4, 6):
        faults.append(Fault("ipVersion", f"{field}.ipVersion", f"{rule.ip_version} is neither 4 nor 6"))
        return implied
    if rule.ip_version not in implied:
        faults.append(Fault("ipVersion", f"{field}.ipVersion", f"{rule.ip_version} contradicts the protocol"))
        return implied
    return frozenset((rule.ip_version,))


def _icmp(icmp: ICMPFields | None, protocol: int | None, field: str, faults: list[Fault]) -> ICMPMatch | None:
    if icmp is None or (icmp.type is None and icmp.code is None):
        return None
    if protocol not in (ICMP, ICMPV6):
        faults.append(Fault("icmp", field, "only with protocol ICMP or ICMPv6"))
    elif icmp.type is None or not 0 <= icmp.type <= 254 or not 0 <= (icmp.code or 0) <= 255:
        faults.append(Fault("icmp", field, "needs a type of 0-254, and a code of 0-255 if any"))
    else:
        return ICMPMatch(icmp.type, icmp.code)
    return None


def _with_usable_ports(match: EntityMatch, protocol: int | None, field: str, faults: list[Fault]) -> EntityMatch:
    """Numbers need a protocol that has ports; names stand for protocol and number."""
    if protocol in PORT_PROTOCOLS:
        return match
    usable = match
    if match.ports is not None and (match.ports.ranges or protocol is not None):
        faults.append(Fault("ports", f"{field}.ports", _NO_PORTS))
        usable = replace(usable, ports=None)
    if match.not_ports is not None and (match.not_ports.ranges or protocol is not None):
        faults.append(Fault("ports", f"{field}.notPorts", _NO_PORTS))
        usable = replace(usable, not_ports=None)
    return usable


def _narrowed(rule: RuleMatch) -> frozenset[int]:
    """A list of networks, negated or not, leaves the IP versions it speaks of; one that negates everything, none."""
    versions = rule.versions
    for entity in (rule.source, rule.destination):
        for networks in (entity.nets, entity.not_nets):
            if networks:
                versions &= frozenset(network.version for network in networks)
        versions -= frozenset(version for version in versions if _is_everything(entity.not_nets, version))
    return versions


def _is_everything(networks: tuple[Network, ...], version: int) -> bool:
    cover = covering(networks, version)
    return bool(cover) and cover[0].prefixlen == 0

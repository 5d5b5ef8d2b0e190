"""One rule of Calico as nft rules: usually one, or one per IP version where addresses are compared.

A selector is a set of endpoints' addresses and, where network sets are among its members, a set of intervals beside
it; a positive match on both is two rules. Ports by number and by name are alternatives in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product

from calico_libnetwork.dataplane.rules import names
from calico_libnetwork.model.selector import Selector, parse
from calico_libnetwork.policy.entity import EntityMatch, Network, PortMatch, covering
from calico_libnetwork.policy.rule import PROTOCOLS, Action, ICMPMatch, RuleMatch
from calico_libnetwork.policy.settings import Options

EVERY_ENDPOINT = parse("all()")
# by IP version, the set that holds the networks among a selector's members, where there are any
NetworkSetNames = Callable[[Selector], Mapping[int, str]]

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_LOG_PREFIX_LIMIT = 127


def protocol_text(number: int) -> str:
    return _PROTOCOL_NAMES.get(number, str(number))


def port_sets(rule: RuleMatch) -> Iterable[tuple[Selector, str]]:
    """The named ports a rule speaks of, each with the selector of the endpoints that may define it."""
    for entity in (rule.source, rule.destination):
        for ports in (entity.ports, entity.not_ports):
            if ports is not None:
                yield from ((entity.selector or EVERY_ENDPOINT, name) for name in ports.names)


def verdict_text(action: Action, options: Options, log_prefix: str) -> str:
    if action == "allow":
        return "accept"
    if action == "deny":
        return options.deny
    if action == "pass":
        return f"meta mark set meta mark | {options.pass_mark:#010x} return"
    limit = f"limit rate {options.log_limit} burst {options.log_burst} packets " if options.log_limit else ""
    return f'{limit}log prefix "{log_prefix[:_LOG_PREFIX_LIMIT]}" level info'


def rule_texts(rule: RuleMatch, verdict: str, network_sets: NetworkSetNames) -> list[str]:
    if rule.versions == {4, 6} and not _compares_addresses(rule):
        return [_joined(_protocol(rule), _plain_ports(rule), verdict)]
    texts: list[str] = []
    for version in sorted(rule.versions):
        alternatives = (
            _addresses(rule.source, version, "saddr", network_sets),
            _addresses(rule.destination, version, "daddr", network_sets),
            _ports(rule, rule.source, version, "s"),
            _ports(rule, rule.destination, version, "d"),
        )
        family = f"meta nfproto ipv{version}"
        texts += [
            _joined(family, _protocol(rule), *chosen, _icmp(rule, version), verdict)
            for chosen in product(*alternatives)
        ]
    return texts


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _compares_addresses(rule: RuleMatch) -> bool:
    entities = (rule.source, rule.destination)
    return any(
        entity.nets or entity.not_nets or entity.selector or entity.not_selector or _has_names(entity)
        for entity in entities
    )


def _has_names(entity: EntityMatch) -> bool:
    return any(ports is not None and ports.names for ports in (entity.ports, entity.not_ports))


def _protocol(rule: RuleMatch) -> str:
    return _joined(
        "" if rule.protocol is None else f"meta l4proto {protocol_text(rule.protocol)}",
        "" if rule.not_protocol is None else f"meta l4proto != {protocol_text(rule.not_protocol)}",
    )


def _addresses(entity: EntityMatch, version: int, side: str, network_sets: NetworkSetNames) -> list[str]:
    field = f"{'ip' if version == 4 else 'ip6'} {side}"
    conditions = _joined(
        _networks(entity.nets, version, f"{field} "),
        _networks(entity.not_nets, version, f"{field} != "),
        "" if entity.not_selector is None else _outside(entity.not_selector, version, field, network_sets),
    )
    selector = entity.selector
    if selector is None:
        return [conditions]
    return [_joined(conditions, f"{field} @{name}") for name in _set_names(selector, version, network_sets)]


def _outside(selector: Selector, version: int, field: str, network_sets: NetworkSetNames) -> str:
    return _joined(*(f"{field} != @{name}" for name in _set_names(selector, version, network_sets)))


def _set_names(selector: Selector, version: int, network_sets: NetworkSetNames) -> list[str]:
    found = network_sets(selector).get(version)
    return [names.address_set(version, selector), *([found] if found else [])]


def _networks(networks: tuple[Network, ...], version: int, match: str) -> str:
    """No text where every address of the version is meant; the rule asks for the version anyway."""
    cover = covering(networks, version)
    if not cover or cover[0].prefixlen == 0:
        return ""
    return match + names.anonymous(map(names.network_text, cover))


def _plain_ports(rule: RuleMatch) -> str:
    return _joined(_ports(rule, rule.source, 4, "s")[0], _ports(rule, rule.destination, 4, "d")[0])


def _ports(rule: RuleMatch, entity: EntityMatch, version: int, side: str) -> list[str]:
    field = f"{protocol_text(rule.protocol or 0)} {side}port"
    address = f"{'ip' if version == 4 else 'ip6'} {side}addr"
    named = f"{address} . meta l4proto . th {side}port"
    selector = entity.selector or EVERY_ENDPOINT
    conditions = ""
    if entity.not_ports is not None:
        conditions = _joined(
            f"{field} != {_ranges(entity.not_ports)}" if entity.not_ports.ranges else "",
            *(f"{named} != @{names.port_set(version, selector, name)}" for name in entity.not_ports.names),
        )
    if entity.ports is None:
        return [conditions]
    alternatives = [f"{field} {_ranges(entity.ports)}"] if entity.ports.ranges else []
    alternatives += [f"{named} @{names.port_set(version, selector, name)}" for name in entity.ports.names]
    return [_joined(conditions, alternative) for alternative in alternatives]


def _ranges(ports: PortMatch) -> str:
    return names.anonymous(str(first) if first == last else f"{first}-{last}" for first, last in ports.ranges)


def _icmp(rule: RuleMatch, version: int) -> str:
    word = "icmp" if version == 4 else "icmpv6"
    return _joined(_icmp_is(rule.icmp, word), _icmp_is_not(rule.not_icmp, word))


def _icmp_is(icmp: ICMPMatch | None, word: str) -> str:
    if icmp is None:
        return ""
    return f"{word} type {icmp.type}" + ("" if icmp.code is None else f" {word} code {icmp.code}")


def _icmp_is_not(icmp: ICMPMatch | None, word: str) -> str:
    if icmp is None:
        return ""
    if icmp.code is None:
        return f"{word} type != {icmp.type}"
    return f"{word} type . {word} code != {{ {icmp.type} . {icmp.code} }}"

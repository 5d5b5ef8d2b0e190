"""Why a rule does not match a packet, in words; the first condition that fails."""

from __future__ import annotations

from collections.abc import Iterator

from calico_libnetwork.policy.entity import EntityMatch, Network, PortMatch
from calico_libnetwork.policy.flow import Address, Flow, protocol_name
from calico_libnetwork.policy.membership import Membership
from calico_libnetwork.policy.rule import PORT_PROTOCOLS, ICMPMatch, RuleMatch


def mismatch(rule: RuleMatch, flow: Flow, membership: Membership) -> str:
    """ "" if every condition holds."""
    return next(_mismatches(rule, flow, membership), "")


def _mismatches(rule: RuleMatch, flow: Flow, membership: Membership) -> Iterator[str]:
    if flow.version not in rule.versions:
        yield f"the rule is not for IPv{flow.version}"
    if rule.protocol is not None and rule.protocol != flow.protocol:
        yield f"it is for {protocol_name(rule.protocol)}, and this is {protocol_name(flow.protocol)}"
    if rule.not_protocol is not None and rule.not_protocol == flow.protocol:
        yield f"it is for everything but {protocol_name(flow.protocol)}"
    if rule.icmp is not None and not _is_icmp(rule.icmp, flow):
        yield f"it is for ICMP {_icmp_text(rule.icmp)}"
    if rule.not_icmp is not None and _is_icmp(rule.not_icmp, flow):
        yield f"it is for everything but ICMP {_icmp_text(rule.not_icmp)}"
    yield from _entity(rule.source, flow, membership, "source")
    yield from _entity(rule.destination, flow, membership, "destination")


def _entity(match: EntityMatch, flow: Flow, membership: Membership, side: str) -> Iterator[str]:
    address, port = (flow.source, flow.source_port) if side == "source" else (flow.destination, flow.destination_port)
    if match.nets and not _inside(address, match.nets):
        yield f"{side} {address} is not in {_listed(match.nets)}"
    if match.not_nets and _inside(address, match.not_nets):
        yield f"{side} {address} is in {_listed(match.not_nets)}"
    if match.selector is not None and not membership.selected(match.selector, address):
        owners = "" if membership.owners(address) else ": it belongs to no endpoint or network set"
        yield f"{side} {address} is not selected by {match.selector.canonical}{owners}"
    if match.not_selector is not None and membership.selected(match.not_selector, address):
        yield f"{side} {address} is selected by {match.not_selector.canonical}"
    if match.ports is not None and not _has_port(match.ports, match, flow, membership, address, port):
        yield f"{side} port {port} is not among {_port_text(match.ports)}"
    if match.not_ports is not None and _has_port(match.not_ports, match, flow, membership, address, port):
        yield f"{side} port {port} is among {_port_text(match.not_ports)}"


def _has_port(
    ports: PortMatch, match: EntityMatch, flow: Flow, membership: Membership, address: Address, port: int
) -> bool:
    if flow.protocol in PORT_PROTOCOLS and any(first <= port <= last for first, last in ports.ranges):
        return True
    return any(
        membership.has_port(name, match.selector, address, protocol=flow.protocol, port=port) for name in ports.names
    )


def _inside(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _is_icmp(icmp: ICMPMatch, flow: Flow) -> bool:
    return icmp.type == flow.icmp_type and icmp.code in (None, flow.icmp_code)


def _icmp_text(icmp: ICMPMatch) -> str:
    return f"type {icmp.type}" + ("" if icmp.code is None else f" code {icmp.code}")


def _listed(networks: tuple[Network, ...]) -> str:
    return ", ".join(map(str, networks))


def _port_text(ports: PortMatch) -> str:
    numbers = [str(first) if first == last else f"{first}-{last}" for first, last in ports.ranges]
    return ", ".join([*numbers, *ports.names])

"""One side of a rule, source or destination, in the form that can be matched: networks, selectors, ports.

A match that cannot be read becomes a fault and is left out here; what that does to the rule is the rule's decision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.resources import EntityRule, Port
from calico_libnetwork.model.selector import Comparison, Has, Membership, Not, Selector, conjunction, parse
from calico_libnetwork.policy.findings import Fault

Network = IPv4Network | IPv6Network

NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
NAMESPACE_PREFIX = "pcns."
SERVICE_ACCOUNT_PREFIX = "pcsa."

_NETWORK = re.compile(r"[0-9a-fA-F:.]+(/[0-9]{1,3})?")
_MAPPED = IPv6Network("::ffff:0:0/96")
_PORT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_PORT_RANGE = re.compile(r"(\d{1,5})(?::(\d{1,5}))?")
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class PortMatch:
    """Any of the inclusive ``ranges``, which are disjoint and in order, or a port known by one of ``names``."""

    ranges: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EntityMatch:
    """What an address and port must be; ``nets`` and ``not_nets`` empty mean no condition.

    ``selector`` matches addresses of the endpoints and network sets it selects; ``not_selector`` every other address.
    """

    nets: tuple[Network, ...] = ()
    not_nets: tuple[Network, ...] = ()
    selector: Selector | None = None
    not_selector: Selector | None = None
    ports: PortMatch | None = None
    not_ports: PortMatch | None = None
    never: bool = False

    def selectors(self) -> Iterable[Selector]:
        return (selector for selector in (self.selector, self.not_selector) if selector is not None)


def compile_entity(entity: EntityRule, *, namespace: str, field: str, faults: list[Fault]) -> EntityMatch:
    """``namespace`` is that of the policy, "" for a global one; ``field`` the path of ``entity``."""
    services = entity.services is not None
    if services:
        text = "Kubernetes services do not exist here, so this matches nothing"
        faults.append(Fault("services", f"{field}.services", text))
    return EntityMatch(
        nets=_networks(entity.nets, f"{field}.nets", faults),
        not_nets=_networks(entity.not_nets, f"{field}.notNets", faults),
        selector=_positive_selector(entity, namespace, field, faults),
        not_selector=_selector(entity.not_selector, f"{field}.notSelector", faults),
        ports=_ports(entity.ports, f"{field}.ports", faults),
        not_ports=_ports(entity.not_ports, f"{field}.notPorts", faults),
        never=services,
    )


def parse_network(text: str) -> Network:
    """A CIDR, host bits ignored, or an address. Raises ``ValueError``.

    An IPv4 address in IPv6's clothes is the IPv4 address, as in Calico: no packet ever carries the other.
    """
    if _NETWORK.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no address or CIDR")
    network = ip_network(text, strict=False)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen))
    return network


def covering(networks: Iterable[Network], version: int) -> list[Network]:
    """The fewest networks of one IP version that hold the same addresses; disjoint, as intervals must be."""
    if version == 4:
        return list(collapse_addresses([network for network in networks if isinstance(network, IPv4Network)]))
    return list(collapse_addresses([network for network in networks if isinstance(network, IPv6Network)]))


def _networks(texts: tuple[str, ...] | None, field: str, faults: list[Fault]) -> tuple[Network, ...]:
    """Nothing if any of them is unreadable: half a list would make a Deny narrower."""
    networks: list[Network] = []
    for position, text in enumerate(texts or ()):
        try:
            networks.append(parse_network(text))
        except ValueError:
            faults.append(Fault("nets", f"{field}[{position}]", f"{text!r} is no address or CIDR"))
            return ()
    return tuple(networks)


def _selector(text: str, field: str, faults: list[Fault]) -> Selector | None:
    if not text:
        return None
    try:
        selector = parse(text)
    except InvalidResource as error:
        faults.append(Fault("selector", field, str(error)))
        return None
    if selector.mentions_global:
        faults.append(Fault("selector", field, "global() may only stand alone in a rule's namespaceSelector"))
        return None
    return selector


def _positive_selector(entity: EntityRule, namespace: str, field: str, faults: list[Fault]) -> Selector | None:
    parts: list[Selector] = []
    accounts = entity.service_accounts
    if entity.namespace_selector:
        parts += _namespace_selector(entity.namespace_selector, f"{field}.namespaceSelector", faults)
    elif namespace and (entity.selector or entity.not_selector or accounts):
        parts.append(in_namespace(namespace))
    if accounts:
        parts += _service_accounts(accounts, f"{field}.serviceAccounts", faults)
    own = _selector(entity.selector, f"{field}.selector", faults)
    if own is not None:
        parts.append(own)
    return conjunction(parts) if parts else None


def in_namespace(namespace: str) -> Selector:
    return Selector(Comparison(NAMESPACE_LABEL, "==", namespace))


def namespace_selector(text: str) -> Selector:
    """On the labels of namespaces, as endpoints carry them. Raises ``InvalidResource``."""
    return parse(text).prefixed(NAMESPACE_PREFIX, everything=Selector(Has(NAMESPACE_LABEL)))


def service_account_selector(text: str) -> Selector:
    return parse(text).prefixed(SERVICE_ACCOUNT_PREFIX, everything=Selector(Has(SERVICE_ACCOUNT_LABEL)))


def _namespace_selector(text: str, field: str, faults: list[Fault]) -> list[Selector]:
    try:
        if parse(text).is_global:
            return [Selector(Not(Has(NAMESPACE_LABEL)))]
    except InvalidResource as error:
        faults.append(Fault("selector", field, str(error)))
        return []
    return [] if _selector(text, field, faults) is None else [namespace_selector(text)]


def _service_accounts(accounts: dict[str, object], field: str, faults: list[Fault]) -> list[Selector]:
    parts: list[Selector] = []
    names, text = accounts.get("names") or [], accounts.get("selector") or ""
    if not isinstance(names, list) or not isinstance(text, str):
        faults.append(Fault("serviceAccounts", field, "names must be a list and selector a text"))
        return []
    if names:
        values = frozenset(str(name) for name in names)
        parts.append(Selector(Membership(SERVICE_ACCOUNT_LABEL, "in", values)))
    if text and _selector(text, f"{field}.selector", faults) is not None:
        parts.append(service_account_selector(text))
    return parts


def _ports(ports: tuple[Port, ...] | None, field: str, faults: list[Fault]) -> PortMatch | None:
    ranges: list[tuple[int, int]] = []
    names: list[str] = []
    for position, port in enumerate(ports or ()):
        numbers = _PORT_RANGE.fullmatch(str(port))
        if numbers is not None:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if 1 <= first <= last <= _LARGEST_PORT:
                ranges.append((first, last))
                continue
        elif _PORT_NAME.fullmatch(str(port)):
            names.append(str(port))
            continue
        faults.append(Fault("ports", f"{field}[{position}]", f"{port!r} is no port, range first:last or port name"))
        return None
    if not ranges and not names:
        return None
    return PortMatch(_disjoint(ranges), tuple(sorted(set(names))))


def _disjoint(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)

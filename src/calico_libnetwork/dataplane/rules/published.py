"""Ports of this host that lead to its containers: the elements by which a new connection gets its real destination.

Who records an endpoint sees to it that nobody else has the port. Where two have it all the same, a crash has left the
older one, so the newer one gets what comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from calico_libnetwork.dataplane.rules import names, skeleton
from calico_libnetwork.dataplane.rules.endpoints import LocalEndpoint, PublishedPort
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.policy.findings import Finding

_ANY = (IPv4Address(0), IPv6Address(0))

_Element = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Claim:
    """``port`` is None for what only goes with others."""

    endpoint: LocalEndpoint
    port: PublishedPort | None
    target: str


@dataclass(slots=True)
class Published:
    table: Table
    _endpoints: dict[str, LocalEndpoint] = field(default_factory=dict)
    _claims: dict[_Element, dict[str, _Claim]] = field(default_factory=dict)
    _contested: set[_Element] = field(default_factory=set)
    _datagram_ports: set[int] = field(default_factory=set)

    def put(self, interface: str, endpoint: LocalEndpoint) -> None:
        self.remove(interface)
        if not endpoint.published:
            return
        self._endpoints[interface] = endpoint
        for element, claim in _claims(endpoint):
            self._claims.setdefault(element, {})[interface] = claim
            self._settle(element)
        self._datagram_ports |= {port.host_port for port in endpoint.published if port.protocol == "udp"}

    def remove(self, interface: str) -> None:
        endpoint = self._endpoints.pop(interface, None)
        if endpoint is None:
            return
        for element, _ in _claims(endpoint):
            self._claims[element].pop(interface, None)
            self._settle(element)

    def take_datagram_ports(self) -> frozenset[int]:
        ports = frozenset(self._datagram_ports)
        self._datagram_ports.clear()
        return ports

    def findings(self) -> Iterator[Finding]:
        for element in self._contested:
            claims = self._claims[element].values()
            winner = max(claims, key=_rank)
            for claim in claims:
                if claim is not winner and claim.port is not None:
                    shown = f"port {claim.port.host_port}/{claim.port.protocol} of this host"
                    text = f"{shown} is published for {winner.endpoint.key}, and not for this endpoint"
                    yield Finding(claim.endpoint.key, "error", "published-port", "spec.ports", text)

    def _settle(self, element: _Element) -> None:
        claims = self._claims[element]
        if claims:
            self.table.elements.want(element, max(claims.values(), key=_rank).target)
        else:
            del self._claims[element]
            self.table.elements.unwant(element)
        if len(claims) > 1:
            self._contested.add(element)
        else:
            self._contested.discard(element)


def _rank(claim: _Claim) -> tuple[str, str]:
    return claim.endpoint.created, claim.endpoint.key.name


def _claims(endpoint: LocalEndpoint) -> Iterator[tuple[_Element, _Claim]]:
    """A container that reaches itself through the host would be answered by its own address, and drop that."""
    for version, (everywhere, at_address) in skeleton.PUBLISHED.items():
        target = next((address for address in endpoint.addresses if address.version == version), None)
        if target is None:
            continue
        text = names.address_text(target)
        yield (skeleton.HAIRPIN[version], f"{text} . {text}"), _Claim(endpoint, None, "")
        for port in endpoint.published:
            claim = _Claim(endpoint, port, f"{text} . {port.port}")
            key = f"{port.protocol} . {port.host_port}"
            address = port.host_address
            if address is None or (address in _ANY and address.version == version):
                yield (everywhere, key), claim
            elif address.version == version:
                yield (at_address, f"{names.address_text(address)} . {key}"), claim

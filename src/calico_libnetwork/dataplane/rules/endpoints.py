"""Resources as the rules see them: the workloads of this node, and the owners of addresses everywhere."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from calico_libnetwork.dataplane.rules import names
from calico_libnetwork.dataplane.rules.members import Owner
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import CONTAINER_ID, EndpointPort, HostEndpoint, NetworkSet, WorkloadEndpoint
from calico_libnetwork.policy.entity import Network, parse_network
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.rule import PORT_PROTOCOLS, PROTOCOLS

T = TypeVar("T")

_PORT_PROTOCOL_NAMES = {PROTOCOLS[name]: name for name in ("tcp", "udp", "sctp")}


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """``host_port`` of this host leads to ``port`` of the endpoint; at ``host_address`` alone, if that is not None."""

    protocol: str
    port: int
    host_port: int
    host_address: IPv4Address | IPv6Address | None


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A workload endpoint of this node as the kernel shall know it.

    ``rank`` decides between endpoints that name one interface: the lowest has it. ``container`` is Docker's id of the
    container, "" while that is not known. ``created`` is RFC 3339, "" where the writer left it out.
    """

    key: ResourceKey
    interface: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    mac: str
    profiles: tuple[str, ...]
    spoofable: tuple[Network, ...]
    rank: tuple[str, ...]
    container: str = ""
    published: tuple[PublishedPort, ...] = ()
    created: str = ""


def is_local(key: ResourceKey, resource: WorkloadEndpoint, node: str) -> bool:
    """The name's first segment decides, as in Felix; a name of one segment leaves it to the spec."""
    start = f"{node.replace('-', '--')}-"
    if key.name.startswith(start):
        return not key.name.startswith("-", len(start))  # a doubled dash is one inside the segment
    return "-" not in key.name.replace("--", "") and resource.spec.node == node


def workload_addresses(
    key: ResourceKey, resource: WorkloadEndpoint, findings: list[Finding]
) -> tuple[IPv4Address | IPv6Address, ...]:
    """None of them for an endpoint that Calico ignores."""
    place = _Place(key, "endpoint", "spec.ipNetworks", "single address")
    return _each_read(resource.spec.ip_networks, _single_address, place, findings)


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a list of texts, and what they should be."""

    key: ResourceKey
    feature: str
    field: str
    wanted: str


def _each_read(
    texts: tuple[str, ...] | None, read: Callable[[str], T], place: _Place, findings: list[Finding]
) -> tuple[T, ...]:
    """Once each; what is none of them is left out with a finding."""
    found: dict[T, None] = {}
    for position, text in enumerate(texts or ()):
        try:
            found[read(text)] = None
        except ValueError:
            said = f"{text!r} is no {place.wanted}; it is left out"
            findings.append(Finding(place.key, "error", place.feature, f"{place.field}[{position}]", said))
    return tuple(found)


def _single_address(text: str) -> IPv4Address | IPv6Address:
    """Ten thousand of these are read at a start: the library's own reading would take five times as long."""
    base, _, length = text.partition("/")
    if length not in ("", "128" if ":" in base else "32"):
        raise ValueError(text)
    try:
        if ":" in base:
            return IPv6Address(socket.inet_pton(socket.AF_INET6, base))
        return IPv4Address(socket.inet_pton(socket.AF_INET, base))
    except OSError as error:
        raise ValueError(text) from error


def local_endpoint(
    key: ResourceKey,
    resource: WorkloadEndpoint,
    addresses: tuple[IPv4Address | IPv6Address, ...],
    findings: list[Finding],
) -> LocalEndpoint | None:
    spec = resource.spec
    if not names.is_interface_name(spec.interface_name):
        text = f"{spec.interface_name!r} is no interface name; the endpoint stays closed"
        findings.append(Finding(key, "error", "endpoint", "spec.interfaceName", text))
        return None
    spoofable: list[Network] = []
    for position, text in enumerate(spec.allow_spoofed_source_prefixes or ()):
        try:
            spoofable.append(parse_network(text))
        except ValueError:
            field = f"spec.allowSpoofedSourcePrefixes[{position}]"
            findings.append(Finding(key, "error", "endpoint", field, f"{text!r} is no CIDR; it is left out"))
    return LocalEndpoint(
        key,
        spec.interface_name,
        addresses,
        mac=spec.mac,
        profiles=tuple(spec.profiles or ()),
        spoofable=tuple(spoofable),
        rank=(spec.orchestrator, key.namespace, spec.workload or spec.pod, spec.endpoint, key.name),
        container=resource.annotations.get(CONTAINER_ID, ""),
        published=_published_ports(key, spec.ports, findings) if spec.ports else (),
        created=resource.metadata.creation_timestamp or "",
    )


def _published_ports(
    key: ResourceKey, ports: tuple[EndpointPort, ...], findings: list[Finding]
) -> tuple[PublishedPort, ...]:
    """One without a port of the host is a name for policies and nothing else."""
    found = []
    for position, port in enumerate(ports):
        if not port.host_port:
            continue
        try:
            found.append(_published_port(port))
        except ValueError as error:
            text = f"{error}; it is not published"
            findings.append(Finding(key, "error", "published-port", f"spec.ports[{position}]", text))
    return tuple(found)


def _published_port(port: EndpointPort) -> PublishedPort:
    """Raises ``ValueError``."""
    number = _protocol_number(port.protocol)
    if number not in PORT_PROTOCOLS:
        raise ValueError(f"{port.protocol!r} is no protocol with ports")
    for each in (port.port, port.host_port):
        if not 1 <= each <= 65535:
            raise ValueError(f"{each} is no port")
    address = ip_address(port.host_ip) if port.host_ip else None
    if address is not None and address.is_loopback:
        raise ValueError(f"{address} leads to no container")
    return PublishedPort(_PORT_PROTOCOL_NAMES[number], port.port, port.host_port, address)


def _protocol_number(protocol: int | str) -> int:
    text = str(protocol).lower()
    return PROTOCOLS.get(text, int(text) if text.isascii() and text.isdigit() else 0)


def workload_owner(addresses: tuple[IPv4Address | IPv6Address, ...], resource: WorkloadEndpoint) -> Owner:
    return _endpoint_owner(addresses, resource.spec.ports)


def host_owner(key: ResourceKey, resource: HostEndpoint, findings: list[Finding]) -> Owner:
    place = _Place(key, "host-endpoint", "spec.expectedIPs", "address")
    return _endpoint_owner(_each_read(resource.spec.expected_ips, ip_address, place, findings), resource.spec.ports)


def network_set_owner(key: ResourceKey, resource: NetworkSet, findings: list[Finding]) -> Owner:
    place = _Place(key, "nets", "spec.nets", "address or CIDR")
    return Owner(networks=_each_read(resource.spec.nets, parse_network, place, findings))


def _endpoint_owner(addresses: tuple[IPv4Address | IPv6Address, ...], ports: tuple[EndpointPort, ...] | None) -> Owner:
    texts = tuple((address.version, names.address_text(address)) for address in addresses)
    named = []
    for port in ports or ():
        number = _protocol_number(port.protocol)
        if number in PORT_PROTOCOLS and 1 <= port.port <= 65535:
            suffix = f"{_PORT_PROTOCOL_NAMES[number]} . {port.port}"
            named += [(port.name, version, f"{text} . {suffix}") for version, text in texts]
    return Owner(texts, ports=tuple(dict.fromkeys(named)))

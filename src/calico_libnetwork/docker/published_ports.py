"""The ports that ``docker run -p`` asks for, and those of the host that a workload endpoint has got. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from calico_libnetwork.errors import Refused
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.resources import EndpointPort

PORT_MAP = "com.docker.network.portmap"
PORT_NAME = "published"
"""Of all of them: by it a policy means what is published and nothing else."""

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class AskedPort:
    """One ``-p``: to a port of the host from ``first`` to ``last``, to any where both are 0."""

    protocol: str
    port: int
    host_address: Address | None
    first: int
    last: int

    def __str__(self) -> str:
        ports = f"{self.first}-{self.last}" if self.last > self.first else str(self.first or "")
        return _shown(self.host_address, ports, self.port, self.protocol)


@dataclass(frozen=True, slots=True)
class HostPort:
    """``host_port`` leads to ``port`` of the container; at ``host_address`` alone, if that is not None."""

    protocol: str
    port: int
    host_port: int
    host_address: Address | None

    def __str__(self) -> str:
        return _shown(self.host_address, str(self.host_port), self.port, self.protocol)

    @property
    def outside(self) -> str:
        """The host's side of it."""
        address = f" at {self.host_address}" if self.host_address is not None else ""
        return f"port {self.host_port}/{self.protocol} of this host{address}"

    def serves(self, version: int) -> bool:
        return self.host_address is None or self.host_address.version == version

    def overlaps(self, other: HostPort) -> bool:
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        mine, theirs = self.host_address, other.host_address
        if mine is None or theirs is None or mine == theirs:
            return True
        return mine.version == theirs.version and (mine.is_unspecified or theirs.is_unspecified)


def asked_ports(options: Mapping[str, Any] | None) -> tuple[AskedPort, ...]:
    """Those that name a port first, or another might be given it. Raises ``Refused`` for what Docker has never sent."""
    asked = (options or {}).get(PORT_MAP)
    found = map(_asked_port, asked) if isinstance(asked, list) else ()
    return tuple(sorted(found, key=lambda port: (port.first == 0, port.port, port.protocol, port.first)))


def _asked_port(port: Any) -> AskedPort:
    try:
        first = int(port.get("HostPort") or 0)
        number = int(port["Proto"])
        return AskedPort(
            protocol=_PROTOCOLS.get(number, str(number)),
            port=int(port["Port"]),
            host_address=ip_address(port["HostIP"]) if port.get("HostIP") else None,
            first=first,
            last=max(first, int(port.get("HostPortEnd") or 0)) if first else 0,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"Docker asks to publish {port!r}, which is no port; correct the option -p") from error


def objection(asked: AskedPort, versions: Iterable[int]) -> str:
    """Why it cannot be published for a container with addresses of these IP versions; "" if it can."""
    address = asked.host_address
    if asked.protocol not in _PROTOCOLS.values():
        return "its protocol has no ports"
    if address is not None and address.is_loopback:
        return "the host's loopback leads to no container; use an address of the host"
    if address is not None and address.version not in versions:
        return f"the container has no IPv{address.version} address"
    return ""


def read_ports(ports: Iterable[EndpointPort] | None) -> tuple[HostPort, ...]:
    """Those of a stored endpoint that are published, as far as they can be read."""
    found = []
    for port in ports or ():
        if port.host_port:
            with contextlib.suppress(ValueError):
                address = ip_address(port.host_ip) if port.host_ip else None
                found.append(HostPort(str(port.protocol).lower(), port.port, port.host_port, address))
    return tuple(found)


def write_ports(ports: Iterable[HostPort]) -> list[Document]:
    """As ``spec.ports``."""
    return [
        {
            "name": PORT_NAME,
            "protocol": port.protocol.upper(),
            "port": port.port,
            "hostPort": port.host_port,
            "hostIP": str(port.host_address or ""),
        }
        for port in ports
    ]


def listed(ports: Iterable[AskedPort | HostPort]) -> str:
    """As ``docker run -p`` takes them."""
    return ", ".join(map(str, ports))


def _shown(address: Address | None, host_ports: str, port: int, protocol: str) -> str:
    host = f"[{address}]" if address is not None and address.version == 6 else str(address or "")
    outside = "".join(f"{part}:" for part in (host, host_ports) if part)
    return f"{outside}{port}/{protocol}"

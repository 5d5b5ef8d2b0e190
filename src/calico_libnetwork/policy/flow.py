"""The first packet of a flow, as policy looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from calico_libnetwork.policy.rule import PROTOCOLS

Address = IPv4Address | IPv6Address

_NAMES = {PROTOCOLS["tcp"]: "TCP", PROTOCOLS["udp"]: "UDP", PROTOCOLS["icmp"]: "ICMP", PROTOCOLS["icmpv6"]: "ICMPv6"}
_NAMES |= {PROTOCOLS["sctp"]: "SCTP", PROTOCOLS["udplite"]: "UDPLite"}


@dataclass(frozen=True, slots=True)
class Flow:
    """Ports are 0 where the protocol has none or they do not matter; ICMP's type and code are apart."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None

    @property
    def version(self) -> int:
        return self.source.version


def protocol_name(number: int) -> str:
    return _NAMES.get(number, f"protocol {number}")

"""An interface's kernel settings as netlink reports them with the link: one message instead of ten files. Pure.

The numbers are positions in the kernel's arrays (linux/ip.h, linux/ipv6.h), part of its stable interface.
"""

from __future__ import annotations

import socket
import struct

from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.netlink import Message, attributes

_IFLA_AF_SPEC, _IFLA_INET_CONF, _IFLA_INET6_CONF = 26, 1, 2
_IFLA_INET6_ADDR_GEN_MODE = 8
_IPV4 = {"forwarding": 0, "proxy_arp": 2, "rp_filter": 7}
_IPV6 = {"forwarding": 0, "accept_ra": 3, "proxy_ndp": 22, "disable_ipv6": 26, "accept_dad": 27, "ndisc_notify": 29}


def parse_settings(message: Message) -> dict[str, str]:
    """By the keys and in the words of ``sysctl``; what the kernel does not report is left out."""
    name = rtnetlink.parse_link(message).name
    families = attributes(rtnetlink.link_attributes(message).get(_IFLA_AF_SPEC, b""))
    ipv4 = attributes(families.get(socket.AF_INET, b""))
    ipv6 = attributes(families.get(socket.AF_INET6, b""))
    settings = _named(f"ipv4/conf/{name}/", _IPV4, ipv4.get(_IFLA_INET_CONF, b""))
    settings |= _named(f"ipv6/conf/{name}/", _IPV6, ipv6.get(_IFLA_INET6_CONF, b""))
    if _IFLA_INET6_ADDR_GEN_MODE in ipv6:
        settings[f"ipv6/conf/{name}/addr_gen_mode"] = str(ipv6[_IFLA_INET6_ADDR_GEN_MODE][0])
    return settings


def _named(prefix: str, positions: dict[str, int], values: bytes) -> dict[str, str]:
    numbers = struct.unpack(f"={len(values) // 4}i", values)
    return {prefix + key: str(numbers[position]) for key, position in positions.items() if position < len(numbers)}

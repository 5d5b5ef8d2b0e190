"""rtnetlink's messages for VXLAN devices and their forwarding entries, beside ``rtnetlink``. Pure.

Constants carry the kernel's own names and values (linux/if_link.h, neighbour.h).
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from dataclasses import dataclass

from calico_libnetwork.dataplane.netlink import CREATE, REPLACE, Message, Request, attribute, attributes, u32
from calico_libnetwork.dataplane.rtnetlink import (
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    IPAddress,
    create_link,
    link_mac,
    link_mtu,
    link_name,
    mac_bytes,
    mac_text,
)

_AF_BRIDGE = 7
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NUD_PERMANENT, _NTF_SELF = 0x80, 0x02
_NDA_DST, _NDA_LLADDR = 1, 2
_IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 18, 1, 2
_ID, _LINK, _LOCAL, _LEARNING, _PORT, _LOCAL6 = 1, 3, 4, 7, 15, 17


@dataclass(frozen=True, slots=True)
class VxlanInfo:
    """What cannot be changed once the device exists. ``parent`` is an interface's index."""

    vni: int
    port: int
    local: IPAddress | None
    parent: int
    learning: bool = False


@dataclass(frozen=True, slots=True)
class ForwardingEntry:
    """Frames for ``mac`` go to the host ``underlay``."""

    index: int
    mac: str
    underlay: IPAddress


def create_vxlan(name: str, info: VxlanInfo, *, mac: str, mtu: int) -> Request:
    data = [
        u32(_ID, info.vni),
        attribute(_LEARNING, bytes([info.learning])),
        attribute(_PORT, struct.pack("!H", info.port)),
    ]
    if info.parent:
        data.append(u32(_LINK, info.parent))
    if info.local is not None:
        data.append(attribute(_LOCAL if info.local.version == 4 else _LOCAL6, info.local.packed))
    return create_link("vxlan", [link_name(name), link_mac(mac), link_mtu(mtu)], data)


def parse_vxlan(message: Message) -> VxlanInfo | None:
    """Of a link message; None for a device of another kind."""
    link = attributes(attributes(message.body, 16).get(_IFLA_LINKINFO, b""))
    if link.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != b"vxlan":
        return None
    data = attributes(link.get(_IFLA_INFO_DATA, b""))
    local = data.get(_LOCAL) or data.get(_LOCAL6)
    return VxlanInfo(
        vni=_number(data.get(_ID)),
        port=int.from_bytes(data.get(_PORT, b""), "big"),
        local=ipaddress.ip_address(local) if local else None,
        parent=_number(data.get(_LINK)),
        learning=any(data.get(_LEARNING, b"")),
    )


def replace_forwarding(entry: ForwardingEntry) -> Request:
    return Request(RTM_NEWNEIGH, _forwarding(entry) + attribute(_NDA_DST, entry.underlay.packed), CREATE | REPLACE)


def delete_forwarding(entry: ForwardingEntry) -> Request:
    return Request(RTM_DELNEIGH, _forwarding(entry) + attribute(_NDA_DST, entry.underlay.packed))


LIST_FORWARDING = (RTM_GETNEIGH, _NEIGHBOUR.pack(_AF_BRIDGE, 0, 0, 0, 0))


def parse_forwarding(message: Message) -> ForwardingEntry | None:
    """None for entries of other devices than tunnels, and for a VXLAN device's default destination."""
    family, index, _state, _flags, _kind = _NEIGHBOUR.unpack_from(message.body)
    attrs = attributes(message.body, 12)
    if family != _AF_BRIDGE or _NDA_DST not in attrs or _NDA_LLADDR not in attrs or not any(attrs[_NDA_LLADDR]):
        return None
    return ForwardingEntry(index, mac_text(attrs[_NDA_LLADDR]), ipaddress.ip_address(attrs[_NDA_DST]))


def _forwarding(entry: ForwardingEntry) -> bytes:
    head = _NEIGHBOUR.pack(_AF_BRIDGE, entry.index, _NUD_PERMANENT, _NTF_SELF, 0)
    return head + attribute(_NDA_LLADDR, mac_bytes(entry.mac))


def _number(payload: bytes | None) -> int:
    return int.from_bytes(payload or b"", sys.byteorder)

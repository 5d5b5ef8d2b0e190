"""rtnetlink's messages: links, addresses, routes and neighbours, to requests and from notifications. Pure.

Interfaces are indices here; their names belong to the callers. Constants carry the kernel's own names and values
(linux/if_link.h, rtnetlink.h, neighbour.h).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from calico_libnetwork.dataplane.netlink import (
    CREATE,
    EXCL,
    REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text,
    u32,
)

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNETCONF = 80

GROUP_LINK, GROUP_NEIGHBOUR = 1, 3
GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE = 5, 7
GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE = 9, 11
GROUP_IPV4_SETTINGS, GROUP_IPV6_SETTINGS = 24, 25

_NETCONF_INDEX, _NETCONF_FORWARDING, _NETCONF_RP_FILTER, _NETCONF_PROXY = 1, 2, 3, 5
_NETCONF_SWITCHES = (_NETCONF_FORWARDING, _NETCONF_PROXY)

TABLE_MAIN = 254
PROTOCOL_KERNEL, PROTOCOL_BOOT, PROTOCOL_STATIC, PROTOCOL_CALICO = 2, 3, 4, 80

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")

_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 27, 28, 29, 37
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_EXT_MASK_SKIP_STATISTICS = 8

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 8, 0x2

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE = (
    1, 4, 5, 6, 7, 8, 9, 15,
)  # fmt: skip
_RTAX_MTU = 2
_RTNH_F_ONLINK, _RTM_F_CLONED = 0x4, 0x200
SCOPE_HOST = 254
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_ANY = 0, 253, 255
_IPV6_DEFAULT_METRIC = 1024

_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_BYTES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}


class RouteKind(IntEnum):
    UNICAST = 1
    BLACKHOLE = 6
    UNREACHABLE = 7


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """``up``: set up by the administrator; ``running``: and has a carrier. ``mac`` is "" where a link has none.

    ``peer`` is a veth's other end, 0 when that is in another namespace.
    """

    index: int
    name: str
    up: bool
    running: bool
    mac: str
    mtu: int
    kind: str
    group: int
    master: int
    peer: int


@dataclass(frozen=True, slots=True)
class AddressInfo:
    index: int
    address: IPAddress
    prefix_length: int
    scope: int


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """A route of any table. ``index`` is 0 for kinds without a device; ``metric`` as the kernel reports it.

    ``gateway`` is None and ``index`` 0 for routes over several next hops, which this project does not make.
    """

    destination: IPNetwork
    index: int = 0
    gateway: IPAddress | None = None
    kind: int = RouteKind.UNICAST
    protocol: int = PROTOCOL_BOOT
    metric: int = 0
    mtu: int = 0
    source: IPAddress | None = None
    onlink: bool = False
    table: int = TABLE_MAIN


@dataclass(frozen=True, slots=True)
class NeighbourInfo:
    index: int
    address: IPAddress
    mac: str
    permanent: bool = True


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(payload: bytes) -> str:
    return payload.hex(":")


def create_veth(host: Sequence[bytes], peer: Sequence[bytes]) -> Request:
    """Both ends from ``link_*`` attributes; refused with EEXIST if either name is taken."""
    peer_end = attribute(_VETH_INFO_PEER, _LINK.pack(0, 0, 0, 0, 0) + b"".join(peer))
    body = _LINK.pack(0, 0, 0, 0, 0) + b"".join(host)
    kind = attribute(_IFLA_INFO_KIND, b"veth") + nested(_IFLA_INFO_DATA, peer_end)
    return Request(RTM_NEWLINK, body + nested(_IFLA_LINKINFO, kind), CREATE | EXCL)


def create_link(kind: str, attrs: Sequence[bytes], data: Sequence[bytes] = ()) -> Request:
    info = text(_IFLA_INFO_KIND, kind) + (nested(_IFLA_INFO_DATA, *data) if data else b"")
    body = _LINK.pack(0, 0, 0, 0, 0) + b"".join(attrs) + nested(_IFLA_LINKINFO, info)
    return Request(RTM_NEWLINK, body, CREATE | EXCL)


def link_name(name: str) -> bytes:
    return text(_IFLA_IFNAME, name)


def link_mac(mac: str) -> bytes:
    return attribute(_IFLA_ADDRESS, mac_bytes(mac))


def link_mtu(mtu: int) -> bytes:
    return u32(_IFLA_MTU, mtu)


def link_group(group: int) -> bytes:
    return u32(_IFLA_GROUP, group)


def link_namespace(descriptor: int) -> bytes:
    return u32(_IFLA_NET_NS_FD, descriptor)


def set_link(index: int, *attrs: bytes, up: bool | None = None) -> Request:
    flags, change = (_IFF_UP if up else 0), (0 if up is None else _IFF_UP)
    return Request(RTM_NEWLINK, _LINK.pack(0, 0, index, flags, change) + b"".join(attrs))


def get_link(name: str) -> Request:
    body = _LINK.pack(0, 0, 0, 0, 0) + link_name(name) + u32(_IFLA_EXT_MASK, _EXT_MASK_SKIP_STATISTICS)
    return Request(RTM_GETLINK, body)


def delete_link(index: int) -> Request:
    return Request(RTM_DELLINK, _LINK.pack(0, 0, index, 0, 0))


def delete_links_of_group(group: int) -> Request:
    return Request(RTM_DELLINK, _LINK.pack(0, 0, 0, 0, 0) + link_group(group))


LIST_LINKS = (RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0) + u32(_IFLA_EXT_MASK, _EXT_MASK_SKIP_STATISTICS))


def link_attributes(message: Message) -> dict[int, bytes]:
    return attributes(message.body, 16)


def parse_link(message: Message) -> LinkInfo:
    _family, _type, index, flags, _change = _LINK.unpack_from(message.body)
    attrs = link_attributes(message)
    info = attributes(attrs.get(_IFLA_LINKINFO, b""))
    return LinkInfo(
        index=index,
        name=attrs.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        mac=mac_text(attrs[_IFLA_ADDRESS]) if _IFLA_ADDRESS in attrs else "",
        mtu=_number(attrs.get(_IFLA_MTU)),
        kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        group=_number(attrs.get(_IFLA_GROUP)),
        master=_number(attrs.get(_IFLA_MASTER)),
        peer=0 if _IFLA_LINK_NETNSID in attrs else _number(attrs.get(_IFLA_LINK)),
    )


def add_address(index: int, address: IPAddress, prefix_length: int, *, scope: int = 0) -> Request:
    """Without duplicate address detection; an address that is there already stays."""
    body = _address_body(index, address, prefix_length, scope) + u32(_IFA_FLAGS, _IFA_F_NODAD)
    return Request(RTM_NEWADDR, body, CREATE | REPLACE)


def delete_address(index: int, address: IPAddress, prefix_length: int) -> Request:
    return Request(RTM_DELADDR, _address_body(index, address, prefix_length))


def list_addresses(index: int = 0) -> tuple[int, bytes]:
    return RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, index)


def parse_address(message: Message) -> AddressInfo | None:
    family, prefix_length, _flags, scope, index = _ADDRESS.unpack_from(message.body)
    attrs = attributes(message.body, 8)
    payload = attrs.get(_IFA_LOCAL) or attrs.get(_IFA_ADDRESS)
    if family not in _BYTES or payload is None:
        return None
    return AddressInfo(index, ipaddress.ip_address(payload), prefix_length, scope)


def _address_body(index: int, address: IPAddress, prefix_length: int, scope: int = 0) -> bytes:
    head = _ADDRESS.pack(family_of(address), prefix_length, 0, scope, index)
    return head + attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)


def replace_route(route: RouteInfo) -> Request:
    """Makes the route, or puts it in the place of one with the same destination and metric."""
    attrs = _route_identity(route)
    if route.gateway is not None:
        attrs.append(attribute(_RTA_GATEWAY, route.gateway.packed))
    if route.source is not None:
        attrs.append(attribute(_RTA_PREFSRC, route.source.packed))
    if route.mtu:
        attrs.append(nested(_RTA_METRICS, u32(_RTAX_MTU, route.mtu)))
    body = _route_head(route, kind=route.kind, protocol=route.protocol, scope=_scope(route)) + b"".join(attrs)
    return Request(RTM_NEWROUTE, body, CREATE | REPLACE)


def delete_route(route: RouteInfo) -> Request:
    body = _route_head(route, kind=0, protocol=route.protocol, scope=_SCOPE_ANY) + b"".join(_route_identity(route))
    return Request(RTM_DELROUTE, body)


def list_routes(family: int) -> tuple[int, bytes]:
    """Every route of the main table."""
    return RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + u32(_RTA_TABLE, TABLE_MAIN)


def parse_route(message: Message) -> RouteInfo | None:
    """None for cached and multicast routes and such, which are nobody's configuration."""
    family, length, _, _, table, protocol, _, kind, flags = _ROUTE.unpack_from(message.body)
    if family not in _BYTES or flags & _RTM_F_CLONED:
        return None
    attrs = attributes(message.body, 12)
    destination = network(family, attrs.get(_RTA_DST, b""), length)
    several = _RTA_MULTIPATH in attrs
    return RouteInfo(
        destination=destination,
        index=0 if kind != RouteKind.UNICAST or several else _number(attrs.get(_RTA_OIF)),
        gateway=ipaddress.ip_address(attrs[_RTA_GATEWAY]) if _RTA_GATEWAY in attrs and not several else None,
        kind=kind,
        protocol=protocol,
        metric=_number(attrs.get(_RTA_PRIORITY)),
        mtu=_number(attributes(attrs.get(_RTA_METRICS, b"")).get(_RTAX_MTU)),
        source=ipaddress.ip_address(attrs[_RTA_PREFSRC]) if _RTA_PREFSRC in attrs else None,
        onlink=bool(flags & _RTNH_F_ONLINK),
        table=_number(attrs[_RTA_TABLE]) if _RTA_TABLE in attrs else table,
    )


def stored_metric(destination: IPNetwork, metric: int) -> int:
    """The metric that the kernel reports for a route made with ``metric``: IPv6 has no 0."""
    return metric or (_IPV6_DEFAULT_METRIC if destination.version == 6 else 0)


def _route_head(route: RouteInfo, *, kind: int, protocol: int, scope: int) -> bytes:
    flags = _RTNH_F_ONLINK if route.onlink else 0
    family = family_of(route.destination.network_address)
    table = route.table if route.table < 256 else 0
    return _ROUTE.pack(family, route.destination.prefixlen, 0, 0, table, protocol, scope, kind, flags)


def _route_identity(route: RouteInfo) -> list[bytes]:
    attrs = [attribute(_RTA_DST, route.destination.network_address.packed), u32(_RTA_TABLE, route.table)]
    if route.index:
        attrs.append(u32(_RTA_OIF, route.index))
    if route.metric:
        attrs.append(u32(_RTA_PRIORITY, route.metric))
    return attrs


def _scope(route: RouteInfo) -> int:
    on_device = route.kind == RouteKind.UNICAST and route.gateway is None
    return _SCOPE_LINK if on_device and route.destination.version == 4 else _SCOPE_UNIVERSE


def parse_changed_settings(message: Message) -> tuple[int, bool]:
    """The interface, by index, and whether the change is none that a workload's interface is given when it is made."""
    attrs = attributes(message.body, 4)
    numbers = {kind: struct.unpack("=i", payload)[0] for kind, payload in attrs.items() if len(payload) == 4}
    odd = _NETCONF_RP_FILTER in numbers or any(numbers.get(kind, 1) != 1 for kind in _NETCONF_SWITCHES)
    return numbers.get(_NETCONF_INDEX, 0), odd


def replace_neighbour(neighbour: NeighbourInfo) -> Request:
    """A permanent entry."""
    body = _neighbour_head(neighbour, _NUD_PERMANENT) + attribute(_NDA_LLADDR, mac_bytes(neighbour.mac))
    return Request(RTM_NEWNEIGH, body, CREATE | REPLACE)


def delete_neighbour(neighbour: NeighbourInfo) -> Request:
    return Request(RTM_DELNEIGH, _neighbour_head(neighbour, 0))


LIST_NEIGHBOURS = (RTM_GETNEIGH, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))


def parse_neighbour(message: Message) -> NeighbourInfo | None:
    family, index, state, _flags, _kind = _NEIGHBOUR.unpack_from(message.body)
    attrs = attributes(message.body, 12)
    if family not in _BYTES or _NDA_DST not in attrs:
        return None
    mac = mac_text(attrs[_NDA_LLADDR]) if _NDA_LLADDR in attrs else ""
    return NeighbourInfo(index, ipaddress.ip_address(attrs[_NDA_DST]), mac, permanent=bool(state & _NUD_PERMANENT))


def _neighbour_head(neighbour: NeighbourInfo, state: int) -> bytes:
    head = _NEIGHBOUR.pack(family_of(neighbour.address), neighbour.index, state, 0, 1)
    return head + attribute(_NDA_DST, neighbour.address.packed)


def family_of(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def network(family: int, payload: bytes, length: int) -> IPNetwork:
    packed = payload or bytes(_BYTES[family])
    if family == socket.AF_INET:
        return IPv4Network((packed, length))
    return IPv6Network((packed, length))


def _number(payload: bytes | None) -> int:
    return int(_U32.unpack(payload)[0]) if payload else 0

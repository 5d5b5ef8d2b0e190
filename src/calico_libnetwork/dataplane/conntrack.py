"""Forgetting the connections of an address that changed hands: a new owner must not inherit what was established.

And those of datagrams to a port of the host that has become a container's: they would keep it from getting any.

A request without a tuple would empty the whole table; none is ever made here.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.netlink import Message, Request, Socket, attribute, attributes, nested, u32
from calico_libnetwork.dataplane.rtnetlink import IPAddress
from calico_libnetwork.errors import KernelRefused

_GET, _DELETE, _STATISTICS = 1 << 8 | 1, 1 << 8 | 2, 1 << 8 | 5
_ENTRIES = 1
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ZONE, _FILTER = 1, 2, 18, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_IPV4_SOURCE, _IPV6_SOURCE = 1, 3
_PROTOCOL_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTER_ORIGINAL_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FILTER_SOURCE_ADDRESS = 1
_DIRECTIONS = (_TUPLE_ORIGINAL, _TUPLE_REPLY)
_NO_FILTERED_DELETE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class Conntrack:
    """Over a ``Kernel`` of the netfilter protocol."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def forget(self, addresses: Iterable[IPAddress]) -> None:
        """Deletes the flows from these addresses and, by their replies' source, those to them."""
        await self._kernel.run(_forget, tuple(addresses))

    async def forget_datagrams(self, ports: Collection[int]) -> None:
        """Deletes the UDP flows to these ports that go where they were sent, by no translation."""
        if ports:
            await self._kernel.run(_forget_datagrams, frozenset(ports))


def _forget(kernel: Socket, addresses: tuple[IPAddress, ...]) -> None:
    if not addresses or not _entries(kernel):
        return
    listed: list[IPAddress] = [address for address in addresses if address.version == 6]
    filtered = [address for address in addresses if address.version == 4]
    selections = [_selection(address, direction) for address in filtered for direction in _DIRECTIONS]
    answers = kernel.exchange([Request(_DELETE, selection) for selection in selections])
    for position, answer in enumerate(answers):
        if answer.error is None or answer.error.errno == errno.ENOENT:
            continue
        if answer.error.errno not in _NO_FILTERED_DELETE:
            raise answer.error
        listed.append(filtered[position // len(_DIRECTIONS)])
    _delete_listed(kernel, listed)


def _entries(kernel: Socket) -> int:
    """How many connections this namespace has: without any, the kernel need not look through its whole table."""
    message = kernel.ask(Request(_STATISTICS, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)))
    return int.from_bytes(attributes(message.body, 4)[_ENTRIES], "big")


def _delete_listed(kernel: Socket, addresses: Collection[IPAddress]) -> None:
    """Flow by flow. Kernels before 6.11 delete no other way, and for IPv6 even 6.18's filter is inverted: it takes
    every flow but those of the address.
    """
    requests: list[Request] = []
    for version in {address.version for address in addresses}:
        wanted = [address.packed for address in addresses if address.version == version]
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        flows = kernel.dump(_GET, struct.pack("=BBH", family, 0, 0))
        candidates = (flow for flow in flows if any(packed in flow.body for packed in wanted))
        requests += [_deletion(flow) for flow in candidates if not _sources(flow).isdisjoint(wanted)]
    _delete_each(kernel, requests)


def _forget_datagrams(kernel: Socket, ports: Collection[int]) -> None:
    flows = [
        flow
        for family in (socket.AF_INET, socket.AF_INET6)
        for flow in kernel.dump(_GET, struct.pack("=BBH", family, 0, 0))
    ]
    _delete_each(kernel, [_deletion(flow) for flow in flows if _untranslated_datagrams(flow, ports)])


def _untranslated_datagrams(flow: Message, ports: Collection[int]) -> bool:
    attrs = attributes(flow.body, 4)
    there, back = (attributes(attrs[direction]) for direction in _DIRECTIONS)
    if attributes(there[_TUPLE_PROTOCOL])[_PROTOCOL_NUMBER] != bytes([socket.IPPROTO_UDP]):
        return False
    source, destination = _ends(there)
    return int.from_bytes(destination[1], "big") in ports and _ends(back) == (destination, source)


def _ends(of: Mapping[int, bytes]) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """Address and port of source and destination."""
    addresses, protocol = attributes(of[_TUPLE_IP]), attributes(of[_TUPLE_PROTOCOL])
    source = _IPV4_SOURCE if _IPV4_SOURCE in addresses else _IPV6_SOURCE
    return (addresses[source], protocol[_SOURCE_PORT]), (addresses[source + 1], protocol[_DESTINATION_PORT])


def _delete_each(kernel: Socket, requests: Sequence[Request]) -> None:
    for answer in kernel.exchange(requests):
        if answer.error is not None and answer.error.errno != errno.ENOENT:
            raise KernelRefused(f"a connection cannot be deleted: {answer.error}", answer.error.errno)


def _sources(message: Message) -> set[bytes]:
    """The source addresses of both directions."""
    attrs = attributes(message.body, 4)
    addresses = (attributes(attributes(attrs[direction])[_TUPLE_IP]) for direction in _DIRECTIONS)
    return {packed for found in addresses for kind, packed in found.items() if kind in (_IPV4_SOURCE, _IPV6_SOURCE)}


def _selection(address: IPAddress, direction: int) -> bytes:
    """All IPv4 flows whose tuple of that direction has this source address."""
    flags = [0, 0]
    flags[_DIRECTIONS.index(direction)] = _FILTER_SOURCE_ADDRESS
    return (
        struct.pack("=BBH", socket.AF_INET, 0, 0)
        + nested(direction, nested(_TUPLE_IP, attribute(_IPV4_SOURCE, address.packed)))
        + nested(_FILTER, u32(_FILTER_ORIGINAL_FLAGS, flags[0]), u32(_FILTER_REPLY_FLAGS, flags[1]))
    )


def _deletion(message: Message) -> Request:
    attrs = attributes(message.body, 4)
    body = message.body[:4] + nested(_TUPLE_ORIGINAL, attrs[_TUPLE_ORIGINAL])
    if _ZONE in attrs:
        body += attribute(_ZONE, attrs[_ZONE])
    return Request(_DELETE, body)

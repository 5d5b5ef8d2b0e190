"""The IPIP device ``tunl0``, where the kernel has one: up, with its address and MTU.

The kernel makes ``tunl0`` itself when it loads IPIP, and it cannot be deleted; so it is adopted, never made anew.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv4Address

from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.kernel import Failure
from calico_libnetwork.dataplane.netlink import Socket
from calico_libnetwork.errors import KernelRefused
from calico_libnetwork.routing.remote_routes import IPIP_INTERFACE


@dataclass(frozen=True, slots=True)
class IpipDevice:
    """``address`` None while this node has no tunnel address yet."""

    address: IPv4Address | None
    mtu: int


def supported(kernel: Socket) -> bool:
    """Whether this kernel has IPIP; asking loads its module."""
    try:
        kernel.do(rtnetlink.create_link("ipip", [rtnetlink.link_name(IPIP_INTERFACE)]))
    except KernelRefused as error:
        return error.errno == errno.EEXIST
    return True


def ensure(kernel: Socket, wanted: IpipDevice) -> list[Failure]:
    """To be run in the kernel's thread, after ``supported`` has said yes."""
    try:
        link = rtnetlink.parse_link(kernel.ask(rtnetlink.get_link(IPIP_INTERFACE)))
        if not link.up or link.mtu != wanted.mtu:
            kernel.do(rtnetlink.set_link(link.index, rtnetlink.link_mtu(wanted.mtu), up=True))
        _set_address(kernel, link.index, wanted.address)
    except KernelRefused as error:
        return [Failure(IPIP_INTERFACE, f"IPIP device {IPIP_INTERFACE} cannot be set up: {error}")]
    return []


def release(kernel: Socket) -> None:
    """For uninstalling: as the kernel made it, down and without an address."""
    try:
        link = rtnetlink.parse_link(kernel.ask(rtnetlink.get_link(IPIP_INTERFACE)))
    except KernelRefused:
        return
    _set_address(kernel, link.index, None)
    kernel.do(rtnetlink.set_link(link.index, up=False))


def _set_address(kernel: Socket, index: int, wanted: IPv4Address | None) -> None:
    held = set()
    for message in kernel.dump(*rtnetlink.list_addresses(index)):
        info = rtnetlink.parse_address(message)
        if info is not None and info.index == index and info.address.version == 4:
            held.add((info.address, info.prefix_length))
    kept = {(wanted, 32)} if wanted is not None else set()
    for address, length in held - kept:
        kernel.do(rtnetlink.delete_address(index, address, length))
    for address, length in kept - held:
        kernel.do(rtnetlink.add_address(index, address, length))

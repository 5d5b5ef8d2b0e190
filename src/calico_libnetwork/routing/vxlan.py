"""VXLAN devices with their addresses, neighbours and forwarding entries: desired, read, written by difference.

A device of our name is ours whoever made it, as it is Calico's own agent's; one that differs in what cannot be
changed is made anew. On it, everything that is not wanted goes, but for link-local addresses.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field

from calico_libnetwork.dataplane import rtnetlink, vxlan_messages
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.dataplane.netlink import Request, Socket
from calico_libnetwork.dataplane.rtnetlink import AddressInfo, LinkInfo, NeighbourInfo
from calico_libnetwork.dataplane.vxlan_messages import ForwardingEntry, VxlanInfo
from calico_libnetwork.errors import KernelRefused
from calico_libnetwork.routing.cluster import FAMILIES
from calico_libnetwork.routing.vtep import DEVICES, RemoteVtep, Vtep, VxlanState

_ABSENT = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)


@dataclass(slots=True)
class _Device:
    """What the kernel holds."""

    link: LinkInfo
    info: VxlanInfo | None
    addresses: set[AddressInfo] = field(default_factory=set)
    neighbours: set[NeighbourInfo] = field(default_factory=set)
    forwarding: set[ForwardingEntry] = field(default_factory=set)


class Vxlan:
    """``stale`` asks the next ``apply`` to read and compare even if nothing else is wanted than before."""

    def __init__(self, kernel: Kernel, links: Links) -> None:
        self._kernel = kernel
        self._links = links
        self._applied: VxlanState | None = None
        self.stale = True

    async def apply(self, state: VxlanState) -> list[Failure]:
        """Before the routes that lead through the devices."""
        if state == self._applied and not self.stale:
            return []
        self.stale = False
        failures: list[Failure] = []
        for family in FAMILIES:
            vtep = state.devices.get(family)
            if vtep is None:
                continue
            parent = self._links.by_name.get(vtep.parent)
            try:
                failures += await self._kernel.run(_ensure, vtep, state.remotes.get(family, ()), parent)
            except KernelRefused as error:
                failures.append(Failure(DEVICES[family], f"VXLAN device {DEVICES[family]} cannot be set up: {error}"))
        self._applied = None if failures else state
        return failures

    async def sweep(self, state: VxlanState) -> None:
        """After the routes: a device that is not wanted any more may have carried traffic up to now."""
        for family in FAMILIES:
            if family not in state.devices and DEVICES[family] in self._links.by_name:
                await self._kernel.run(_remove, DEVICES[family])


def _remove(kernel: Socket, name: str) -> None:
    device = _read_link(kernel, name)
    if device is not None:
        kernel.do(rtnetlink.delete_link(device.link.index))


def _ensure(kernel: Socket, vtep: Vtep, remotes: Iterable[RemoteVtep], parent: LinkInfo | None) -> list[Failure]:
    wanted = VxlanInfo(vtep.vni, vtep.port, vtep.local, parent.index if parent is not None else 0)
    device = _read_link(kernel, vtep.name)
    if device is not None and (device.info != wanted or device.link.mac != vtep.mac):
        kernel.do(rtnetlink.delete_link(device.link.index))
        device = None
    if device is None:
        kernel.do(vxlan_messages.create_vxlan(vtep.name, wanted, mac=vtep.mac, mtu=vtep.mtu))
        device = _read_link(kernel, vtep.name)
        if device is None:
            return [Failure(vtep.name, f"VXLAN device {vtep.name} was removed by somebody else just now")]
    if device.link.mtu != vtep.mtu or not device.link.up:
        kernel.do(rtnetlink.set_link(device.link.index, rtnetlink.link_mtu(vtep.mtu), up=True))
    _read_entries(kernel, device)
    return _write(kernel, vtep.name, [*_address_changes(device, vtep), *_entry_changes(device, remotes)])


def _write(kernel: Socket, name: str, requests: list[Request]) -> list[Failure]:
    return [
        Failure(name, f"VXLAN device {name}: an entry cannot be written: {answer.error}")
        for answer in kernel.exchange(requests)
        if answer.error is not None and answer.error.errno not in _ABSENT
    ]


def _address_changes(device: _Device, vtep: Vtep) -> Iterable[Request]:
    index, length = device.link.index, vtep.address.max_prefixlen
    for held in device.addresses:
        if not held.address.is_link_local and (held.address, held.prefix_length) != (vtep.address, length):
            yield rtnetlink.delete_address(index, held.address, held.prefix_length)
    if (vtep.address, length) not in {(held.address, held.prefix_length) for held in device.addresses}:
        yield rtnetlink.add_address(index, vtep.address, length)


def _entry_changes(device: _Device, remotes: Iterable[RemoteVtep]) -> Iterable[Request]:
    """New entries before old ones go: a node that changes its address is not lost meanwhile."""
    index = device.link.index
    neighbours = {NeighbourInfo(index, remote.address, remote.mac) for remote in remotes}
    forwarding = {ForwardingEntry(index, remote.mac, remote.underlay) for remote in remotes}
    for neighbour in neighbours - device.neighbours:
        yield rtnetlink.replace_neighbour(neighbour)
    kept = {entry.mac for entry in forwarding}
    for entry in device.forwarding - forwarding:
        if entry.mac not in kept:
            yield vxlan_messages.delete_forwarding(entry)
    for entry in forwarding - device.forwarding:
        yield vxlan_messages.replace_forwarding(entry)
    kept_addresses = {neighbour.address for neighbour in neighbours}
    for neighbour in device.neighbours - neighbours:
        if neighbour.address not in kept_addresses:
            yield rtnetlink.delete_neighbour(neighbour)


def _read_link(kernel: Socket, name: str) -> _Device | None:
    try:
        message = kernel.ask(rtnetlink.get_link(name))
    except KernelRefused as error:
        if error.errno in _ABSENT:
            return None
        raise
    return _Device(rtnetlink.parse_link(message), vxlan_messages.parse_vxlan(message))


def _read_entries(kernel: Socket, device: _Device) -> None:
    index = device.link.index
    for message in kernel.dump(*rtnetlink.list_addresses(index)):
        address = rtnetlink.parse_address(message)
        if address is not None and address.index == index:
            device.addresses.add(address)
    for message in kernel.dump(*rtnetlink.LIST_NEIGHBOURS):
        neighbour = rtnetlink.parse_neighbour(message)
        if neighbour is not None and neighbour.index == index and neighbour.permanent and neighbour.mac:
            device.neighbours.add(neighbour)
    for message in kernel.dump(*vxlan_messages.LIST_FORWARDING):
        entry = vxlan_messages.parse_forwarding(message)
        if entry is not None and entry.index == index:
            device.forwarding.add(entry)

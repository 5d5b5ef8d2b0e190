"""Permanent neighbour entries for local workloads: a container's first packet waits for no ARP or ND.

Permanent entries are neither collected nor counted against ``gc_thresh3``, a limit of 1024 that all namespaces share.
Ours are the permanent ones on ``cali*`` interfaces; what the kernel learns by itself is not looked at.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.delta import Delta
from calico_libnetwork.dataplane.kernel import Failure, Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.netlink import Answer, Socket
from calico_libnetwork.dataplane.rtnetlink import IPAddress, NeighbourInfo
from calico_libnetwork.model.names import INTERFACE_PREFIX

_GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)
_INTERFACE_NOT_READY = (errno.ENETDOWN, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class NeighbourKey:
    interface: str
    address: IPAddress


class Neighbours:
    """Key to MAC. ``stale`` asks the next ``apply`` to read first."""

    def __init__(self, kernel: Kernel, links: Links) -> None:
        self._kernel = kernel
        self._links = links
        self._delta: Delta[NeighbourKey, str] = Delta()
        self.stale = True

    @property
    def desired(self) -> Mapping[NeighbourKey, str]:
        return self._delta.desired

    @property
    def actual(self) -> Mapping[NeighbourKey, str]:
        return self._delta.actual

    def want(self, key: NeighbourKey, mac: str) -> None:
        self._delta.want(key, mac.lower())

    def unwant(self, key: NeighbourKey) -> None:
        self._delta.unwant(key)

    def programmed(self, key: NeighbourKey) -> bool:
        return key in self._delta.desired and self._delta.actual.get(key) == self._delta.desired[key]

    def links_changed(self, changes: LinkChanges) -> None:
        """To be called with what ``Links`` reports."""
        for interface in changes.interfaces:
            self._delta.resume(interface)
        if changes.lost_routes:
            self._forget_behind(changes.lost_routes)
        self.stale |= changes.neighbours

    def _forget_behind(self, interfaces: Collection[str]) -> None:
        for key in [key for key in self._delta.actual if key.interface in interfaces]:
            self._delta.observe_gone(key)

    async def read(self) -> None:
        self.stale = False
        found = await self._kernel.run(_read)
        actual = {}
        for info in found:
            name = self._links.names.get(info.index, "")
            if info.permanent and info.mac and name.startswith(INTERFACE_PREFIX):
                actual[NeighbourKey(name, info.address)] = info.mac
        self._delta.observe_exactly(actual)

    async def apply(self) -> list[Failure]:
        """Writes what differs; one refused entry does not stop the others."""
        if self.stale:
            await self.read()
        changes = self._ready()
        if lost := {key.interface for key in self._delta.removals()} - self._links.by_name.keys():
            self._forget_behind(lost)
        removals = list(self._delta.removals())
        if not changes and not removals:
            return []
        requests = [rtnetlink.replace_neighbour(self._info(key, mac)) for key, mac in changes.items()]
        requests += [rtnetlink.delete_neighbour(self._info(key, "")) for key in removals]
        answers = await self._kernel.run(Socket.exchange, requests)
        failures = [
            self._written(key, mac, answer) for (key, mac), answer in zip(changes.items(), answers, strict=False)
        ]
        failures += [self._removed(key, answer) for key, answer in zip(removals, answers[len(changes) :], strict=True)]
        return [failure for failure in failures if failure is not None]

    def _ready(self) -> dict[NeighbourKey, str]:
        """The entries to be written, but for those whose interface is not there."""
        ready = {}
        for key, mac in self._delta.changes().items():
            if self._links.is_up(key.interface):
                ready[key] = mac
            else:
                self._delta.defer(key, until=key.interface)
        return ready

    def _written(self, key: NeighbourKey, mac: str, answer: Answer) -> Failure | None:
        if answer.error is None:
            self._delta.observe(key, mac)
        elif answer.error.errno not in _INTERFACE_NOT_READY:
            return Failure(key.interface, f"neighbour {key.address} cannot be added: {answer.error}")
        return None

    def _removed(self, key: NeighbourKey, answer: Answer) -> Failure | None:
        if answer.error is None or answer.error.errno in _GONE:
            self._delta.observe_gone(key)
            return None
        return Failure(key.interface, f"neighbour {key.address} cannot be deleted: {answer.error}")

    def _info(self, key: NeighbourKey, mac: str) -> NeighbourInfo:
        link = self._links.by_name.get(key.interface)
        return NeighbourInfo(0 if link is None else link.index, key.address, mac)


def _read(kernel: Socket) -> list[NeighbourInfo]:
    found = (rtnetlink.parse_neighbour(message) for message in kernel.dump(*rtnetlink.LIST_NEIGHBOURS))
    return [info for info in found if info is not None]

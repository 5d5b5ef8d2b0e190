"""The veth pair of a workload: made for the plugin in one step, deleted behind its back.

The host end is the container's gateway for both families: it answers ARP for 169.254.1.1 by proxy, and its
link-local address, derived from the MAC that every host end shares, is the IPv6 gateway.

Deleting a veth takes the kernel some 15 ms whoever asks, but twenty of one link group take no longer than one. So
``schedule_delete`` only sets the host end down, which takes its routes and neighbours away at once, and gives its
name free; a thread of its own then deletes all that wait as one group. A dying interface keeps the prefix ``cali``:
the table drops what comes from an unknown interface of that prefix.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address
from types import TracebackType
from typing import Self

import structlog

from calico_libnetwork.dataplane import rtnetlink, sysctl
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.link_settings import parse_settings
from calico_libnetwork.dataplane.netlink import Message, Request, Socket
from calico_libnetwork.errors import AlreadyExists, DataplaneError, KernelRefused

HOST_MAC = "ee:ee:ee:ee:ee:ee"
DYING_PREFIX = "cali-"  # no endpoint id has a dash
_DYING_NAME_BYTES = 5
_LINK_LOCAL_LENGTH = 64

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VethSpec:
    """``ipv6``: the workload has an IPv6 address and needs a gateway of that family.

    ``carrier``: the container's end is up, too, until it is moved, so that the host end is one that packets can pass.
    """

    host_name: str
    peer_name: str
    peer_mac: str
    mtu: int
    ipv6: bool = True
    may_spoof: bool = False
    carrier: bool = False


@dataclass(frozen=True, slots=True)
class Veth:
    """``gateway_v6`` is the host end's link-local address, None without IPv6."""

    index: int
    gateway_v6: IPv6Address | None


class VethPairs:
    """Creates in the netlink thread, deletes in another. Use as a context; leaving it waits for the deletions."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._deleter = Kernel(name="veth-deleter")
        self._dying: list[int] = []
        self._deletion: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._deleter.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()
        await self._deleter.__aexit__(kind, error, traceback)

    async def create(self, spec: VethSpec) -> Veth:
        """Again for the same endpoint: the pair that is there, if both ends are; else it is made anew."""
        return await self._kernel.run(_create, spec)

    async def delete(self, host_name: str) -> None:
        """Returns when the pair is gone; no such interface is success."""
        await self.schedule_delete(host_name)
        await self.drain()

    async def schedule_delete(self, host_name: str) -> None:
        """Returns when the interface's routes are gone and its name is free; the kernel deletes it soon after."""
        index = await self._kernel.run(_retire, host_name)
        if index is not None:
            self._delete_soon([index])

    async def add_gateway(self, host_name: str, address: IPv6Address) -> None:
        """A further link-local address of the host end; again is success. Raises ``DataplaneError``."""
        await self._kernel.run(_add_gateway, host_name, address)

    async def sweep(self) -> None:
        """Deletes what an earlier process left dying."""
        self._delete_soon(await self._kernel.run(_find_dying))

    async def drain(self) -> None:
        """Waits for the deletions that were scheduled."""
        while self._deletion is not None:
            await asyncio.shield(self._deletion)

    def _delete_soon(self, indices: Iterable[int]) -> None:
        self._dying.extend(indices)
        if self._dying and self._deletion is None:
            self._deletion = asyncio.create_task(self._delete_waiting(), name="delete veths")

    async def _delete_waiting(self) -> None:
        try:
            while self._dying:
                batch, self._dying = self._dying, []
                try:
                    await self._deleter.run(_delete_all, batch)
                except DataplaneError as error:
                    _log.error("deleting interfaces failed", interfaces=len(batch), error=str(error))
        finally:
            self._deletion = None


def _create(kernel: Socket, spec: VethSpec) -> Veth:
    try:
        try:
            made = _make(kernel, spec)
        except KernelRefused as error:
            existing = _find(kernel, spec.host_name) if error.errno == errno.EEXIST else None
            if existing is None:
                raise
            if _is_complete(kernel, existing, spec):
                return Veth(existing.index, _gateway(existing, spec))
            kernel.do(rtnetlink.delete_link(existing.index))
            made = _make(kernel, spec)
    except KernelRefused as error:
        raise DataplaneError(f"interface {spec.host_name} cannot be created: {error}") from error
    try:
        return _configure(kernel, made, spec)
    except BaseException:
        kernel.exchange([rtnetlink.delete_link(rtnetlink.parse_link(made).index)])
        raise


def _is_complete(kernel: Socket, host: rtnetlink.LinkInfo, spec: VethSpec) -> bool:
    """Made by an earlier call, up, and with the container's end still here."""
    if host.kind != "veth":
        raise AlreadyExists(f"interface {spec.host_name} exists and is no veth; delete it")
    peer = _find(kernel, spec.peer_name)
    return host.up and peer is not None and peer.index == host.peer and peer.mac == spec.peer_mac


def _make(kernel: Socket, spec: VethSpec) -> Message:
    """The host end as the kernel reports it."""
    creation = rtnetlink.create_veth(
        host=(
            rtnetlink.link_name(spec.host_name),
            rtnetlink.link_mac(HOST_MAC),
            rtnetlink.link_mtu(spec.mtu),
        ),
        peer=(
            rtnetlink.link_name(spec.peer_name),
            rtnetlink.link_mac(spec.peer_mac),
            rtnetlink.link_mtu(spec.mtu),
        ),
    )
    created, found = kernel.exchange([creation, rtnetlink.get_link(spec.host_name)])
    if created.error is not None:
        raise created.error
    return found.one()


def _configure(kernel: Socket, made: Message, spec: VethSpec) -> Veth:
    """Settings before up: only then does duplicate address detection not delay the first IPv6 packet by 2 s.

    The container's end gets none: the kernel resets them when Docker moves it to another namespace.
    """
    settings = sysctl.workload_settings(spec.host_name, ipv6=spec.ipv6, may_spoof=spec.may_spoof)
    sysctl.ensure_all(settings, parse_settings(made))
    host = rtnetlink.parse_link(made)
    ends = [host.index, host.peer] if spec.carrier and host.peer else [host.index]
    *upped, found = kernel.exchange(
        [*(rtnetlink.set_link(index, up=True) for index in ends), rtnetlink.get_link(spec.host_name)]
    )
    for answer in upped:
        if answer.error is not None:
            raise DataplaneError(f"interface {spec.host_name} cannot be set up: {answer.error}") from answer.error
    return Veth(host.index, _gateway(rtnetlink.parse_link(found.one()), spec))


def _gateway(link: rtnetlink.LinkInfo, spec: VethSpec) -> IPv6Address | None:
    """From the MAC that the kernel reports; the address itself appears when the container's end comes up."""
    if not spec.ipv6 or not sysctl.ipv6_available():
        return None
    return link_local(link.mac)


def link_local(mac: str) -> IPv6Address:
    """The EUI-64 address of ``addr_gen_mode`` 0."""
    octets = rtnetlink.mac_bytes(mac)
    return IPv6Address(
        b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:6],
    )


def _add_gateway(kernel: Socket, host_name: str, address: IPv6Address) -> None:
    link = _find(kernel, host_name)
    if link is None:
        raise DataplaneError(f"interface {host_name} is gone and gets no address")
    kernel.do(rtnetlink.add_address(link.index, address, _LINK_LOCAL_LENGTH))


def _find(kernel: Socket, name: str) -> rtnetlink.LinkInfo | None:
    try:
        return rtnetlink.parse_link(kernel.ask(rtnetlink.get_link(name)))
    except KernelRefused as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _retire(kernel: Socket, host_name: str) -> int | None:
    """Down, then renamed: kernels before 6.2 do not rename an interface that is up."""
    link = _find(kernel, host_name)
    if link is None:
        return None
    requests = [rtnetlink.set_link(link.index, up=False), rtnetlink.set_link(link.index, _dying_name())]
    if link.peer:
        requests.append(rtnetlink.set_link(link.peer, up=False))
        requests.append(rtnetlink.set_link(link.peer, _dying_name()))
    for answer in kernel.exchange(requests):
        if answer.error is not None and answer.error.errno != errno.ENODEV:
            raise DataplaneError(f"interface {host_name} cannot be taken out of use: {answer.error}") from answer.error
    return link.index


def _dying_name() -> bytes:
    return rtnetlink.link_name(DYING_PREFIX + secrets.token_hex(_DYING_NAME_BYTES))


def _find_dying(kernel: Socket) -> list[int]:
    links = [rtnetlink.parse_link(message) for message in kernel.dump(*rtnetlink.LIST_LINKS)]
    return [*{link.index for link in links if link.kind == "veth" and link.name.startswith(DYING_PREFIX)}]


def _delete_all(kernel: Socket, indices: list[int]) -> None:
    """As one link group with a number of its own, since the kernel deletes whatever is in the group."""
    if len(indices) == 1:
        requests: list[Request] = [rtnetlink.delete_link(indices[0])]
    else:
        group = secrets.randbits(31) | 1 << 30
        requests = [rtnetlink.set_link(index, rtnetlink.link_group(group)) for index in indices]
        requests.append(rtnetlink.delete_links_of_group(group))
    for answer in kernel.exchange(requests):
        if answer.error is not None and answer.error.errno != errno.ENODEV:
            raise answer.error

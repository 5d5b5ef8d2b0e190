"""Ports of this host that are held for containers: each by a socket that is bound and never listens.

So the kernel itself says whether a port is free, finds one that is where any will do, and keeps other programs from it,
Docker's own publishing included. What comes from outside is sent on before it gets to the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Protocol

from calico_libnetwork.docker.published_ports import AskedPort, HostPort
from calico_libnetwork.errors import PortInUse, Refused

_ATTEMPTS = 16
_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_LISTENS, _UNCONNECTED = "0A", "07"  # states in the kernel's tables
_STATES = {"tcp": _LISTENS, "udp": _UNCONNECTED}


class Held(Protocol):
    """What keeps a port until it is closed."""

    def close(self) -> None: ...


Hold = Callable[[HostPort, Collection[int]], tuple[Held, int]]
"""For containers with addresses of these IP versions; the port's number with it. Raises ``OSError``."""


class HostPorts:
    """``is_here``: whether an endpoint still exists, for what a crash has left has no port. ``owner``: whose it is."""

    def __init__(self, *, is_here: Callable[[str], bool], owner: Callable[[str], str], hold: Hold) -> None:
        self._is_here = is_here
        self._owner = owner
        self._hold = hold
        self._held: dict[str, dict[HostPort, Held | None]] = {}

    def of(self, endpoint_id: str) -> tuple[HostPort, ...]:
        return tuple(self._held.get(endpoint_id, ()))

    async def take(
        self, endpoint_id: str, asked: Sequence[AskedPort], versions: Collection[int]
    ) -> tuple[HostPort, ...]:
        """All that are asked for, or none. Raises ``PortInUse``, and ``Refused`` for what the host does not have."""
        taken: list[HostPort] = []
        try:
            for port in asked:
                try:
                    taken.append(self._take(endpoint_id, port, versions))
                except PortInUse as error:
                    raise error if error.holder else await _with_process(port, error) from None
        except (PortInUse, Refused):
            self._drop(endpoint_id, taken)
            raise
        return tuple(taken)

    def keep(self, endpoint_id: str, ports: Iterable[HostPort], versions: Collection[int]) -> Iterator[str]:
        """After a restart: what the endpoint has already. Answers what somebody else has taken meanwhile."""
        for port in ports:
            held = self._held.setdefault(endpoint_id, {})
            try:
                held[port], _ = self._hold(port, versions)
            except OSError as error:
                held[port] = None
                yield f"{port.outside}: {error.strerror}"

    def release(self, endpoint_id: str) -> None:
        self._drop(endpoint_id, self.of(endpoint_id))

    def close(self) -> None:
        for endpoint_id in [*self._held]:
            self.release(endpoint_id)

    def _drop(self, endpoint_id: str, ports: Iterable[HostPort]) -> None:
        held = self._held.get(endpoint_id, {})
        for port in ports:
            made = held.pop(port, None)
            if made is not None:
                made.close()
        if not held:
            self._held.pop(endpoint_id, None)

    def _take(self, endpoint_id: str, asked: AskedPort, versions: Collection[int]) -> HostPort:
        refusal = PortInUse(f"no port of this host is free for {asked}; choose one")
        for number in range(asked.first, asked.last + 1) if asked.first else repeat(0, _ATTEMPTS):
            wanted = HostPort(asked.protocol, asked.port, number, asked.host_address)
            try:
                return self._take_one(endpoint_id, wanted, versions)
            except PortInUse as error:
                refusal = error
        if asked.last > asked.first:
            text = f"ports {asked.first} to {asked.last} of this host are all in use; choose others for -p {asked}"
            raise PortInUse(text, refusal.holder)
        raise refusal

    def _take_one(self, endpoint_id: str, wanted: HostPort, versions: Collection[int]) -> HostPort:
        self._refuse_held(wanted)
        try:
            made, number = self._hold(wanted, versions)
        except OSError as error:
            raise _refusal(wanted, error) from error
        got = HostPort(wanted.protocol, wanted.port, number, wanted.host_address)
        try:
            self._refuse_held(got)
        except PortInUse:
            made.close()
            raise
        self._held.setdefault(endpoint_id, {})[got] = made
        return got

    def _refuse_held(self, wanted: HostPort) -> None:
        for holder, held in [*self._held.items()]:
            if any(map(wanted.overlaps, held)):
                if self._is_here(holder):
                    raise PortInUse(f"{wanted.outside} is published for {self._owner(holder)}; choose another", holder)
                self.release(holder)


def bind(port: HostPort, versions: Collection[int]) -> tuple[Held, int]:
    """In the network namespace of this process.

    A server that has just ended leaves connections, past which ``SO_REUSEADDR`` binds; without it afterwards, nobody
    binds past this socket.
    """
    kind, protocol = _KINDS[port.protocol]
    address = port.host_address
    both = address is None and {4, 6} <= set(versions)
    six = address.version == 6 if address is not None else 6 in versions
    with contextlib.ExitStack() as undo:
        made = undo.enter_context(socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind, protocol))
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        past_the_dead = int(kind == socket.SOCK_STREAM and port.host_port != 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, past_the_dead)
        made.bind((str(address or ("::" if six else "0.0.0.0")), port.host_port))  # noqa: S104 - never listens
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        undo.pop_all()
    return made, made.getsockname()[1]


def _refusal(wanted: HostPort, error: OSError) -> PortInUse | Refused:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"{wanted.outside} is in use; choose another")
    if error.errno == errno.EADDRNOTAVAIL:
        return Refused(f"{wanted.host_address} is no address of this host; correct the option -p {wanted}")
    return Refused(f"{wanted.outside} cannot be held for -p {wanted}: {error.strerror}")


async def _with_process(asked: AskedPort, error: PortInUse) -> PortInUse:
    """The refusal of a single port names who has it."""
    if not asked.first == asked.last != 0:
        return error
    wanted = HostPort(asked.protocol, asked.port, asked.first, asked.host_address)
    process = await asyncio.to_thread(_process_with, wanted)
    return PortInUse(f"{wanted.outside} is in use by {process or 'another process'}; choose another")


def _process_with(port: HostPort) -> str:
    """Who listens there, ``nginx (process 123)``; "" where that cannot be seen. Looks through all processes."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for directory in Path("/proc").glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in sockets for link in (directory / "fd").iterdir()):
                return f"{(directory / 'comm').read_text().strip()} (process {directory.name})"
    return ""


def _inodes(port: HostPort) -> Iterator[str]:
    """Columns of the kernel's tables: number, local address, remote address, state, …, inode the tenth."""
    for table in (port.protocol, f"{port.protocol}6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/thread-self/net", table).read_text(encoding="ascii").splitlines()[1:]:
                columns = line.split()
                listens = columns[3] == _STATES.get(port.protocol)
                if listens and int(columns[1].rpartition(":")[2], 16) == port.host_port:
                    yield columns[9]

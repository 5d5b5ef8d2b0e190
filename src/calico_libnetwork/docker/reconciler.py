"""Repairs what crashes leave behind: Docker, workload endpoints, addresses and interfaces are compared, and the odd
one out goes; what Docker runs is recorded again where it is missing.

After a crash Docker tells the driver nothing: its endpoints vanish without a call. Evidence here is always Docker's own
answer, never its silence: a daemon that cannot be asked costs a round. What looks wrong for a moment may be a start
under way, so a suspicion is acted upon when it has lasted; what was there before this process, and is old, has
lasted already.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface
from typing import Any, Literal, Protocol

import structlog

from calico_libnetwork.docker.departures import Departures
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex
from calico_libnetwork.docker.in_flight import InFlight
from calico_libnetwork.docker.networks import Networks
from calico_libnetwork.docker.recording import Recording
from calico_libnetwork.errors import CalicoError, DockerUnavailable
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.names import INTERFACE_PREFIX, endpoint_interface, is_address_handle

PERIOD = 60.0
"""Seconds between two rounds."""
SOON = 2.0
"""Seconds between two rounds, or two looks whether the datastore is back, while something waits for it."""
CONFIRMATION = 45.0
"""Seconds that a suspicion must have lasted."""
SETTLING = 10.0
"""Seconds within which a start under way shows up everywhere."""

_log = structlog.get_logger(__name__)

Kind = Literal["endpoint", "address", "interface", "network"]


class Assignment(Protocol):
    @property
    def address(self) -> Address: ...

    @property
    def handle(self) -> str | None: ...

    @property
    def sequence(self) -> int | None: ...


class Ipam(Protocol):
    def assignments(self, node: str | None = None) -> Sequence[Assignment]: ...

    async def release(self, address: Address, *, handle: str | None = None, sequence: int | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class Suspicion:
    """``subject``: the id of an endpoint or network, an address or an interface name."""

    kind: Kind
    subject: str


@dataclass(frozen=True, slots=True)
class Reading:
    """``docker_ids``, ``docker_addresses``: of all endpoints Docker lists, joining ones included.

    ``taken``: interfaces of endpoints of this node, other orchestrators' too, and those being made.
    ``gone_networks``: recorded by this node and not listed by Docker. ``unnamed``: assigned on this node without a
    handle, as by the plugin that this one replaces; what such an address is for, only its endpoint can tell.
    """

    docker_ids: frozenset[str]
    docker_addresses: frozenset[Address]
    endpoints: Mapping[str, Endpoint]
    assigned: Mapping[Address, Assignment]
    unnamed: Mapping[Address, Assignment]
    reserved: frozenset[Address]
    interfaces: frozenset[str]
    taken: frozenset[str]
    gone_networks: frozenset[str]


def read_docker(networks: Iterable[Mapping[str, Any]]) -> tuple[frozenset[str], frozenset[Address]]:
    """Ids and addresses of the endpoints in ``GET /networks/ID`` answers."""
    ids, addresses = set(), set()
    for network in networks:
        for entry in (network.get("Containers") or {}).values():
            ids.add(str(entry.get("EndpointID") or ""))
            for text in (entry.get("IPv4Address"), entry.get("IPv6Address")):
                if text:
                    addresses.add(ip_interface(text).ip)
    return frozenset(ids - {""}), frozenset(addresses)


def suspicions(reading: Reading) -> Iterator[Suspicion]:
    """What the reading has that nothing accounts for. Pure."""
    used = {address for endpoint in reading.endpoints.values() for address in endpoint.addresses}
    known_interfaces = reading.taken | {endpoint_interface(endpoint_id) for endpoint_id in reading.docker_ids}
    for endpoint_id in reading.endpoints.keys() - reading.docker_ids:
        yield Suspicion("endpoint", endpoint_id)
    for address in reading.assigned.keys() - used - reading.reserved - reading.docker_addresses:
        yield Suspicion("address", str(address))
    for interface in reading.interfaces - known_interfaces:
        yield Suspicion("interface", interface)
    for network_id in reading.gone_networks:
        yield Suspicion("network", network_id)


class DockerView(Protocol):
    async def own_networks(self, known: Collection[str]) -> list[Mapping[str, Any]]:
        """This driver's networks, ``known`` by their ids or not, with their endpoints. Raises ``DockerUnavailable``."""
        ...


class Veths(Protocol):
    async def schedule_delete(self, host_name: str) -> None: ...


class Reconciler:
    """``interfaces`` lists the host's interfaces, ``being_made`` those whose endpoint is not written yet.

    ``forget`` deletes an endpoint with its interface. ``reachable`` says whether the datastore answers as far as known.
    """

    def __init__(
        self,
        *,
        node: str,
        docker: DockerView,
        endpoints: EndpointIndex,
        networks: Networks,
        ipam: Ipam,
        in_flight: InFlight,
        departures: Departures,
        reachable: Callable[[], bool],
        veths: Veths,
        interfaces: Callable[[], Iterable[str]],
        being_made: Callable[[], Iterable[str]],
        forget: Callable[[Endpoint], Awaitable[None]],
        recording: Recording,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._docker = docker
        self._endpoints = endpoints
        self._networks = networks
        self._ipam = ipam
        self._in_flight = in_flight
        self._departures = departures
        self._reachable = reachable
        self._veths = veths
        self._interfaces = interfaces
        self._being_made = being_made
        self._forget = forget
        self._recording = recording
        self._clock = clock
        self._since: dict[Suspicion, float] = {}
        self._hurry = departures.news

    async def run(self) -> None:
        """For ever: a round now, at every ``hurry`` and every so often; sooner while Docker's word is not kept."""
        while True:
            self._hurry.clear()
            try:
                if self._reachable():
                    await self.round()
            except DockerUnavailable as error:
                _log.debug("nothing reconciled", reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._hurry.wait()

    def _pause(self) -> float:
        """Until there may be something to do."""
        if self._departures:
            return SOON
        now = self._clock()
        due = [since + _lasting(found) - now for found, since in self._since.items()]
        if (landing := self._in_flight.first_landing()) is not None:
            due.append(landing)
        return min([PERIOD, *(seconds for seconds in due if seconds > 0)])

    def hurry(self) -> None:
        """Docker was listed anew, or an endpoint went without its word: look now."""
        self._hurry.set()

    async def round(self) -> list[Suspicion]:
        """One comparison; what was repaired. Raises ``DockerUnavailable``."""
        await self._restore_profiles()
        known = self._networks.own() | {endpoint.network_id for endpoint in self._endpoints.of_node()}
        listed = await self._docker.own_networks(known)
        await self._recording.record(listed)
        docker_ids, docker_addresses = read_docker(listed)
        gone = self._networks.own() - {network["Id"] for network in listed}
        reading = self._read(docker_ids, docker_addresses, frozenset(gone))
        self._departures.keep(
            endpoints=reading.endpoints,
            addresses=reading.assigned.keys() - docker_addresses,
            networks=self._networks.own(),
        )
        now = self._clock()
        self._since = {found: self._since.get(found, _first_seen(found, reading, now)) for found in suspicions(reading)}
        repaired = []
        for found, since in list(self._since.items()):
            if (now - since >= _lasting(found) or self._is_certain(found)) and await self._repair(found, reading):
                repaired.append(found)
                del self._since[found]
        return repaired

    def _is_certain(self, found: Suspicion) -> bool:
        """Docker itself has said that it goes."""
        if found.kind == "address":
            return ip_address(found.subject) in self._departures.addresses
        if found.kind == "network":
            return found.subject in self._departures.networks
        return found.kind == "endpoint" and found.subject in self._departures.endpoints

    async def _restore_profiles(self) -> None:
        try:
            restored = await self._networks.restore_profiles()
        except CalicoError as error:
            _log.warning("profiles could not be looked after", reason=str(error))
            return
        for profile in restored:
            _log.info("made a profile anew that endpoints name", profile=profile)

    def _read(
        self, docker_ids: frozenset[str], docker_addresses: frozenset[Address], gone_networks: frozenset[str]
    ) -> Reading:
        own = {endpoint.endpoint_id: endpoint for endpoint in self._endpoints.of_node()}
        here = {each.address: each for each in self._ipam.assignments(self._node)}
        assigned = {address: each for address, each in here.items() if is_address_handle(each.handle, self._node)}
        reserved = {address for address in assigned if self._networks.is_auxiliary(address)}
        return Reading(
            docker_ids,
            docker_addresses,
            own,
            assigned,
            {address: each for address, each in here.items() if each.handle is None},
            frozenset(reserved | {address for address in assigned if address in self._in_flight}),
            frozenset(name for name in self._interfaces() if name.startswith(INTERFACE_PREFIX) and "-" not in name),
            frozenset(each.interface for each in self._endpoints.all() if each.node == self._node)
            | frozenset(self._being_made()),
            gone_networks,
        )

    async def _repair(self, found: Suspicion, reading: Reading) -> bool:
        if found.kind == "network" and self._networks.has_endpoints(found.subject):
            return False
        try:
            if found.kind == "endpoint":
                await self._remove_endpoint(reading.endpoints[found.subject], reading)
            elif found.kind == "address":
                await self._release(ip_address(found.subject), reading)
            elif found.kind == "network":
                await self._networks.remove(found.subject)
            else:
                await self._veths.schedule_delete(found.subject)
        except CalicoError as error:
            _log.warning("left over and not removed yet", what=found.kind, name=found.subject, reason=str(error))
            return False
        _log.info("removed what nothing used any more", what=found.kind, name=found.subject)
        return True

    async def _remove_endpoint(self, endpoint: Endpoint, reading: Reading) -> None:
        await self._forget(endpoint)
        for address in endpoint.addresses - reading.docker_addresses:
            if not self._endpoints.holders(address) and address not in self._in_flight:
                await self._release(address, reading)

    async def _release(self, address: Address, reading: Reading) -> None:
        """As it was assigned when it was read: a new owner since then keeps it."""
        assigned = reading.assigned.get(address) or reading.unnamed.get(address)
        if assigned is not None:
            await self._ipam.release(address, handle=assigned.handle, sequence=assigned.sequence)


def _lasting(found: Suspicion) -> float:
    """Seconds for which it must have looked wrong. An interface without an endpoint is no start under way: those are
    known by name; what is left is somebody else's that has not written its endpoint yet."""
    return SETTLING if found.kind == "interface" else CONFIRMATION


def _first_seen(found: Suspicion, reading: Reading, now: float) -> float:
    """An endpoint that was written long ago, or lost its interface, has lasted already: it had one when written.

    But for one written just now: Docker lists it from Join on, and the kernel's news of its interface may be late.
    """
    if found.kind != "endpoint":
        return now
    endpoint = reading.endpoints[found.subject]
    written = min(now, _seconds(endpoint.created))
    if endpoint.interface not in reading.interfaces and now - written >= SETTLING:
        return now - CONFIRMATION
    return written


def _seconds(timestamp: str) -> float:
    """Since 1970, of an RFC 3339 time; now for one that is missing."""
    try:
        return datetime.fromisoformat(timestamp).astimezone(UTC).timestamp()
    except ValueError:
        return time.time()

"""Docker's NetworkDriver: networks and endpoints as Calico's profiles and workload endpoints.

Everything that can fail is done in CreateEndpoint: on Docker 29 a container whose Join failed loses its network for
good. CreateEndpoint makes the veth pair and then writes the workload endpoint, last and in one transaction with
whatever it depends on; Join only names what is there. Calls may be repeated, come in odd order, or name what this
process has never seen: what counts is the datastore, which every call reads from the cache.
"""

from __future__ import annotations

import contextlib
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Protocol

import structlog

from calico_libnetwork.dataplane.veth import HOST_MAC, Veth, VethSpec, link_local
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Delete, Transaction, unchanged
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.departures import Departures
from calico_libnetwork.docker.endpoint_writer import EndpointWriter, Wanted
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex, chosen_mac, endpoint_key
from calico_libnetwork.docker.in_flight import InFlight
from calico_libnetwork.docker.labelling import Labelling
from calico_libnetwork.docker.networks import Networks
from calico_libnetwork.docker.publishing import Publishing
from calico_libnetwork.docker.removals import Removals, Remover
from calico_libnetwork.docker.returns import Returns
from calico_libnetwork.docker.sandboxes import Sandboxes
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.docker.siblings import Siblings
from calico_libnetwork.errors import (
    AddressInUse,
    AlreadyExists,
    Conflict,
    DataplaneError,
    DatastoreUnavailable,
    InvalidResource,
    NotFound,
    Refused,
)
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import PEER_PREFIX, endpoint_interface

GATEWAY_V4 = IPv4Address("169.254.1.1")
STATUS_DEADLINE = 2.0
"""Seconds that Join waits for the agent; the endpoint is closed until the agent has opened it, so going on is safe."""

_ATTEMPTS = 5
_NAME = re.compile(r"[^\s/:]{1,15}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

_log = structlog.get_logger(__name__)


class Veths(Remover, Protocol):
    async def create(self, spec: VethSpec) -> Veth: ...

    async def add_gateway(self, host_name: str, address: IPv6Address) -> None: ...


class EndpointStatus(Protocol):
    @property
    def needs_carrier(self) -> bool:
        """Whether an endpoint counts as in force only while both ends of its interface are up."""
        ...

    @property
    def publishes_ports(self) -> bool:
        """Whether ports of this host can lead to endpoints."""
        ...

    async def wait(self, key: ResourceKey, timeout: float) -> bool:  # noqa: ASYNC109 - an answer, not an error
        """Whether routes and rules of the endpoint were in force within ``timeout`` seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointParts:
    """What the life of an endpoint touches."""

    endpoints: EndpointIndex
    networks: Networks
    labelling: Labelling
    in_flight: InFlight
    departures: Departures
    returns: Returns
    removals: Removals
    sandboxes: Sandboxes
    siblings: Siblings
    writer: EndpointWriter
    publishing: Publishing


class NetworkDriver:
    def __init__(
        self, settings: DockerSettings, parts: EndpointParts, *, cache: Cache, veths: Veths, status: EndpointStatus
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._veths = veths
        self._status = status
        self._endpoints = parts.endpoints
        self._networks = parts.networks
        self._labelling = parts.labelling
        self._in_flight = parts.in_flight
        self._departures = parts.departures
        self._returns = parts.returns
        self._removals = parts.removals
        self._sandboxes = parts.sandboxes
        self._siblings = parts.siblings
        self._writer = parts.writer
        self._publishing = parts.publishing
        self._gateways_v6: dict[str, IPv6Address | None] = {}  # of endpoints made by this process
        self._chosen_names: dict[str, str] = {}  # a user's for the container's interface, of endpoints as above
        self._creating: set[str] = set()  # host side interfaces

    @property
    def being_made(self) -> frozenset[str]:
        """Host side interfaces whose endpoint is not written yet."""
        return frozenset(self._creating)

    async def create_network(self, request: messages.CreateNetwork) -> None:
        refuse_unsupported(request)
        await self._networks.add(request)

    async def delete_network(self, request: messages.NetworkRequest) -> None:
        try:
            await self._networks.remove(request.network_id)
        except DatastoreUnavailable:
            self._departures.add_network(request.network_id)
            raise
        if any(left.node == self._settings.node for left in self._endpoints.of_network(request.network_id)):
            self._departures.add_network(request.network_id)

    async def create_endpoint(self, request: messages.CreateEndpoint) -> messages.CreatedEndpoint:
        await self._cache.synced()
        interface = request.interface or messages.EndpointInterface()
        addresses = _addresses(interface, request.endpoint_id)
        mac = _user_mac(interface) or chosen_mac(request.endpoint_id)
        chosen_name = _user_name(request.options or {})
        host_name = endpoint_interface(request.endpoint_id)
        if host_name in self._creating:
            raise Conflict(f"interface {host_name} is being created already; try again")
        self._creating.add(host_name)
        try:
            if not self._is_repeated(request, addresses):
                await self._create(request, addresses, mac)
        finally:
            self._creating.discard(host_name)
        if chosen_name:
            self._chosen_names[request.endpoint_id] = chosen_name
        for address in addresses:
            self._in_flight.end(address)
        answer = messages.EndpointInterface(mac_address="" if interface.mac_address else mac)
        return messages.CreatedEndpoint(interface=answer)

    async def delete_endpoint(self, request: messages.EndpointRequest) -> None:
        self._departures.tell(request.endpoint_id)
        self._publishing.forget(request.endpoint_id)
        try:
            await self._cache.synced()
            await self._part(request.endpoint_id)
            await self._delete_with_addresses(request.endpoint_id)
            await self.remove_endpoint(request.endpoint_id)
        except DatastoreUnavailable:
            self._departures.add_endpoint(request.endpoint_id)
            self._removals.start(endpoint_interface(request.endpoint_id))  # Docker goes on without us
            raise

    async def remove_endpoint(self, endpoint_id: str) -> None:
        """Whatever is left of an endpoint of this node; nothing left is success."""
        self._departures.tell(endpoint_id)
        await self._part(endpoint_id)
        self._publishing.forget(endpoint_id)
        self._sandboxes.forget(endpoint_id)
        self._labelling.forget(endpoint_id)
        self._gateways_v6.pop(endpoint_id, None)
        self._chosen_names.pop(endpoint_id, None)
        await self._delete(endpoint_key(self._settings.node, endpoint_id))
        self._removals.start(endpoint_interface(endpoint_id))

    async def _part(self, endpoint_id: str) -> None:
        """Takes its container's other endpoints out of its network; it goes also if somebody keeps changing those."""
        try:
            await self._siblings.settle(endpoint_id)
        except Conflict as error:
            _log.warning("profiles are not those of all networks", endpoint=endpoint_id[:12], reason=str(error))

    async def _delete_with_addresses(self, endpoint_id: str) -> None:
        """Unless IPAM's data cannot be read: then the endpoint goes alone."""
        key = endpoint_key(self._settings.node, endpoint_id)
        endpoint = self._endpoints.get(key)
        if endpoint is not None:
            with contextlib.suppress(InvalidResource):
                await self._returns.with_endpoint(key, endpoint)

    async def _delete(self, key: ResourceKey) -> None:
        for _ in range(_ATTEMPTS):
            stored = self._cache.get(key.path)
            if stored is None:
                return
            outcome = await self._cache.commit(Transaction([unchanged(stored)], [Delete(key.path)]))
            if outcome.succeeded:
                return
        raise Conflict(f"{key} kept being changed by others; try again")

    async def join(self, request: messages.Join) -> messages.Joined:
        await self._cache.synced()
        key = endpoint_key(self._settings.node, request.endpoint_id)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            raise NotFound(
                f"endpoint {request.endpoint_id[:12]} does not exist on node {self._settings.node}; start the"
                " container again"
            )
        await self._publishing.join(request.endpoint_id, request.sandbox_key)
        place = self._sandboxes.enter(request.sandbox_key, request.endpoint_id) if request.sandbox_key else 1
        await self._siblings.try_settle([request.endpoint_id])
        if not await self._labelling.open_joining(endpoint, request.sandbox_key):
            _log.info("endpoint stays closed until its container's labels are known", endpoint=request.endpoint_id[:12])
        elif not await self._status.wait(key, STATUS_DEADLINE):
            _log.warning(
                "endpoint is not programmed yet; its traffic is dropped until it is",
                endpoint=request.endpoint_id[:12],
                waited=STATUS_DEADLINE,
            )
        return await self._joined(endpoint, place)

    async def leave(self, request: messages.EndpointRequest) -> None:
        self._sandboxes.leave(request.endpoint_id)

    async def program_external_connectivity(self, request: messages.Connectivity) -> None:
        await self._publishing.program(request)

    async def revoke_external_connectivity(self, request: messages.EndpointRequest) -> None:
        await self._publishing.revoke(request)

    def _is_repeated(self, request: messages.CreateEndpoint, addresses: tuple[Address, ...]) -> bool:
        existing = self._endpoints.get(endpoint_key(self._settings.node, request.endpoint_id))
        if existing is None:
            return False
        if existing.addresses != frozenset(addresses) or existing.network_id not in ("", request.network_id):
            raise AlreadyExists(
                f"endpoint {request.endpoint_id[:12]} exists already with {_listed(existing.addresses)};"
                " delete it before it is created anew"
            )
        return True

    async def _create(self, request: messages.CreateEndpoint, addresses: tuple[Address, ...], mac: str) -> None:
        self._refuse_conflicts(request.endpoint_id, addresses)
        spec = VethSpec(
            host_name=endpoint_interface(request.endpoint_id),
            peer_name=_peer_name(request.endpoint_id),
            peer_mac=mac,
            mtu=self._settings.veth_mtu(),
            ipv6=any(address.version == 6 for address in addresses),
            carrier=self._status.needs_carrier,
        )
        await self._removals.finish(spec.host_name)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._veths.schedule_delete, spec.host_name)
            veth = await self._veths.create(spec)
            undo.callback(self._publishing.forget, request.endpoint_id)
            await self._write(request, addresses, mac)
            self._gateways_v6[request.endpoint_id] = veth.gateway_v6
            undo.pop_all()

    def _refuse_conflicts(self, endpoint_id: str, addresses: tuple[Address, ...]) -> None:
        """Against another endpoint of this node; what other nodes do with an address, IPAM has settled."""
        for address in addresses:
            for holder in self._endpoints.holders(address):
                if holder.node == self._settings.node and holder.endpoint_id != endpoint_id:
                    raise AddressInUse(f"address {address} is in use by {holder.owner}; choose another")
        neighbour = self._endpoints.of_interface(endpoint_interface(endpoint_id))
        if neighbour is not None and neighbour.endpoint_id != endpoint_id:
            raise AlreadyExists(
                f"interface {neighbour.interface} belongs to {neighbour.owner} already; start the container again to"
                " get another one"
            )

    async def _write(self, request: messages.CreateEndpoint, addresses: tuple[Address, ...], mac: str) -> None:
        name = next(filter(None, map(self._in_flight.container_name, addresses)), "")
        wanted = Wanted(
            network_id=request.network_id,
            endpoint_id=request.endpoint_id,
            addresses=addresses,
            mac=mac,
            facts=await self._labelling.facts(name),
            ports=await self._publishing.claim(request, addresses, name),
        )
        await self._writer.write(wanted)

    async def _joined(self, endpoint: Endpoint, place: int) -> messages.Joined:
        gateway_v4, gateway_v6 = await self._gateways(endpoint, place)
        routes = tuple(
            messages.StaticRoute(destination=f"{gateway}/{gateway.max_prefixlen}", route_type=messages.CONNECTED)
            for gateway in (gateway_v4, gateway_v6)
            if gateway is not None
        )
        return messages.Joined(
            interface_name=messages.InterfaceName(
                src_name=_peer_name(endpoint.endpoint_id),
                dst_prefix=self._settings.interface_prefix,
                dst_name=self._chosen_names.get(endpoint.endpoint_id, ""),
            ),
            gateway=str(gateway_v4 or ""),
            gateway_ipv6=str(gateway_v6 or ""),
            static_routes=routes,
            disable_gateway_service=not routes,
        )

    async def _gateways(self, endpoint: Endpoint, place: int) -> tuple[IPv4Address | None, IPv6Address | None]:
        """Only of families that the endpoint has; the kernel of a container without IPv6 refuses the rest.

        Each interface of a container needs next hops of its own. The host answers for any IPv4 one by proxy; a further
        IPv6 one must be an address of the host's end.
        """
        versions = {address.version for address in endpoint.addresses}
        gateway_v4 = GATEWAY_V4 + (place - 1) if 4 in versions else None
        gateway_v6 = self._gateways_v6.get(endpoint.endpoint_id, link_local(HOST_MAC)) if 6 in versions else None
        if gateway_v6 is not None and place > 1:
            gateway_v6 += place - 1
            try:
                await self._veths.add_gateway(endpoint.interface, gateway_v6)
            except DataplaneError as error:
                _log.warning("no IPv6 gateway", endpoint=endpoint.endpoint_id[:12], reason=str(error))
                gateway_v6 = None
        return gateway_v4, gateway_v6


def refuse_unsupported(request: messages.CreateNetwork) -> None:
    """Raises ``Refused`` for what a Calico network cannot be.

    Unknown options of Docker's own are let pass: Docker 28 began to send one that is true for every network.
    """
    data = (*(request.ipv4_data or ()), *(request.ipv6_data or ()))
    if any(entry.address_space not in (messages.LOCAL_ADDRESS_SPACE, messages.GLOBAL_ADDRESS_SPACE) for entry in data):
        raise Refused("Non-Calico IPAM driver is used")
    options = request.options or {}
    if options.get(messages.INTERNAL) in (True, "true"):
        raise Refused("Calico driver does not support the flag --internal.")
    generic = options.get(messages.GENERIC)
    flags = sorted(generic) if isinstance(generic, dict) else []
    if flags:
        noun = "flag" if len(flags) == 1 else "flags"
        raise Refused(f"Calico driver does not support the {noun} {', '.join(flags)}.")
    if not data:
        raise Refused("a Calico network needs IPv4 or IPv6 addresses; create it without --ipv4=false or with --ipv6")


def _addresses(interface: messages.EndpointInterface, endpoint_id: str) -> tuple[Address, ...]:
    texts = [text for text in (interface.address, interface.address_ipv6) if text]
    if not texts:
        raise Refused(
            f"endpoint {endpoint_id[:12]} came without an address; create its network with --ipam-driver calico-ipam"
        )
    try:
        return tuple(ip_interface(text).ip for text in texts)
    except ValueError as error:
        raise Refused(f"endpoint {endpoint_id[:12]} came with an address that is none: {error}") from error


def _user_mac(interface: messages.EndpointInterface) -> str:
    mac = interface.mac_address.lower()
    if mac and _MAC.fullmatch(mac) is None:
        raise Refused(f"MAC address {interface.mac_address} is not six pairs of hexadecimal digits; correct it")
    return mac


def _user_name(options: messages.Options) -> str:
    """Refused here, since Docker would find out after Join."""
    name = options.get(messages.INTERFACE_NAME)
    if not isinstance(name, str) or not name:
        return ""
    if _NAME.fullmatch(name) is None or name in (".", "..", "lo"):
        raise Refused(f"interface name {name!r} cannot be given; choose up to 15 characters, no blank, slash or colon")
    return name


def _peer_name(endpoint_id: str) -> str:
    """Of the container's end until Docker moves and renames it."""
    return PEER_PREFIX + endpoint_id[:11]


def _listed(addresses: frozenset[Address]) -> str:
    return ", ".join(sorted(map(str, addresses)))

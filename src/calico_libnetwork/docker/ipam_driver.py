"""Docker's IpamDriver over Calico's IPAM: pools are Calico's, addresses come from its blocks.

The daemon of this host is the authority on which of its containers live: when it releases an address, the workload
endpoint of this node that still holds it is what a crash left behind, and goes as well. What belongs to another node
is never touched.
"""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import cast

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.departures import Departures
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex
from calico_libnetwork.docker.in_flight import InFlight
from calico_libnetwork.docker.networks import Networks
from calico_libnetwork.docker.returns import Returns
from calico_libnetwork.errors import (
    AddressInUse,
    AddressNotInPool,
    DatastoreUnavailable,
    InvalidResource,
    NoPool,
    Refused,
)
from calico_libnetwork.ipam import Ipam
from calico_libnetwork.model import kinds
from calico_libnetwork.model.block import NODE_ATTRIBUTE
from calico_libnetwork.model.ipam_keys import Address, Network, Version
from calico_libnetwork.model.kinds import KINDS
from calico_libnetwork.model.names import address_handle, is_address_handle
from calico_libnetwork.model.pools import Pool
from calico_libnetwork.model.resources import IPPool

ANY_POOL: Mapping[str, Version] = {"CalicoPoolIPv4": 4, "CalicoPoolIPv6": 6}
"""Pool ids of networks without ``--subnet``; with one, the id is its CIDR, so it means the same after a restart."""

FLOOD = 100
"""Equal RequestPool calls within a second: libnetwork's endless search for a pool that overlaps no name server."""

_ANY: Mapping[Version, str] = {4: "0.0.0.0/0", 6: "::/0"}
_POOLS = KINDS["IPPool"].prefix


@dataclass(frozen=True, slots=True)
class _Wanted:
    """``network`` is None for any pool of the version."""

    version: Version
    network: Network | None


class IpamDriver:
    """``forget`` deletes an endpoint of this node with its interface."""

    def __init__(
        self,
        *,
        node: str,
        cache: Cache,
        ipam: Ipam,
        networks: Networks,
        endpoints: EndpointIndex,
        in_flight: InFlight,
        departures: Departures,
        returns: Returns,
        forget: Callable[[Endpoint], Awaitable[None]],
        interface_exists: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._cache = cache
        self._ipam = ipam
        self._networks = networks
        self._endpoints = endpoints
        self._in_flight = in_flight
        self._departures = departures
        self._returns = returns
        self._forget = forget
        self._interface_exists = interface_exists
        self._flood = _Flood(clock)

    async def request_pool(self, request: messages.RequestPool) -> messages.RequestedPool:
        self._flood.refuse(request)
        if request.sub_pool:
            raise Refused(
                "Calico IPAM does not support sub pool configuration on 'docker create network'. Calico IP Pools should"
                " be configured first and IP assignment is from those pre-configured pools."
            )
        if request.options:
            raise Refused("Arbitrary options are not supported")
        network = _subnet(request.pool)
        if network is None or network.network_address.is_unspecified:
            return await self._any_pool(6 if request.v6 or (network and network.version == 6) else 4, request)
        await self._cache.synced()
        if not any(pool.network == network for pool in self._pools()):
            raise NoPool(
                f"The requested subnet must match the CIDR of a configured Calico IP Pool. {network} is none; create"
                " a pool with it, or choose one of calico-libnetwork get ippools"
            )
        return _answer(str(network), str(network), 4 if network.version == 4 else 6)

    async def request_address(self, request: messages.RequestAddress) -> messages.RequestedAddress:
        options = request.options or {}
        address = _given(request.address)
        if options.get(messages.REQUEST_ADDRESS_TYPE) == messages.GATEWAY:
            return self._gateway(request, address)
        await self._cache.synced()
        wanted = self._wanted(request.pool_id)
        name = options.get(messages.ENDPOINT_NAME)
        container = name if isinstance(name, str) else ""
        if address is None:
            address = await self._ipam.auto_assign(
                wanted.version,
                handle=address_handle(self._node, uuid.uuid4().hex),
                attributes=self._attributes(container),
                pools=() if wanted.network is None else (wanted.network,),
            )
        else:
            await self._assign(address, wanted, container)
        self._in_flight.start(address, container)
        self._departures.addresses.discard(address)
        return messages.RequestedAddress(address=f"{address}/{address.max_prefixlen}")

    async def release_address(self, request: messages.ReleaseAddress) -> None:
        """What is not assigned, not ours, in no pool or gone with its endpoint is released already."""
        address = _given(request.address)
        if address is None:
            return
        try:
            await self._cache.synced()
            if await self._returns.begin(address):
                self._in_flight.end(address)
                await self._release(address)
        except DatastoreUnavailable:
            self._departures.add_address(address)
            raise
        finally:
            self._returns.end(address)

    async def _release(self, address: Address) -> None:
        for endpoint in self._endpoints.holders(address):
            if self._endpoints.is_own(endpoint):
                await self._forget(endpoint)
        await self._returns.release(address)

    def _attributes(self, container: str) -> dict[str, str]:
        """``container`` as Docker 29 names it; people see it in ``ipam show --ip``."""
        return {NODE_ATTRIBUTE: self._node} | ({"container": container} if container else {})

    def _gateway(self, request: messages.RequestAddress, address: Address | None) -> messages.RequestedAddress:
        """A container's gateway is link-local, so none is taken from a pool, and none can be chosen."""
        if address is not None:
            raise Refused("Calico IPAM does not support specifying a gateway.")
        version = 6 if ":" in request.address or ANY_POOL.get(request.pool_id) == 6 else 4
        return messages.RequestedAddress(address="::/128" if version == 6 else "0.0.0.0/32")

    async def _any_pool(self, version: Version, request: messages.RequestPool) -> messages.RequestedPool:
        """``::/0`` unasked for in a local address space overlaps an IPv6 name server, and libnetwork asks for ever.

        There one of the pools is answered for all of them; the id still stands for any.
        """
        shown = _ANY[version]
        if version == 6 and not request.pool and request.address_space == messages.LOCAL_ADDRESS_SPACE:
            await self._cache.synced()
            usable = [pool for pool in self._pools() if pool.version == 6 and pool.enabled]
            if not usable:
                raise NoPool("no IPv6 pool is configured; create one, or leave out --ipv6")
            shown = str(usable[0].network)
        pool_id = next(name for name, of in ANY_POOL.items() if of == version)
        return _answer(pool_id, shown, version)

    def _wanted(self, pool_id: str) -> _Wanted:
        """Also understands a pool's name, which an older plugin gave out as an id."""
        if pool_id in ANY_POOL:
            return _Wanted(ANY_POOL[pool_id], None)
        network = _network(pool_id) or next((pool.network for pool in self._pools() if pool.name == pool_id), None)
        if network is None:
            raise NoPool(f"pool {pool_id!r} of the network is unknown; create the network anew")
        version: Version = 4 if network.version == 4 else 6
        return _Wanted(version, None if network.network_address.is_unspecified else network)

    async def _assign(self, address: Address, wanted: _Wanted, container: str) -> None:
        if wanted.network is not None and address not in wanted.network:
            raise AddressNotInPool(
                f"address {address} is not in the network's pool {wanted.network}; choose one that is"
            )
        try:
            await self._ipam.assign(
                address, handle=address_handle(self._node, uuid.uuid4().hex), attributes=self._attributes(container)
            )
        except AddressInUse as error:
            holders = self._endpoints.holders(address)
            if not self._is_left_over(address, holders):
                raise AddressInUse(f"{self._taken(address, holders) or error}; choose another") from error
            for endpoint in holders:
                await self._forget(endpoint)

    def _taken(self, address: Address, holders: Sequence[Endpoint]) -> str:
        """Why in Docker's words, where that is known."""
        if holders:
            return f"address {address} is in use by {holders[0].owner}"
        if self._networks.is_auxiliary(address):
            return f"address {address} is kept out of use by a network's --aux-address"
        if address in self._in_flight:
            return f"address {address} has just been given to another container"
        return ""

    def _is_left_over(self, address: Address, holders: Sequence[Endpoint]) -> bool:
        """Whether this node assigned it to a container that is gone, as after a crash of dockerd or of the host."""
        assignment = self._ipam.assignment(address)
        return (
            assignment is not None
            and is_address_handle(assignment.handle, self._node)
            and address not in self._in_flight
            and not self._networks.is_auxiliary(address)
            and all(
                self._endpoints.is_own(endpoint) and not self._interface_exists(endpoint.interface)
                for endpoint in holders
            )
        )

    def _pools(self) -> list[Pool]:
        """All but those that cannot be read, which IPAM reports."""
        pools = []
        for key_value in self._cache.under(_POOLS):
            key = kinds.parse_path(key_value.key)
            if key is None:
                continue
            with contextlib.suppress(InvalidResource):
                pools.append(Pool.read(cast("IPPool", kinds.decode(key, key_value.value))))
        return pools


class _Flood:
    """Counts equal RequestPool calls; an error is what ends libnetwork's loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recent: deque[tuple[float, messages.RequestPool]] = deque(maxlen=FLOOD)

    def refuse(self, request: messages.RequestPool) -> None:
        now = self._clock()
        self._recent.append((now, request))
        if len(self._recent) == FLOOD and all(
            now - when < 1.0 and earlier == request for when, earlier in self._recent
        ):
            raise Refused(
                f"Docker asks for the same pool over and over, as it does when an IPv6 name server in /etc/resolv.conf"
                f" overlaps {request.pool or _ANY[6 if request.v6 else 4]}; give the network a --subnet"
            )


def _answer(pool_id: str, pool: str, version: Version) -> messages.RequestedPool:
    """The gateway only keeps libnetwork from requesting an address for one."""
    return messages.RequestedPool(pool_id=pool_id, pool=pool, data={messages.GATEWAY: _ANY[version]})


def _subnet(text: str) -> Network | None:
    if not text:
        return None
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise Refused(f"subnet {text} is no CIDR: {error}") from error


def _network(pool_id: str) -> Network | None:
    try:
        return ip_network(pool_id)
    except ValueError:
        return None


def _given(text: str) -> Address | None:
    """None for "any": the empty text and the unspecified address, which Docker takes for a Calico network's gateway."""
    if not text:
        return None
    try:
        address = ip_address(text.partition("/")[0])
    except ValueError as error:
        raise Refused(f"{text!r} is no IP address") from error
    return None if address.is_unspecified else address


def interface_exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True

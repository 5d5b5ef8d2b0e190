"""Records again what Docker runs and the datastore has lost: it was restored to older data, or edited by hand.

Docker does not repeat what it once told, so without this a container would stay closed until it is started again, and
its address could be given to another. An address is claimed first, if nobody else has it; one that somebody has is
never taken away: then its container stays closed, and the log says who has it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

import structlog

from calico_libnetwork.datastore.protocol import Event
from calico_libnetwork.docker.departures import Departures
from calico_libnetwork.docker.endpoint_writer import EndpointWriter, Wanted
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex, chosen_mac, endpoint_key
from calico_libnetwork.docker.in_flight import InFlight
from calico_libnetwork.docker.labelling import Labelling
from calico_libnetwork.docker.networks import Networks
from calico_libnetwork.docker.publishing import Publishing
from calico_libnetwork.docker.siblings import Siblings
from calico_libnetwork.errors import AddressInUse, CalicoError
from calico_libnetwork.ipam import Ipam
from calico_libnetwork.model import kinds
from calico_libnetwork.model.block import NODE_ATTRIBUTE
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.names import (
    address_handle,
    endpoint_interface,
    is_address_handle,
    split_workload_endpoint_name,
)

_JOINING = "ep-"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An endpoint as ``GET /networks/ID`` has it. ``container_id`` is "" while it is joining, ``mac`` where unknown."""

    network_id: str
    endpoint_id: str
    container_id: str
    container_name: str
    addresses: tuple[Address, ...]
    mac: str

    @property
    def owner(self) -> str:
        return f"container {self.container_name}" if self.container_name else f"endpoint {self.endpoint_id[:12]}"


def listed_endpoints(networks: Iterable[Mapping[str, Any]]) -> Iterator[Listed]:
    for network in networks:
        for key, entry in (network.get("Containers") or {}).items():
            texts = filter(None, (entry.get("IPv4Address"), entry.get("IPv6Address")))
            if entry.get("EndpointID"):
                yield Listed(
                    network_id=network["Id"],
                    endpoint_id=entry["EndpointID"],
                    container_id="" if key.startswith(_JOINING) else key,
                    container_name=entry.get("Name") or "",
                    addresses=tuple(ip_interface(text).ip for text in texts),
                    mac=entry.get("MacAddress") or "",
                )


def kept_addresses(networks: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, tuple[Address, ...]]]:
    """By network and pool, of networks of this host alone (``--aux-address``)."""
    found = {}
    for network in networks:
        configs = (network.get("IPAM") or {}).get("Config") or ()
        pools = {
            each.get("Subnet") or "": tuple(map(ip_address, (each.get("AuxiliaryAddresses") or {}).values()))
            for each in configs
        }
        if any(pools.values()) and network.get("Scope") == "local":
            found[network["Id"]] = pools
    return found


class Recording:
    """``interface_exists`` asks the kernel: Docker lists an endpoint a moment longer than it has one."""

    def __init__(
        self,
        *,
        node: str,
        ipam: Ipam,
        endpoints: EndpointIndex,
        networks: Networks,
        labelling: Labelling,
        writer: EndpointWriter,
        in_flight: InFlight,
        departures: Departures,
        siblings: Siblings,
        publishing: Publishing,
        forget: Callable[[Endpoint], Awaitable[None]],
        interface_exists: Callable[[str], bool],
    ) -> None:
        self._node = node
        self._ipam = ipam
        self._endpoints = endpoints
        self._networks = networks
        self._labelling = labelling
        self._writer = writer
        self._in_flight = in_flight
        self._departures = departures
        self._siblings = siblings
        self._publishing = publishing
        self._forget = forget
        self._interface_exists = interface_exists
        self._findings: frozenset[str] = frozenset()

    @property
    def findings(self) -> list[str]:
        """What cannot be recorded, and why, for people."""
        return sorted(self._findings)

    def is_lost(self, event: Event) -> bool:
        """Whether an endpoint of this node went without Docker's word."""
        key = kinds.parse_path(event.key) if event.current is None else None
        if key is None or key.kind != "WorkloadEndpoint":
            return False
        endpoint_id = split_workload_endpoint_name(key.name)[-1]
        return key == endpoint_key(self._node, endpoint_id) and not self._departures.was_told(endpoint_id)

    async def record(self, networks: Collection[Mapping[str, Any]]) -> None:
        findings = set()
        for network_id, pools in kept_addresses(networks).items():
            try:
                await self._keep(network_id, pools)
            except CalicoError as error:
                findings.add(f"network {network_id[:12]} keeps addresses out of use with --aux-address, but {error}")
        for listed in listed_endpoints(networks):
            try:
                if self._is_here(listed):
                    await self._restore(listed)
            except CalicoError as error:
                findings.add(f"{listed.owner} is running, but {error}")
        await self._siblings.settle_all()
        for finding in sorted(findings - self._findings):
            _log.warning("what Docker has cannot be recorded again", finding=finding)
        self._findings = frozenset(findings)

    async def _keep(self, network_id: str, pools: Mapping[str, tuple[Address, ...]]) -> None:
        if self._networks.get(network_id) is None:
            await self._networks.record(network_id, pools)
        for address in (address for kept in pools.values() for address in kept):
            assignment = self._ipam.assignment(address)
            if assignment is None:
                await self._assign(address)
            elif not is_address_handle(assignment.handle, self._node) or self._endpoints.holders(address):
                raise AddressInUse(f"{address} is assigned to {assignment.handle} on {assignment.node}")

    def _is_here(self, listed: Listed) -> bool:
        """A network that hosts share lists the endpoints of all."""
        return (
            bool(listed.addresses)
            and not self._departures.was_told(listed.endpoint_id)
            and self._interface_exists(endpoint_interface(listed.endpoint_id))
        )

    async def _restore(self, listed: Listed) -> None:
        """An endpoint that is there only gets its addresses back in IPAM."""
        key = endpoint_key(self._node, listed.endpoint_id)
        claimed = await self._claim(listed)
        if self._endpoints.get(key) is not None:
            return
        wanted = Wanted(
            network_id=listed.network_id,
            endpoint_id=listed.endpoint_id,
            addresses=listed.addresses,
            mac=listed.mac or chosen_mac(listed.endpoint_id),
            facts=self._labelling.facts_with_id(listed.container_id),
            ports=self._publishing.of(listed.endpoint_id),
        )
        try:
            await self._writer.write(wanted)
        except CalicoError:
            await self._give_back(claimed)
            raise
        _log.info("recorded again what is running", container=listed.container_name, endpoint=listed.endpoint_id[:12])
        written = self._endpoints.get(key)
        if written is not None and self._departures.was_told(listed.endpoint_id):
            await self._forget(written)  # Docker deleted it while it was being written

    async def _claim(self, listed: Listed) -> dict[Address, str]:
        """All of its addresses or none; those newly assigned, with their handles. Raises ``AddressInUse``."""
        free = [address for address in listed.addresses if not self._has(listed, address)]
        claimed: dict[Address, str] = {}
        try:
            for address in free:
                claimed[address] = await self._assign(address, listed.container_name)
        except CalicoError:
            await self._give_back(claimed)
            raise
        return claimed

    async def _assign(self, address: Address, container: str = "") -> str:
        """The handle."""
        handle = address_handle(self._node, uuid.uuid4().hex)
        attributes = {NODE_ATTRIBUTE: self._node} | ({"container": container} if container else {})
        await self._ipam.assign(address, handle=handle, attributes=attributes)
        return handle

    def _has(self, listed: Listed, address: Address) -> bool:
        """Whether it is assigned for this endpoint; False if to nobody. Raises ``AddressInUse``."""
        for holder in self._endpoints.holders(address):
            if holder.endpoint_id != listed.endpoint_id:
                raise AddressInUse(f"its address {address} is now that of {holder.owner}; start it again for another")
        assignment = self._ipam.assignment(address)
        if assignment is None:
            return False
        ours = assignment.node == self._node and (
            assignment.handle is None or is_address_handle(assignment.handle, self._node)
        )
        if not ours or address in self._in_flight or self._networks.is_auxiliary(address):
            raise AddressInUse(
                f"its address {address} is assigned to {assignment.handle} on {assignment.node}; start it again for"
                " another, or release the address if nothing uses it"
            )
        return True

    async def _give_back(self, claimed: Mapping[Address, str]) -> None:
        for address, handle in claimed.items():
            await self._ipam.release(address, handle=handle)

"""What is remembered of a Docker network: its name, its pools and its profile, under a key of our own.

Docker tells a network's properties once, in CreateNetwork, and its name never. The name is asked for when the first
endpoint is created; what was decided then is stored and stays, whatever Docker says later. A network that was never
announced (made before this plugin, by another host, or in an earlier life) gets its record with its first endpoint.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Protocol

import msgspec
import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import (
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.docker import messages, profiles
from calico_libnetwork.docker.endpoints import EndpointIndex
from calico_libnetwork.errors import CalicoError, Conflict, InvalidResource
from calico_libnetwork.model import documents
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import NETWORK_RECORDS

PREFIX = NETWORK_RECORDS
_ATTEMPTS = 5

_log = structlog.get_logger(__name__)


class NetworkNames(Protocol):
    async def network_name(self, network_id: str) -> str | None:
        """The name as Docker has it now; None when it cannot be learnt without waiting."""
        ...

    async def network_exists(self, network_id: str) -> bool | None:
        """None when it cannot be learnt without waiting."""
        ...


class NetworkRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """``pools`` as CreateNetwork gave them (CIDRs); ``node`` is the one that wrote the record."""

    id: str
    node: str
    name: str = ""
    profile: str = ""
    pools: tuple[str, ...] = ()
    auxiliary_addresses: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(NetworkRecord)


@dataclass(frozen=True, slots=True)
class Stored:
    key_value: KeyValue
    record: NetworkRecord


@dataclass(frozen=True, slots=True)
class Membership:
    """What an endpoint of the network needs: its profile, and what its own transaction has to contain for that."""

    record: NetworkRecord
    compares: tuple[Compare, ...]
    operations: tuple[Operation, ...]

    @property
    def profiles(self) -> tuple[str, ...]:
        return (self.record.profile,) if self.record.profile else ()


class Networks:
    def __init__(
        self, cache: Cache, endpoints: EndpointIndex, names: NetworkNames, *, node: str, create_profiles: bool
    ) -> None:
        self._cache = cache
        self._endpoints = endpoints
        self._names = names
        self._node = node
        self._create_profiles = create_profiles

    def get(self, network_id: str) -> Stored | None:
        key_value = self._cache.get(PREFIX + network_id)
        return _read(key_value) if key_value is not None else None

    def all(self) -> Iterator[Stored]:
        for key_value in self._cache.under(PREFIX):
            stored = _read(key_value)
            if stored is not None:
                yield stored

    def is_auxiliary(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a network of this node keeps ``address`` out of use (``--aux-address``)."""
        return any(
            str(address) in stored.record.auxiliary_addresses
            for stored in self.all()
            if stored.record.node == self._node
        )

    async def add(self, request: messages.CreateNetwork) -> None:
        """Records a network; again for one that is known changes only what Docker now says differently."""
        data = (*(request.ipv4_data or ()), *(request.ipv6_data or ()))
        kept = (
            (entry.pool, tuple(ip_interface(cidr).ip for cidr in (entry.aux_addresses or {}).values()))
            for entry in data
        )
        await self._cache.synced()
        await self.record(request.network_id, dict(kept))

    async def record(self, network_id: str, kept: Mapping[str, Collection[Address]]) -> None:
        """``kept`` by pool: the addresses that the network keeps out of use."""
        pools = tuple(filter(None, kept))
        auxiliary = tuple(str(address) for addresses in kept.values() for address in addresses)
        for _ in range(_ATTEMPTS):
            stored = self.get(network_id)
            known = stored.record if stored else NetworkRecord(id=network_id, node=self._node)
            record = msgspec.structs.replace(known, pools=pools, auxiliary_addresses=auxiliary)
            if stored is not None and stored.record == record:
                return
            if await self._commit([_guard(PREFIX + record.id, self._cache)], [_put(record)]):
                return
        raise _busy(network_id)

    async def remove(self, network_id: str) -> None:
        """Forgets the network; its profile goes with it if we made it, nobody edited it and nobody uses it.

        While it has endpoints it is remembered, as else nobody would look after the profile once they are gone: those
        of this node are left over and go soon; a network of a swarm or a cluster store has one id on every host, and
        is deleted on each by itself.
        """
        await self._cache.synced()
        for _ in range(_ATTEMPTS):
            stored = self.get(network_id)
            if stored is None or self.has_endpoints(network_id):
                return
            compares, operations = self._profile_removal(stored.record)
            if await self._commit(
                [unchanged(stored.key_value), *compares], [Delete(stored.key_value.key), *operations]
            ):
                return
        raise _busy(network_id)

    async def join(self, network_id: str) -> Membership:
        """For a new endpoint of the network, made as late as possible before its transaction."""
        stored = self.get(network_id)
        record = stored.record if stored else NetworkRecord(id=network_id, node=self._node)
        if not self._create_profiles:
            record = msgspec.structs.replace(record, profile="")
        elif not record.profile:
            record = await self._with_profile(record)
        compares: list[Compare] = []
        operations: list[Operation] = []
        if stored is None or stored.record != record:
            compares.append(_guard(PREFIX + network_id, self._cache))
            operations.append(_put(record))
        if record.profile:
            self._require_profile(record, compares, operations)
        return Membership(record, tuple(compares), tuple(operations))

    def has_endpoints(self, network_id: str) -> bool:
        """On any node."""
        return any(True for _ in self._endpoints.of_network(network_id))

    def own(self) -> set[str]:
        """Ids of the networks that this node has recorded."""
        return {stored.record.id for stored in self.all() if stored.record.node == self._node}

    async def forget(self, network_ids: Iterable[str]) -> None:
        """Removes networks that Docker removed while this plugin was away."""
        for network_id in network_ids:
            _log.info("network no longer exists in Docker, forgotten", network=network_id[:12])
            try:
                await self.remove(network_id)
            except CalicoError as error:
                _log.warning("network could not be forgotten", network=network_id[:12], reason=str(error))

    async def restore_profiles(self) -> list[str]:
        """Makes the profiles anew that endpoints of this node name and that are gone.

        Another host may delete a network's profile in the moment in which its first endpoint appears here.
        """
        restored = []
        for endpoint in self._endpoints.of_node():
            stored = self.get(endpoint.network_id)
            if stored is None or stored.record.profile not in endpoint.profiles:
                continue
            compares: list[Compare] = []
            operations: list[Operation] = []
            self._require_profile(stored.record, compares, operations)
            if operations and await self._commit(compares, operations):
                restored.append(stored.record.profile)
        return restored

    async def _with_profile(self, record: NetworkRecord) -> NetworkRecord:
        name = record.name or await self._names.network_name(record.id) or ""
        if not name:
            return msgspec.structs.replace(record, profile=profiles.profile_name_of_unnamed(record.id))
        profile = profiles.profile_name(name, record.id, taken=await self._is_taken(name, record.id))
        return msgspec.structs.replace(record, name=name, profile=profile)

    async def _is_taken(self, name: str, network_id: str) -> bool:
        """Whether another network of this node has this name: old Dockers allow that.

        A network removed while this plugin was down is not in the way: Docker is asked.
        """
        for stored in self.all():
            other = stored.record
            if (
                other.node == self._node
                and other.name == name
                and other.id != network_id
                and await self._names.network_exists(other.id) is not False
            ):
                return True
        return False

    def _require_profile(self, record: NetworkRecord, compares: list[Compare], operations: list[Operation]) -> None:
        """The profile exists when the endpoint does: it is made with it, or must not have been deleted meanwhile."""
        path = ResourceKey("Profile", record.profile).path
        existing = self._cache.get(path)
        if existing is not None:
            compares.append(Compare(path, "create", existing.create_revision))
            return
        document = profiles.profile_document(
            record.profile,
            network_id=record.id,
            network_name=record.name,
            uid=str(uuid.uuid4()),
            created=timestamp(),
        )
        compares.append(absent(path))
        operations.append(Put(path, documents.encode(document)))

    def _profile_removal(self, record: NetworkRecord) -> tuple[list[Compare], list[Operation]]:
        if not record.profile or self._endpoints.uses_profile(record.profile):
            return [], []
        for other in self.all():
            if other.record.profile == record.profile and other.record.id != record.id:
                return [unchanged(other.key_value)], []  # or both would leave the profile to the other
        path = ResourceKey("Profile", record.profile).path
        existing = self._cache.get(path)
        if existing is None or not _is_unedited(existing, record.profile):
            return [], []
        return [unchanged(existing)], [Delete(path)]

    async def _commit(self, compares: list[Compare], operations: list[Operation]) -> bool:
        return (await self._cache.commit(Transaction(compares, operations))).succeeded


def timestamp() -> str:
    """Now, as Calico stores it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(key_value: KeyValue) -> Stored | None:
    """None for a value that is none of ours: then the network counts as never seen and is recorded anew."""
    try:
        return Stored(key_value, _decoder.decode(key_value.value))
    except documents.UNDECODABLE:
        return None


def _is_unedited(key_value: KeyValue, profile: str) -> bool:
    try:
        return profiles.is_unedited(documents.decode(key_value.value), profile)
    except InvalidResource:
        return False


def _guard(path: str, cache: Cache) -> Compare:
    existing = cache.get(path)
    return unchanged(existing) if existing is not None else absent(path)


def _put(record: NetworkRecord) -> Put:
    return Put(PREFIX + record.id, msgspec.json.encode(record))


def _busy(network_id: str) -> Conflict:
    return Conflict(f"network {network_id[:12]} kept being changed by others; try again")

"""The endpoints of one container on this node: each is a member of all the networks that the container is on.

A container sends whatever it begins by its default route, to members of its other networks too. They know it there if
that address has their network's label, so every endpoint has the profiles of its siblings' networks after its own.
Siblings share a sandbox, known from Join on, or bear one container's id, which may come later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Compare, Put, Transaction, unchanged
from calico_libnetwork.docker.departures import Departures
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex, endpoint_key, with_profiles
from calico_libnetwork.docker.networks import Networks
from calico_libnetwork.docker.sandboxes import Sandboxes
from calico_libnetwork.errors import CalicoError, Conflict
from calico_libnetwork.model import documents

_ATTEMPTS = 5

_log = structlog.get_logger(__name__)


def shared_profiles(endpoint: Endpoint, others: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All that the endpoint is to have, and those of them that it has for ``others``, its siblings' networks.

    What somebody else has put there stays, and stays in its place.
    """
    kept = tuple(profile for profile in endpoint.profiles if profile not in endpoint.sibling_profiles)
    added = tuple(sorted(set(others).difference(kept)))
    return (*kept, *added), added


class Siblings:
    """``interface_exists`` asks the kernel: an endpoint that a crash has left has none any more."""

    def __init__(
        self,
        cache: Cache,
        endpoints: EndpointIndex,
        networks: Networks,
        sandboxes: Sandboxes,
        departures: Departures,
        *,
        node: str,
        interface_exists: Callable[[str], bool],
    ) -> None:
        self._cache = cache
        self._endpoints = endpoints
        self._networks = networks
        self._sandboxes = sandboxes
        self._departures = departures
        self._node = node
        self._interface_exists = interface_exists
        self._settling = asyncio.Lock()

    async def settle(self, endpoint_id: str) -> None:
        """The endpoint and its siblings have the profiles that they are to have; one that Docker deletes is none.

        Raises ``DatastoreError``, ``Conflict``. An endpoint alone costs nothing.
        """
        endpoint = self._endpoints.get(endpoint_key(self._node, endpoint_id))
        if endpoint is None or not (endpoint.sibling_profiles or self._siblings(endpoint)):
            return
        async with self._settling:  # or a deletion would overlook what is being written
            for _ in range(_ATTEMPTS):
                compares, operations = self._changes(endpoint)
                if not operations or (await self._cache.commit(Transaction(compares, operations))).succeeded:
                    return
        raise Conflict(f"{endpoint.key} kept being changed by others; its profiles are not those of all its networks")

    async def try_settle(self, endpoint_ids: Iterable[str]) -> None:
        """Where an error must not stop anything: the next round of repair comes."""
        for endpoint_id in endpoint_ids:
            try:
                await self.settle(endpoint_id)
            except CalicoError as error:
                _log.warning("profiles are not those of all networks", endpoint=endpoint_id[:12], reason=str(error))

    async def settle_container(self, container_id: str) -> None:
        await self.try_settle(each.endpoint_id for each in self._endpoints.of_container(container_id))

    async def settle_all(self) -> None:
        """But those that nobody knows yet whose they are: what is known of sandboxes may be lost."""
        await self.try_settle(
            each.endpoint_id
            for each in self._endpoints.of_node()
            if each.container_id or self._sandboxes.of(each.endpoint_id)
        )

    def _siblings(self, endpoint: Endpoint) -> list[Endpoint]:
        sandbox = self._sandboxes.of(endpoint.endpoint_id)
        found = {
            each.endpoint_id: each
            for each in self._endpoints.of_container(endpoint.container_id)
            if not sandbox or self._sandboxes.of(each.endpoint_id) in ("", sandbox)
        }
        for endpoint_id in self._sandboxes.members(sandbox):
            member = self._endpoints.get(endpoint_key(self._node, endpoint_id))
            if member is not None:
                found[endpoint_id] = member
        found.pop(endpoint.endpoint_id, None)
        return [*found.values()]

    def _changes(self, endpoint: Endpoint) -> tuple[list[Compare], list[Put]]:
        compares, operations = [], []
        members = [each for each in (endpoint, *self._siblings(endpoint)) if self._is_here(each)]
        brings = {each.endpoint_id: self._own_profile(each) for each in members}
        for member in members:
            others = [profile for sibling, profile in brings.items() if sibling != member.endpoint_id and profile]
            stored = self._cache.get(member.key.path)
            current = self._endpoints.get(member.key)
            if stored is None or current is None:
                continue
            profiles, added = shared_profiles(current, others if brings[member.endpoint_id] else ())
            if (profiles, added) != (current.profiles, current.sibling_profiles):
                compares.append(unchanged(stored))
                document = with_profiles(documents.decode(stored.value), profiles, of_siblings=added)
                operations.append(Put(member.key.path, documents.encode(document)))
        return compares, operations

    def _is_here(self, endpoint: Endpoint) -> bool:
        return not self._departures.was_told(endpoint.endpoint_id) and self._interface_exists(endpoint.interface)

    def _own_profile(self, endpoint: Endpoint) -> str:
        """Of its network; "" if it has none, or somebody took it away."""
        stored = self._networks.get(endpoint.network_id)
        profile = stored.record.profile if stored is not None else ""
        return profile if profile in endpoint.profiles and profile not in endpoint.sibling_profiles else ""

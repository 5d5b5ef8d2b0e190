"""Addresses that go back to IPAM: which assignment ends with Docker's word, and which has ended already.

Docker deletes an endpoint and then releases its addresses, call by call. All of it is one transaction here, made with
the first call; the releases that follow find their work done. Each such release is counted off, since by then the
address may belong to the next container.
"""

from __future__ import annotations

from collections import Counter

import structlog

from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex
from calico_libnetwork.ipam import Assignment, Ipam
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import is_address_handle

_log = structlog.get_logger(__name__)


class Returns:
    def __init__(self, *, node: str, ipam: Ipam, endpoints: EndpointIndex) -> None:
        self._node = node
        self._ipam = ipam
        self._endpoints = endpoints
        self._ahead: Counter[Address] = Counter()

    async def with_endpoint(self, key: ResourceKey, endpoint: Endpoint) -> None:
        """Deletes the endpoint and releases its addresses. Raises ``DatastoreError``, ``InvalidResource``."""
        owed = [each for each in (self._owed(address, endpoint) for address in endpoint.addresses) if each is not None]
        if await self._ipam.release_with(key.path, owed):
            self._ahead.update(each.address for each in owed)

    def is_done(self, address: Address) -> bool:
        """Whether the release that Docker asks for happened with its endpoint; asked once for each release."""
        if not self._ahead[address]:
            return False
        self._ahead[address] -= 1
        return True

    async def release(self, address: Address) -> None:
        """What is not assigned, not ours, or in no pool is released already."""
        owed = self._owed(address, None)
        if owed is not None:
            await self._ipam.release(address, handle=owed.handle, sequence=owed.sequence)

    def _owed(self, address: Address, leaving: Endpoint | None) -> Assignment | None:
        """What ends once ``leaving`` is gone."""
        others = [holder for holder in self._endpoints.holders(address) if holder != leaving]
        if others:
            _log.warning("released address is in use by another, kept", address=str(address), owner=others[0].owner)
            return None
        assignment = self._ipam.assignment(address)
        # the plugin that this one replaces assigned without a handle
        if assignment is None or not assignment.handle or is_address_handle(assignment.handle, self._node):
            return assignment
        _log.warning("released address is assigned to another, kept", address=str(address), handle=assignment.handle)
        return None

"""Writes a workload endpoint, in one transaction with whatever it depends on."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Put, Transaction, absent
from calico_libnetwork.docker.endpoints import NewEndpoint
from calico_libnetwork.docker.labelling import Labelling
from calico_libnetwork.docker.labels import NOTHING_KNOWN, Facts
from calico_libnetwork.docker.networks import Networks, timestamp
from calico_libnetwork.docker.profiles import NETWORK_ID, NETWORK_NAME
from calico_libnetwork.docker.published_ports import HostPort
from calico_libnetwork.errors import Conflict
from calico_libnetwork.model import documents
from calico_libnetwork.model.ipam_keys import Address

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``facts`` are None as long as it cannot be said whose the endpoint is."""

    network_id: str
    endpoint_id: str
    addresses: tuple[Address, ...]
    mac: str
    facts: Facts | None
    ports: tuple[HostPort, ...] = ()


class EndpointWriter:
    def __init__(self, cache: Cache, networks: Networks, labelling: Labelling, *, node: str) -> None:
        self._cache = cache
        self._networks = networks
        self._labelling = labelling
        self._node = node

    async def write(self, wanted: Wanted) -> None:
        """Raises ``Conflict``, ``DatastoreError``; also for an endpoint that is there."""
        held = self._labelling.must_hold(wanted.facts)
        known = wanted.facts or NOTHING_KNOWN
        for _ in range(_ATTEMPTS):
            membership = await self._networks.join(wanted.network_id)
            annotations = {NETWORK_ID: wanted.network_id, **known.annotations}
            if membership.record.name:
                annotations[NETWORK_NAME] = membership.record.name
            new = NewEndpoint(
                node=self._node,
                endpoint_id=wanted.endpoint_id,
                addresses=wanted.addresses,
                profiles=membership.profiles,
                mac=wanted.mac,
                labels=known.labels,
                annotations=annotations,
                held=held,
                ports=wanted.ports,
            )
            path = new.key.path
            value = documents.encode(new.document(uid=str(uuid.uuid4()), created=timestamp()))
            outcome = await self._cache.commit(
                Transaction([absent(path), *membership.compares], [Put(path, value), *membership.operations])
            )
            if outcome.succeeded:
                if held:
                    self._labelling.expect(wanted.endpoint_id)
                return
        raise Conflict(f"network {wanted.network_id[:12]} kept being changed by others; try again")

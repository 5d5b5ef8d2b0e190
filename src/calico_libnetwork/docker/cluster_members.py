"""Which network of which host is which of the cluster's: the hosts' own records, followed as they change."""

from __future__ import annotations

from collections.abc import Sequence

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Event
from calico_libnetwork.docker.cluster_records import HOSTS, Member, read_member, split_member_key
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex


class ClusterMembers:
    def __init__(self, cache: Cache, endpoints: EndpointIndex, *, node: str) -> None:
        self._endpoints = endpoints
        self._node = node
        self._members: dict[tuple[str, str], Member] = {}
        cache.subscribe(self._on_events)
        self._on_events([Event(item.key, item, item.mod_revision) for item in cache.under(HOSTS)])

    def of_endpoint(self, endpoint: Endpoint) -> Member | None:
        """The network of the cluster that the endpoint is in."""
        return self._members.get((endpoint.node, endpoint.network_id))

    def used_elsewhere(self, uid: str) -> bool:
        """Whether a container of another host is in the network."""
        return any(
            endpoint.node != self._node and (member := self.of_endpoint(endpoint)) is not None and member.uid == uid
            for endpoint in self._endpoints.all()
        )

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            place = split_member_key(event.key) if event.key.startswith(HOSTS) else None
            if place is None:
                continue
            member = read_member(event.current) if event.current is not None else None
            if member is not None:
                self._members[place] = member
            else:
                self._members.pop(place, None)

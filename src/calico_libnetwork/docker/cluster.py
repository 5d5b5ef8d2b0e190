"""What many hosts with one datastore share beyond Calico's own data: networks by one name, and names of containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Delete, Transaction
from calico_libnetwork.docker.cluster_members import ClusterMembers
from calico_libnetwork.docker.cluster_networks import ClusterDocker, ClusterNetworks
from calico_libnetwork.docker.cluster_records import members_prefix
from calico_libnetwork.docker.containers import ContainerTable
from calico_libnetwork.docker.host_names import HostDocker, HostNames
from calico_libnetwork.docker.network_driver import EndpointParts


class Docker(ClusterDocker, HostDocker, Protocol):
    """What is asked of Docker, and of it; never from inside a call."""


class Cluster:
    """Run ``networks`` and ``names``, and let the watcher tell it what Docker says."""

    def __init__(
        self,
        cache: Cache,
        docker: Docker,
        *,
        node: str,
        table: ContainerTable,
        parts: EndpointParts,
    ) -> None:
        members = ClusterMembers(cache, parts.endpoints, node=node)
        self.networks = ClusterNetworks(
            cache,
            docker,
            node=node,
            used_elsewhere=members.used_elsewhere,
            restore_profiles=parts.networks.restore_profiles,
        )
        self.names = HostNames(
            cache,
            node=node,
            docker=docker,
            table=table,
            endpoints=parts.endpoints,
            members=members,
            own_names=parts.labelling,
        )

    def docker_event(self, event: Mapping[str, Any]) -> None:
        actor = event.get("Actor") or {}
        attributes = actor.get("Attributes") or {}
        match event.get("Type"), event.get("Action"):
            case "network", "create" | "destroy" | "remove":
                self.networks.networks_changed()
            case "network", "prune":
                self.networks.networks_pruned()
            case "network", "disconnect":
                self.networks.container_disconnected(actor.get("ID") or "")
                self.names.docker_wrote(attributes.get("container", ""))
            case "network", "connect":
                self.names.docker_wrote(attributes.get("container", ""))
            case "container", "start" | "rename" | "destroy":
                self.names.docker_wrote(actor.get("ID") or "")

    def docker_listed(self) -> None:
        self.networks.networks_changed()
        self.names.daemon_listed()

    def describe(self) -> dict[str, Any]:
        """For the status."""
        return {
            "state": self.networks.off or "shared with all hosts",
            "networks": self.networks.names(),
            "containers with names of other hosts": self.names.count,
            "problems": [*self.networks.problems, *filter(None, [self.names.problem])],
        }


async def leave(cache: Cache, *, node: str) -> None:
    """Forgets which of this host's networks are the cluster's, where that is switched off: none is removed for it.

    Otherwise a network that is removed meanwhile would be taken from the whole cluster when it is switched on again.
    """
    for item in cache.under(members_prefix(node)):
        await cache.commit(Transaction([], [Delete(item.key)]))

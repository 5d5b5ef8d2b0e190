"""Containers that run without the Calico network they were started on.

Docker 29 forgets the network of a container whose Join has failed, and starts it without one the next time.
"""

from __future__ import annotations

from collections.abc import Collection

from calico_libnetwork.docker.containers import ContainerTable


def unconnected(table: ContainerTable, own_networks: Collection[str]) -> list[str]:
    """For people; ``own_networks`` are ids of Calico networks."""
    called = {table.network_name(network_id) for network_id in own_networks} | {*own_networks}
    return [
        f"container {name} was started on network {network} and is on none now:"
        f" docker network connect {network} {name} puts it back"
        for name, network in table.lost_networks()
        if network in called
    ]

"""``datastoreReady: false``: no address is assigned while a cluster moves, and whatever else goes on as before."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from ipaddress import ip_address

import pytest

from calico_libnetwork.datastore.initialise import set_ready
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Outcome, Transaction
from calico_libnetwork.errors import IpamError
from calico_libnetwork.ipam.view import CLUSTER_KEY
from tests.unit.ipam_cluster import Cluster, Host, a_cluster


class LockedAtTheLastMoment(MemoryDatastore):
    """``armed``, it is locked between the next decision and its commit."""

    armed = False

    async def commit(self, transaction: Transaction) -> Outcome:
        if self.armed:
            self.armed = False
            await set_ready(self, ready=False)
        return await super().commit(transaction)


@pytest.fixture
async def cluster() -> AsyncGenerator[Cluster, None]:
    async with a_cluster(LockedAtTheLastMoment()) as made:
        await made.pool("10.5.0.0/24")
        await made.node("a")
        await made.resource("ClusterInformation", "default", {})
        yield made


@pytest.fixture
async def host(cluster: Cluster) -> Host:
    return await cluster.host("a")


async def test_a_locked_datastore_takes_addresses_back_and_gives_none(cluster: Cluster, host: Host) -> None:
    address = await host.auto("before")
    await set_ready(cluster.store, ready=False)
    await cluster.heard()
    with pytest.raises(IpamError, match=r"the datastore is locked .* unlock it"):
        await host.auto()
    with pytest.raises(IpamError, match="the datastore is locked"):
        await host.assign(ip_address("10.5.0.200"))
    assert await host.ipam.release(address)

    await set_ready(cluster.store, ready=True)
    await cluster.heard()
    await host.auto()


async def test_nothing_is_assigned_after_the_lock_even_before_the_host_hears_of_it(
    cluster: Cluster, host: Host
) -> None:
    assert isinstance(cluster.store, LockedAtTheLastMoment)
    cluster.store.armed = True
    with pytest.raises(IpamError, match="the datastore is locked"):
        await host.auto()
    assert host.ipam.assignments() == []


async def test_cluster_information_that_nobody_can_read_locks_nothing(cluster: Cluster, host: Host) -> None:
    await cluster.put({CLUSTER_KEY: b"\xff"})
    await host.auto()

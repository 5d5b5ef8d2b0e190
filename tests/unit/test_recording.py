"""What Docker runs and the datastore lost is recorded again; what somebody else has by now stays his."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.datastore.protocol import Delete, Transaction
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.containers import Container
from calico_libnetwork.docker.departures import MEMORY, Departures
from calico_libnetwork.docker.endpoints import chosen_mac
from calico_libnetwork.docker.labels import CONTAINER_PREFIX
from calico_libnetwork.model.names import address_handle
from tests.unit.docker_fakes import NODE, FakeDaemon, Host, running_host

NETWORK = "a" * 64
ENDPOINT = "b" * 64
CONTAINER = "c" * 64


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    daemon = FakeDaemon(names={NETWORK: "net1"})
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as running:
        running.table.put(Container(id=CONTAINER, name="web", labels={f"{CONTAINER_PREFIX}role": "frontend"}))
        running.daemon.add(Container(id=CONTAINER, name="web", labels={f"{CONTAINER_PREFIX}role": "frontend"}))
        yield running


async def start(host: Host, *, endpoint_id: str = ENDPOINT, address: str = "", container: str = "web") -> str:
    options = {messages.ENDPOINT_NAME: container}
    requested = await host.drivers.ipam.request_address(
        messages.RequestAddress(pool_id="CalicoPoolIPv4", address=address, options=options)
    )
    interface = messages.EndpointInterface(address=requested.address)
    await host.drivers.network.create_endpoint(
        messages.CreateEndpoint(network_id=NETWORK, endpoint_id=endpoint_id, interface=interface)
    )
    return requested.address.partition("/")[0]


def docker_lists(host: Host, address: str, *, endpoint_id: str = ENDPOINT, mac: str = "") -> None:
    entry: dict[str, Any] = {"Name": "web", "EndpointID": endpoint_id, "MacAddress": mac}
    host.daemon.members[CONTAINER] = entry | {"IPv4Address": f"{address}/32", "IPv6Address": ""}


async def lose(host: Host, *prefixes: str) -> None:
    """As a restore to older data does."""
    keys = [key for prefix in prefixes for key in await host.keys(prefix)]
    await host.datastore.commit(Transaction([], [Delete(key) for key in keys]))
    await host.caught_up()


ENDPOINTS = "/calico/resources/v3/projectcalico.org/workloadendpoints/"
IPAM = "/calico/ipam/v2/"


@pytest.mark.parametrize(
    "prefixes", [(ENDPOINTS,), (ENDPOINTS, IPAM), (ENDPOINTS, IPAM, "/calico-libnetwork/"), (IPAM,)]
)
async def test_a_running_container_gets_its_endpoint_and_its_address_back(
    host: Host, prefixes: tuple[str, ...]
) -> None:
    address = await start(host)
    (before,) = await host.endpoints()
    docker_lists(host, address, mac=chosen_mac(ENDPOINT))
    await lose(host, *prefixes)
    await host.assembly.reconciler.round()
    (after,) = await host.endpoints()
    for endpoint in (before, after):
        del endpoint["metadata"]["uid"], endpoint["metadata"]["creationTimestamp"]
    assert after == before
    assert after["metadata"]["labels"]["role"] == "frontend"
    assert [str(each.address) for each in host.ipam.assignments(NODE)] == [address]
    assert host.assembly.recording.findings == []


async def test_the_mac_address_is_the_one_that_docker_lists(host: Host) -> None:
    docker_lists(host, await start(host), mac="02:42:ac:11:aa:bb")
    await lose(host, ENDPOINTS)
    await host.assembly.reconciler.round()
    assert (await host.endpoints())[0]["spec"]["mac"] == "02:42:ac:11:aa:bb"


async def test_an_address_that_another_endpoint_has_by_now_stays_its_own(host: Host) -> None:
    address = await start(host)
    docker_lists(host, address)
    await lose(host, ENDPOINTS, IPAM)
    await start(host, endpoint_id="d" * 64, address=address)
    await host.assembly.reconciler.round()
    assert [each["spec"]["endpoint"] for each in await host.endpoints()] == ["d" * 64]
    (finding,) = host.assembly.recording.findings
    assert "container web is running" in finding
    assert f"its address {address} is now that of container web on node {NODE}" in finding


async def test_an_address_that_another_host_has_by_now_stays_assigned_to_it(host: Host) -> None:
    address = await start(host)
    docker_lists(host, address)
    await lose(host, ENDPOINTS, IPAM)
    await host.ipam.assign(ip_address(address), handle="libnetwork.host-2.x", attributes={"node": "host-2"})
    await host.assembly.reconciler.round()
    assert await host.endpoints() == []
    assert [each.handle for each in host.ipam.assignments()] == ["libnetwork.host-2.x"]
    (finding,) = host.assembly.recording.findings
    assert "libnetwork.host-2.x on host-2" in finding

    await host.ipam.release(ip_address(address))
    await host.assembly.reconciler.round()
    assert len(await host.endpoints()) == 1
    assert host.assembly.recording.findings == []


async def test_what_is_in_flight_to_the_next_container_is_not_taken_from_it(host: Host) -> None:
    address = await start(host)
    docker_lists(host, address)
    await lose(host, ENDPOINTS, IPAM)
    await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4", address=address))
    await host.assembly.reconciler.round()
    assert await host.endpoints() == []
    assert len(host.assembly.recording.findings) == 1


async def test_nothing_is_recorded_of_what_docker_has_deleted_or_another_host_has(host: Host) -> None:
    """A listing may be older than the deletion; those of shared networks have the endpoints of all hosts."""
    address = await start(host)
    docker_lists(host, address)
    ids = messages.EndpointRequest(network_id=NETWORK, endpoint_id=ENDPOINT)
    await host.drivers.network.delete_endpoint(ids)
    await host.assembly.reconciler.round()
    docker_lists(host, address, endpoint_id="e" * 64)
    await host.assembly.reconciler.round()
    assert await host.endpoints() == []
    assert host.ipam.assignments() == []


async def test_an_address_left_over_from_before_is_the_containers_again(host: Host) -> None:
    """As where the plugin was killed between claiming it and writing the endpoint."""
    address = await start(host)
    docker_lists(host, address)
    await lose(host, ENDPOINTS, IPAM)
    await host.ipam.assign(ip_address(address), handle=address_handle(NODE, "x"), attributes={"node": NODE})
    await host.assembly.reconciler.round()
    assert len(await host.endpoints()) == 1
    assert [each.handle for each in host.ipam.assignments()] == [address_handle(NODE, "x")]


async def test_addresses_that_a_network_keeps_out_of_use_are_kept_again(host: Host) -> None:
    config = [{"Subnet": "10.65.0.0/16", "AuxiliaryAddresses": {"router": "10.65.0.9"}}]
    host.daemon.properties = {"Scope": "local", "IPAM": {"Config": config}}
    await host.assembly.reconciler.round()
    assert [str(each.address) for each in host.ipam.assignments(NODE)] == ["10.65.0.9"]
    assert host.assembly.parts.networks.is_auxiliary(ip_address("10.65.0.9"))
    await host.assembly.reconciler.round()
    assert len(host.ipam.assignments(NODE)) == 1


async def test_an_endpoint_that_goes_without_dockers_word_is_looked_for_at_once(host: Host) -> None:
    await start(host)
    news = host.assembly.parts.departures.news
    news.clear()
    await lose(host, ENDPOINTS)
    assert news.is_set()
    news.clear()
    await start(host, endpoint_id="d" * 64)
    await host.drivers.network.delete_endpoint(messages.EndpointRequest(network_id=NETWORK, endpoint_id="d" * 64))
    assert not news.is_set()


def test_that_an_endpoint_went_is_remembered_for_longer_than_a_listing_takes_and_not_for_ever() -> None:
    now = 0.0
    departures = Departures(clock=lambda: now)
    departures.tell(ENDPOINT)
    now = MEMORY
    assert departures.was_told(ENDPOINT)
    now = MEMORY + 1
    assert not departures.was_told(ENDPOINT)

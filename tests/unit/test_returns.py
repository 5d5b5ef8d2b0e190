"""An endpoint goes with its addresses, and Docker's releases that follow do no harm to who has them next."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.returns import PATIENCE
from calico_libnetwork.errors import DatastoreUnavailable
from calico_libnetwork.model.ipam_keys import CONFIG_KEY
from tests.unit.docker_fakes import FakeDaemon, Host, running_host

NETWORK = "a" * 64
POOL = "CalicoPoolIPv4"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with running_host(tmp_path, daemon=FakeDaemon(names={NETWORK: "net1"})) as running:
        yield running


async def start(host: Host, endpoint_id: str, address: str = "") -> str:
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id=POOL, address=address))
    interface = messages.EndpointInterface(address=requested.address)
    await host.drivers.network.create_endpoint(
        messages.CreateEndpoint(network_id=NETWORK, endpoint_id=endpoint_id, interface=interface)
    )
    return requested.address.partition("/")[0]


async def delete(host: Host, endpoint_id: str) -> None:
    await host.drivers.network.delete_endpoint(messages.EndpointRequest(network_id=NETWORK, endpoint_id=endpoint_id))


async def release(host: Host, address: str) -> None:
    await host.drivers.ipam.release_address(messages.ReleaseAddress(pool_id=POOL, address=address))


async def test_a_container_costs_three_transactions(host: Host) -> None:
    await start(host, "b" * 64)
    host.transactions()
    address = await start(host, "c" * 64)
    assert host.transactions() == 2
    await delete(host, "c" * 64)
    await release(host, address)
    assert host.transactions() == 1
    assert len(await host.endpoints()) == len(host.ipam.assignments()) == 1


async def test_a_late_release_leaves_the_next_owner_alone(host: Host) -> None:
    address = await start(host, "b" * 64)
    await delete(host, "b" * 64)
    assert await start(host, "c" * 64, address) == address
    await release(host, address)
    assert len(await host.endpoints()) == len(host.ipam.assignments()) == 1

    await delete(host, "c" * 64)
    await release(host, address)
    assert host.ipam.assignments() == []


async def test_an_address_without_an_endpoint_is_released_by_its_own_call(host: Host) -> None:
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id=POOL))
    await release(host, requested.address.partition("/")[0])
    assert host.ipam.assignments() == []


async def test_an_endpoint_does_not_take_along_what_another_host_has_assigned(host: Host) -> None:
    address = await start(host, "b" * 64)
    await host.ipam.release(ip_address(address))
    await host.ipam.assign(ip_address(address), handle="another", attributes={"node": "host-b"})
    await delete(host, "b" * 64)
    await release(host, address)
    assert await host.endpoints() == []
    assert [each.handle for each in host.ipam.assignments()] == ["another"]


async def test_ipam_data_that_nobody_can_read_keeps_no_endpoint(host: Host) -> None:
    await start(host, "b" * 64)
    await host.datastore.commit(Transaction([], [Put(CONFIG_KEY, b"\xff")]))
    await host.caught_up()
    await delete(host, "b" * 64)
    assert await host.endpoints() == []


async def killed(host: Host, directory: Path) -> AsyncIterator[Host]:
    """The next process of the same host, with what the last one had in memory gone."""
    async with running_host(directory, datastore=host.datastore, daemon=host.daemon, veths=host.veths) as running:
        yield running


async def test_a_release_that_outlives_the_plugin_leaves_the_next_owner_alone(host: Host, tmp_path: Path) -> None:
    """Docker repeats a call that got no answer; by then another process has given the address out again."""
    address = await start(host, "b" * 64)
    await delete(host, "b" * 64)
    async for successor in killed(host, tmp_path):
        assert await start(successor, "c" * 64, address) == address
        await release(successor, address)
        assert len(await successor.endpoints()) == len(successor.ipam.assignments()) == 1
        await delete(successor, "c" * 64)
        await release(successor, address)
        assert successor.ipam.assignments() == []


async def test_neither_does_it_take_what_is_only_requested(host: Host, tmp_path: Path) -> None:
    address = await start(host, "b" * 64)
    await delete(host, "b" * 64)
    async for successor in killed(host, tmp_path):
        await successor.drivers.ipam.request_address(messages.RequestAddress(pool_id=POOL, address=address))
        await release(successor, address)
        assert len(successor.ipam.assignments()) == 1
        await release(successor, address)
        assert successor.ipam.assignments() == []


async def test_a_release_that_happened_and_was_not_answered_is_not_done_twice(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id=POOL))
    address = requested.address.partition("/")[0]
    monkeypatch.setattr(host.assembly.parts.returns, "end", lambda _: None)  # killed before it
    await release(host, address)
    async for successor in killed(host, tmp_path):
        await start(successor, "c" * 64, address)
        await release(successor, address)
        assert len(await successor.endpoints()) == len(successor.ipam.assignments()) == 1


async def test_a_deletion_that_docker_repeats_to_the_next_process_is_done_once(host: Host, tmp_path: Path) -> None:
    address = await start(host, "b" * 64)
    await delete(host, "b" * 64)
    async for successor in killed(host, tmp_path):
        await delete(successor, "b" * 64)
        await start(successor, "c" * 64, address)
        await release(successor, address)
        assert len(await successor.endpoints()) == len(successor.ipam.assignments()) == 1


async def test_a_deletion_that_did_not_happen_is_made_up_for_by_the_release(host: Host, tmp_path: Path) -> None:
    address = await start(host, "b" * 64)
    host.datastore.down = True
    with pytest.raises(DatastoreUnavailable):
        await delete(host, "b" * 64)
    host.datastore.down = False
    async for successor in killed(host, tmp_path):
        await release(successor, address)
        assert await successor.endpoints() == []
        assert successor.ipam.assignments() == []


async def test_a_release_that_never_came_is_not_waited_for_in_vain(host: Host) -> None:
    address = await start(host, "b" * 64)
    await delete(host, "b" * 64)
    now = time.time()
    host.assembly.parts.returns._clock = lambda: now + PATIENCE + 1
    await host.drivers.ipam.request_address(messages.RequestAddress(pool_id=POOL, address=address))
    await release(host, address)
    assert host.ipam.assignments() == []

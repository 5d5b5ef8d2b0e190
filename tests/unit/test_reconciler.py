"""What a crash leaves behind is removed; what anybody may still use is not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.docker import in_flight, messages
from calico_libnetwork.docker.reconciler import CONFIRMATION, SETTLING, Reconciler, Suspicion
from calico_libnetwork.errors import DatastoreUnavailable, DockerUnavailable
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import address_handle
from tests.unit.docker_fakes import NODE, FakeDaemon, Host, running_host

NETWORK = "a" * 64
ENDPOINT = "b" * 64
INTERFACE = "cali" + "b" * 11


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with running_host(tmp_path, daemon=FakeDaemon(names={NETWORK: "net1"})) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reconciling(host: Host, clock: Clock) -> Reconciler:
    made = host.assembly.reconciler
    made._clock = clock
    return made


async def start(host: Host) -> str:
    """A container's endpoint, as Docker has it made; its address."""
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4"))
    await host.drivers.network.create_endpoint(
        messages.CreateEndpoint(
            network_id=NETWORK,
            endpoint_id=ENDPOINT,
            interface=messages.EndpointInterface(address=requested.address),
        )
    )
    return requested.address.partition("/")[0]


def docker_lists(host: Host, address: str) -> None:
    entry: dict[str, Any] = {"EndpointID": ENDPOINT, "IPv4Address": f"{address}/32", "IPv6Address": ""}
    host.daemon.members["container"] = entry


async def test_an_endpoint_that_docker_lists_stays(host: Host, reconciling: Reconciler, clock: Clock) -> None:
    docker_lists(host, await start(host))
    await reconciling.round()
    clock.now += CONFIRMATION
    assert await reconciling.round() == []
    assert len(await host.endpoints()) == 1


async def test_an_endpoint_of_a_dead_daemon_goes_with_address_and_interface(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    address = await start(host)
    assert await reconciling.round() == []
    clock.now += CONFIRMATION
    assert await reconciling.round() == [Suspicion("endpoint", ENDPOINT)]
    assert await host.endpoints() == []
    assert INTERFACE not in host.veths.present
    assert host.ipam.assignment(ip_address(address)) is None


async def test_an_endpoint_without_an_interface_goes_at_once_if_it_is_not_a_start_under_way(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    await start(host)
    host.veths.present.clear()
    assert await reconciling.round() == []
    reconciling._since.clear()  # as another process would see it
    clock.now += SETTLING + 1
    assert await reconciling.round() == [Suspicion("endpoint", ENDPOINT)]


async def test_an_address_that_docker_still_shows_is_not_released(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    """Somebody deleted the interface by hand; Docker will release the address when the container ends."""
    address = await start(host)
    host.veths.present.clear()
    docker_lists(host, address)
    host.daemon.members["container"]["EndpointID"] = "another"
    await reconciling.round()
    clock.now += CONFIRMATION
    await reconciling.round()
    assert host.ipam.assignment(ip_address(address)) is not None


async def test_a_daemon_that_does_not_answer_is_no_evidence(host: Host, reconciling: Reconciler, clock: Clock) -> None:
    await start(host)
    host.daemon.names = None
    for _ in range(2):
        with pytest.raises(DockerUnavailable):
            await reconciling.round()
        clock.now += CONFIRMATION
    assert len(await host.endpoints()) == 1


async def test_a_leaked_address_is_released_once_it_has_lasted(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    address = await host.ipam.auto_assign(4, handle=address_handle(NODE, "lost"), attributes={"node": NODE})
    assert await reconciling.round() == []
    clock.now += CONFIRMATION
    assert await reconciling.round() == [Suspicion("address", str(address))]
    assert host.ipam.assignment(address) is None


async def test_a_requested_address_is_not_leaked(host: Host, reconciling: Reconciler, clock: Clock) -> None:
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4"))
    await reconciling.round()
    clock.now += CONFIRMATION
    assert await reconciling.round() == []
    assert host.ipam.assignment(ip_address(requested.address.partition("/")[0])) is not None


async def test_an_address_that_docker_forgot_is_looked_for_as_soon_as_it_may_have_been(
    host: Host, reconciling: Reconciler, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker tells nobody of it when the container's second address is refused."""
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4"))
    flights = host.assembly.parts.in_flight
    asked = flights._clock()
    monkeypatch.setattr(flights, "_clock", lambda: asked + in_flight.PATIENCE - 20)
    assert await reconciling.round() == []
    assert 19 < reconciling._pause() < 21
    monkeypatch.setattr(flights, "_clock", lambda: asked + in_flight.PATIENCE + 1)
    assert await reconciling.round() == []
    assert reconciling._pause() <= CONFIRMATION
    clock.now += CONFIRMATION
    assert await reconciling.round() == [Suspicion("address", requested.address.partition("/")[0])]


async def test_an_address_of_somebody_elses_handle_is_left_alone(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    address = await host.ipam.auto_assign(4, handle="vxlan-tunnel-addr-host-1", attributes={"node": NODE})
    await reconciling.round()
    clock.now += CONFIRMATION
    assert await reconciling.round() == []
    assert host.ipam.assignment(address) is not None


async def test_an_interface_without_an_endpoint_goes(host: Host, reconciling: Reconciler, clock: Clock) -> None:
    await start(host)
    docker_lists(host, "10.65.0.1")
    spec = host.veths.present[INTERFACE]
    host.veths.present["cali0000000000a"] = replace(spec, host_name="cali0000000000a")
    host.veths.present["eth0"] = spec
    await reconciling.round()
    assert reconciling._pause() <= SETTLING  # and not only at the next round of the minute
    clock.now += SETTLING
    assert await reconciling.round() == [Suspicion("interface", "cali0000000000a")]
    assert host.veths.present.keys() == {INTERFACE, "eth0"}


async def test_an_interface_being_made_or_of_another_orchestrator_stays(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    await start(host)
    docker_lists(host, "10.65.0.1")
    spec = host.veths.present[INTERFACE]
    host.veths.present |= dict.fromkeys(["cali0000000000a", "cali0000000000b"], spec)
    reconciling._being_made = lambda: ["cali0000000000a"]
    endpoint = {"node": NODE, "orchestrator": "k8s", "interfaceName": "cali0000000000b", "ipNetworks": ["10.9.0.1/32"]}
    document = documents.new_document(
        "WorkloadEndpoint", f"{NODE.replace('-', '--')}-k8s-pod-eth0", endpoint, uid="u", created=""
    )
    key = ResourceKey("WorkloadEndpoint", document["metadata"]["name"], "default")
    await host.datastore.commit(Transaction([], [Put(key.path, documents.encode(document))]))
    await host.caught_up()
    await reconciling.round()
    clock.now += CONFIRMATION
    assert await reconciling.round() == []
    assert len(host.veths.present) == 3


async def test_what_docker_removed_during_an_outage_goes_as_soon_as_the_datastore_is_back(
    host: Host, reconciling: Reconciler
) -> None:
    address = await start(host)
    host.datastore.down = True
    with pytest.raises(DatastoreUnavailable):
        await host.drivers.network.delete_endpoint(messages.EndpointRequest(network_id=NETWORK, endpoint_id=ENDPOINT))
    with pytest.raises(DatastoreUnavailable):
        await host.drivers.ipam.release_address(messages.ReleaseAddress(pool_id="CalicoPoolIPv4", address=address))
    assert await reconciling.round() == []
    await host.assembly.parts.removals.drain()
    assert INTERFACE not in host.veths.present

    host.datastore.down = False
    assert [found.kind for found in await reconciling.round()] == ["endpoint"]
    assert await host.endpoints() == []
    assert host.ipam.assignments() == []
    await reconciling.round()
    assert not host.assembly.parts.departures


@pytest.mark.parametrize("down", [True, False])
async def test_a_network_removed_before_its_left_over_endpoints_are_takes_its_profile_along(
    host: Host, reconciling: Reconciler, down: bool
) -> None:
    """``down`` says whether the datastore is still away when Docker removes the network."""
    await start(host)
    host.datastore.down = True
    with pytest.raises(DatastoreUnavailable):
        await host.drivers.network.delete_endpoint(messages.EndpointRequest(network_id=NETWORK, endpoint_id=ENDPOINT))
    host.datastore.down = down
    await host.drivers.network.delete_network(messages.NetworkRequest(network_id=NETWORK))
    await reconciling.round()  # Docker still lists the network while it removes it
    host.datastore.down = False
    host.daemon.names = {"c" * 64: "another"}
    await host.assembly.listener.networks_gone({NETWORK})

    await reconciling.round()
    assert await host.resource("Profile", "net1") is None
    assert await host.keys("/calico-libnetwork/v1/networks/") == []
    await reconciling.round()
    assert not host.assembly.parts.departures


async def test_an_address_released_in_vain_and_given_out_again_stays(host: Host, reconciling: Reconciler) -> None:
    """Its release may have reached the datastore although nobody heard of that."""
    requested = await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4"))
    address = requested.address.partition("/")[0]
    host.datastore.down = True
    with pytest.raises(DatastoreUnavailable):
        await host.drivers.ipam.release_address(messages.ReleaseAddress(pool_id="CalicoPoolIPv4", address=address))
    host.datastore.down = False
    await host.ipam.release(ip_address(address))
    await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4", address=address))
    assert await reconciling.round() == []
    assert len(host.ipam.assignments()) == 1


async def test_a_network_removed_while_the_datastore_was_away_is_forgotten_with_its_profile(
    host: Host, reconciling: Reconciler, clock: Clock
) -> None:
    await start(host)
    await host.drivers.network.delete_endpoint(messages.EndpointRequest(network_id=NETWORK, endpoint_id=ENDPOINT))
    assert await host.resource("Profile", "net1") is not None
    host.daemon.names = {"c" * 64: "another"}
    assert await reconciling.round() == []
    clock.now += CONFIRMATION
    assert Suspicion("network", NETWORK) in await reconciling.round()
    assert await host.resource("Profile", "net1") is None
    assert await host.keys("/calico-libnetwork/v1/networks/") == []

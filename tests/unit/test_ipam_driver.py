"""IpamDriver over the real IPAM and an in-memory datastore."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.docker import in_flight, messages
from calico_libnetwork.errors import AddressInUse, AddressNotInPool, NoPool, Refused
from calico_libnetwork.model import block as blocks
from calico_libnetwork.model import documents
from calico_libnetwork.model.block import Owner
from calico_libnetwork.model.ipam_keys import block_key
from calico_libnetwork.model.kinds import ResourceKey
from tests.unit.docker_fakes import CREATED, NODE, FakeDaemon, Host, pool, running_host
from tests.unit.test_network_driver import NET, endpoint, joining, network, of

CHOSEN = "10.65.9.9"
SUB_POOL = (
    "Calico IPAM does not support sub pool configuration on 'docker create network'. Calico IP Pools should be"
    " configured first and IP assignment is from those pre-configured pools."
)


def asking(
    address: str = "", *, pool_id: str = "CalicoPoolIPv4", options: dict[str, Any] | None = None
) -> messages.RequestAddress:
    return messages.RequestAddress(pool_id=pool_id, address=address, options=options)


def releasing(address: str, pool_id: str = "CalicoPoolIPv4") -> messages.ReleaseAddress:
    return messages.ReleaseAddress(pool_id=pool_id, address=address)


def wanting(**fields: Any) -> messages.RequestPool:
    return messages.RequestPool(**{"address_space": "CalicoGlobalAddressSpace", "options": {}} | fields)


def assigned(host: Host, address: str) -> bool:
    return host.ipam.assignment(ip_address(address)) is not None


async def assigned_by_another(host: Host, address: str) -> None:
    """As another program of this node does it: CNI, or a tunnel."""
    await host.ipam.assign(ip_address(address), handle="vxlan-tunnel-addr-host-1", attributes={"node": NODE})


@pytest.mark.parametrize(
    ("request_", "pool_id", "shown", "gateway"),
    [
        (wanting(), "CalicoPoolIPv4", "0.0.0.0/0", "0.0.0.0/0"),
        (wanting(v6=True), "CalicoPoolIPv6", "::/0", "::/0"),
        (wanting(pool="10.65.0.0/16"), "10.65.0.0/16", "10.65.0.0/16", "0.0.0.0/0"),
        (wanting(pool="10.65.3.4/16"), "10.65.0.0/16", "10.65.0.0/16", "0.0.0.0/0"),
        (wanting(pool="fd80:24e2:f998:72d6::/64", v6=True), *["fd80:24e2:f998:72d6::/64"] * 2, "::/0"),
        (wanting(pool="0.0.0.0/0"), "CalicoPoolIPv4", "0.0.0.0/0", "0.0.0.0/0"),
        (wanting(pool="0.0.0.0/24"), "CalicoPoolIPv4", "0.0.0.0/0", "0.0.0.0/0"),
        (wanting(pool="::/0", v6=True), "CalicoPoolIPv6", "::/0", "::/0"),
        (wanting(pool="::/64", v6=True, address_space="CalicoLocalAddressSpace"), "CalicoPoolIPv6", "::/0", "::/0"),
        (wanting(address_space="CalicoLocalAddressSpace"), "CalicoPoolIPv4", "0.0.0.0/0", "0.0.0.0/0"),
        (
            wanting(address_space="CalicoLocalAddressSpace", v6=True),
            "CalicoPoolIPv6",
            "fd80:24e2:f998:72d6::/64",
            "::/0",
        ),
    ],
)
async def test_request_pool(
    tmp_path: Path, request_: messages.RequestPool, pool_id: str, shown: str, gateway: str
) -> None:
    async with running_host(tmp_path) as host:
        answer = await host.drivers.ipam.request_pool(request_)
        assert host.transactions() == 0
    assert answer == messages.RequestedPool(pool_id=pool_id, pool=shown, data={"com.docker.network.gateway": gateway})


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            wanting(pool="10.1.0.0/16"),
            "The requested subnet must match the CIDR of a configured Calico IP Pool. 10.1.0.0/16 is none; create",
        ),
        (
            wanting(pool="10.65.0.0/17"),
            "The requested subnet must match the CIDR of a configured Calico IP Pool.",
        ),
        (
            wanting(pool="10.65.0.0/16", sub_pool="10.65.1.0/24"),
            SUB_POOL,
        ),
        (wanting(options={"k": "v"}), "Arbitrary options are not supported"),
        (wanting(pool="10.65.0.0/99"), "subnet 10.65.0.0/99 is no CIDR"),
    ],
)
async def test_request_pool_refuses(tmp_path: Path, request_: messages.RequestPool, sentence: str) -> None:
    async with running_host(tmp_path) as host:
        with pytest.raises((Refused, NoPool)) as refusal:
            await host.drivers.ipam.request_pool(request_)
    assert str(refusal.value).startswith(sentence)


async def test_local_ipv6_without_a_pool_is_refused_instead_of_looping(tmp_path: Path) -> None:
    async with running_host(tmp_path, resources=(pool("pool4", "10.65.0.0/16"),)) as host:
        with pytest.raises(NoPool, match="no IPv6 pool is configured"):
            await host.drivers.ipam.request_pool(wanting(v6=True, address_space="CalicoLocalAddressSpace"))


async def test_a_flood_of_equal_pool_requests_is_ended(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        for _ in range(99):
            await host.drivers.ipam.request_pool(wanting(v6=True))
        with pytest.raises(Refused, match="over and over"):
            await host.drivers.ipam.request_pool(wanting(v6=True))
        await host.drivers.ipam.request_pool(wanting())


async def test_request_and_release_cost_one_transaction_each(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking())
        host.transactions()
        answer = await host.drivers.ipam.request_address(asking())
        assert host.transactions() == 1
        address = answer.address.removesuffix("/32")
        await host.drivers.ipam.release_address(releasing(address))
        assert host.transactions() == 1
        assert not assigned(host, address)


async def test_an_address_carries_handle_node_and_container(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        answer = await host.drivers.ipam.request_address(asking(options={messages.ENDPOINT_NAME: "web"}))
        assignment = host.ipam.assignment(ip_address(answer.address.removesuffix("/32")))
    assert assignment is not None
    assert assignment.handle is not None
    assert assignment.handle.startswith("libnetwork.host-1.")
    assert assignment.attributes == {"node": NODE, "container": "web"}


async def test_ipv6_addresses_are_single_addresses(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        answer = await host.drivers.ipam.request_address(asking(pool_id="CalicoPoolIPv6"))
    assert answer.address.endswith("/128")


async def test_a_networks_pool_is_used_and_another_is_not(tmp_path: Path) -> None:
    pools = (pool("one", "10.65.0.0/16"), pool("two", "10.66.0.0/16"))
    async with running_host(tmp_path, resources=pools) as host:
        for pool_id in ("10.66.0.0/16", "two"):
            answer = await host.drivers.ipam.request_address(asking(pool_id=pool_id))
            assert answer.address.startswith("10.66.")
        with pytest.raises(NoPool, match=r"10\.67\.0\.0/16"):
            await host.drivers.ipam.request_address(asking(pool_id="10.67.0.0/16"))
        with pytest.raises(NoPool, match="create the network anew"):
            await host.drivers.ipam.request_address(asking(pool_id="nonsense"))


async def test_a_chosen_address_is_given(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        assert (await host.drivers.ipam.request_address(asking(CHOSEN))).address == f"{CHOSEN}/32"
        given = await host.drivers.ipam.request_address(
            asking("fd80:24e2:f998:72d6::9", pool_id="fd80:24e2:f998:72d6::/64")
        )
        assert given.address == "fd80:24e2:f998:72d6::9/128"


@pytest.mark.parametrize(
    ("address", "pool_id", "sentence"),
    [
        ("10.70.0.1", "CalicoPoolIPv4", "address 10.70.0.1 is in no enabled IP pool"),
        ("224.0.0.1", "CalicoPoolIPv4", "address 224.0.0.1 is in no enabled IP pool"),
        ("10.66.0.1", "10.65.0.0/16", "address 10.66.0.1 is not in the network's pool 10.65.0.0/16"),
    ],
)
async def test_a_chosen_address_outside_is_refused(tmp_path: Path, address: str, pool_id: str, sentence: str) -> None:
    pools = (pool("one", "10.65.0.0/16"), pool("two", "10.66.0.0/16"))
    async with running_host(tmp_path, resources=pools) as host:
        with pytest.raises(AddressNotInPool) as refusal:
            await host.drivers.ipam.request_address(asking(address, pool_id=pool_id))
        assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize("address", ["10.65.0.1", "fd80:24e2:f998:72d6::1"])
async def test_a_gateway_cannot_be_chosen(tmp_path: Path, address: str) -> None:
    options = {"RequestAddressType": "com.docker.network.gateway"}
    async with running_host(tmp_path) as host:
        with pytest.raises(Refused) as refusal:
            await host.drivers.ipam.request_address(asking(address, options=options))
    assert str(refusal.value) == "Calico IPAM does not support specifying a gateway."


@pytest.mark.parametrize(
    ("address", "pool_id", "answer"),
    [
        ("0.0.0.0", "CalicoPoolIPv4", "0.0.0.0/32"),
        ("", "CalicoPoolIPv4", "0.0.0.0/32"),
        ("::", "CalicoPoolIPv6", "::/128"),
        ("", "CalicoPoolIPv6", "::/128"),
    ],
)
async def test_any_gateway_is_none_and_takes_no_address(
    tmp_path: Path, address: str, pool_id: str, answer: str
) -> None:
    options = {"RequestAddressType": "com.docker.network.gateway"}
    async with running_host(tmp_path) as host:
        given = await host.drivers.ipam.request_address(asking(address, pool_id=pool_id, options=options))
        assert (given.address, host.transactions()) == (answer, 0)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.65.1.1", "10.99.0.1", "fd80:24e2:f998:72d6::7", ""])
async def test_release_of_the_gateway_or_an_unknown_address_is_a_no_op(tmp_path: Path, address: str) -> None:
    async with running_host(tmp_path) as host:
        for _ in range(2):
            await host.drivers.ipam.release_address(releasing(address))
        assert host.transactions() == 0


async def test_release_alone_removes_what_a_crashed_daemon_left(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN))
        await host.drivers.network.create_endpoint(endpoint(v4=f"{CHOSEN}/32"))
        await host.drivers.network.join(joining())
        await host.drivers.ipam.release_address(releasing(CHOSEN))
        assert not assigned(host, CHOSEN)
        await host.assembly.parts.removals.drain()
        assert await host.endpoints() == []
        assert host.veths.present == {}


async def test_release_of_an_address_in_use_elsewhere_keeps_it(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN))
        await host.drivers.network.create_endpoint(endpoint(v4=f"{CHOSEN}/32"))
        async with running_host(tmp_path / "2", datastore=host.datastore, node="host-2") as other:
            await other.drivers.ipam.release_address(releasing(CHOSEN))
            assert assigned(other, CHOSEN)
        await assigned_by_another(host, "10.65.9.10")
        with pytest.raises(
            AddressInUse, match="already assigned to vxlan-tunnel-addr-host-1 on host-1; choose another"
        ):
            await host.drivers.ipam.request_address(asking("10.65.9.10"))
        await host.drivers.ipam.release_address(releasing("10.65.9.10"))
        assert assigned(host, "10.65.9.10")
        assert len(await host.endpoints()) == 1


async def test_release_frees_what_the_older_plugin_assigned_without_a_handle(tmp_path: Path) -> None:
    empty = blocks.fresh(ip_network("10.65.9.0/26"), node=NODE, now=0)
    old = blocks.assign(empty, [9], Owner(None))
    async with running_host(tmp_path) as host:
        await host.cache.commit(Transaction([], [Put(block_key(old.network), blocks.encode(old))]))
        assert assigned(host, CHOSEN)
        await host.drivers.ipam.release_address(releasing(CHOSEN))
        assert not assigned(host, CHOSEN)


async def test_a_chosen_address_in_use_is_refused_naming_its_holder(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN))
        with pytest.raises(AddressInUse, match="has just been given to another container; choose another"):
            await host.drivers.ipam.request_address(asking(CHOSEN))
        await host.drivers.network.create_endpoint(endpoint(v4=f"{CHOSEN}/32"))
        with pytest.raises(AddressInUse, match="is in use by endpoint 8f3a01b2c3d4 on node host-1; choose another"):
            await host.drivers.ipam.request_address(asking(CHOSEN))


async def test_a_chosen_address_of_a_container_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    """The host crashed: no release came, the interface is gone, the container starts again with its --ip."""
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN))
        await host.drivers.network.create_endpoint(endpoint(v4=f"{CHOSEN}/32"))
        async with running_host(tmp_path, datastore=host.datastore) as again:
            answer = await again.drivers.ipam.request_address(asking(CHOSEN))
            assert answer.address == f"{CHOSEN}/32"
            assert await again.endpoints() == []
            await again.drivers.network.create_endpoint(endpoint("9" * 64, v4=answer.address))


async def test_a_request_that_was_never_used_may_be_taken_over_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN))
        monkeypatch.setattr(in_flight, "PATIENCE", 0.0)
        await host.drivers.ipam.request_address(asking(CHOSEN))


async def test_an_auxiliary_address_is_nobodys(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN, pool_id="10.65.0.0/16"))
        data = messages.IpamData(
            address_space="CalicoGlobalAddressSpace", pool="10.65.0.0/16", aux_addresses={"router": f"{CHOSEN}/16"}
        )
        await host.drivers.network.create_network(messages.CreateNetwork(network_id=NET, ipv4_data=(data,)))
        async with running_host(tmp_path, datastore=host.datastore) as again:
            with pytest.raises(AddressInUse, match="kept out of use by a network's --aux-address; choose another"):
                await again.drivers.ipam.request_address(asking(CHOSEN, pool_id="10.65.0.0/16"))


async def test_a_container_s_life_leaves_nothing(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_network(network())
        for _ in range(3):
            answer = await host.drivers.ipam.request_address(asking())
            await host.drivers.network.create_endpoint(endpoint(v4=answer.address))
            await host.drivers.network.join(joining())
            await host.drivers.network.leave(of())
            await host.drivers.network.delete_endpoint(of())
            await host.drivers.ipam.release_address(releasing(answer.address.removesuffix("/32")))
        await host.drivers.network.delete_network(messages.NetworkRequest(network_id=NET))
        assert await host.endpoints() == []
        assert host.ipam.assignments() == []
        assert await host.keys("/calico-libnetwork/") == []
        assert await host.keys("/calico/resources/v3/projectcalico.org/profiles/") == []
        assert await host.keys("/calico/ipam/v2/handle/") == []
        await host.assembly.parts.removals.drain()
        assert host.veths.present == {}


async def test_an_endpoint_of_another_orchestrator_on_this_node_is_left_alone(tmp_path: Path) -> None:
    key = ResourceKey("WorkloadEndpoint", "host--1-k8s-pod--1-eth0", "default")
    spec = {"orchestrator": "k8s", "node": NODE, "pod": "pod-1", "endpoint": "eth0", "interfaceName": "cali123"}
    pod = documents.new_document(
        "WorkloadEndpoint",
        key.name,
        spec | {"ipNetworks": [f"{CHOSEN}/32"]},
        uid="u",
        created=CREATED,
        namespace="default",
    )
    async with running_host(tmp_path) as host:
        await host.drivers.ipam.request_address(asking(CHOSEN))
        await host.cache.commit(Transaction([], [Put(key.path, documents.encode(pod))]))
        await host.drivers.ipam.release_address(releasing(CHOSEN))
        assert assigned(host, CHOSEN)
        assert await host.endpoints() == [pod]
        assert list(host.assembly.parts.endpoints.of_node()) == []

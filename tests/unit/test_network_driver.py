"""NetworkDriver over a real cache and an in-memory datastore; the kernel and the agent are stand-ins."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from calico_libnetwork.docker import messages
from calico_libnetwork.errors import (
    AddressInUse,
    AlreadyExists,
    DataplaneError,
    DatastoreUnavailable,
    NotFound,
    Refused,
)
from tests.unit.docker_fakes import NODE, FakeDaemon, running_host

NET = "1" * 64
ENDPOINT = "8f3a01b2c3d4" + "0" * 52
V4 = "10.65.77.65/32"
V6 = "fd80:24e2:f998:72d6::41/128"
PATH = f"/calico/resources/v3/projectcalico.org/workloadendpoints/libnetwork/host--1-libnetwork-libnetwork-{ENDPOINT}"


def network(options: dict[str, Any] | None = None, *, network_id: str = NET) -> messages.CreateNetwork:
    data = messages.IpamData(address_space="CalicoGlobalAddressSpace", pool="0.0.0.0/0", gateway="0.0.0.0/0")
    return messages.CreateNetwork(
        network_id=network_id,
        options={"com.docker.network.enable_ipv6": False, "com.docker.network.generic": {}} | (options or {}),
        ipv4_data=(data,),
        ipv6_data=(),
    )


def endpoint(
    endpoint_id: str = ENDPOINT, *, v4: str = V4, v6: str = "", mac: str = "", name: str = "", network_id: str = NET
) -> messages.CreateEndpoint:
    return messages.CreateEndpoint(
        network_id=network_id,
        endpoint_id=endpoint_id,
        interface=messages.EndpointInterface(address=v4, address_ipv6=v6, mac_address=mac),
        options={"com.docker.network.endpoint.ifname": name} if name else {},
    )


def of(endpoint_id: str = ENDPOINT, network_id: str = NET) -> messages.EndpointRequest:
    return messages.EndpointRequest(network_id=network_id, endpoint_id=endpoint_id)


def joining(endpoint_id: str = ENDPOINT, sandbox: str = "/var/run/docker/netns/c575657a5fd2") -> messages.Join:
    return messages.Join(network_id=NET, endpoint_id=endpoint_id, sandbox_key=sandbox, options={})


async def test_create_endpoint_writes_calicos_workload_endpoint(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "frontend"})) as host:
        await host.drivers.network.create_network(network())
        answer = await host.drivers.network.create_endpoint(endpoint(v6=V6))
        stored = await host.value(PATH)
    mac = answer.interface.mac_address
    assert stored["spec"] == {
        "orchestrator": "libnetwork",
        "workload": "libnetwork",
        "node": NODE,
        "endpoint": ENDPOINT,
        "ipNetworks": [V4, V6],
        "profiles": ["frontend"],
        "interfaceName": "cali8f3a01b2c3d",
        "mac": mac,
    }
    assert next(iter(stored["spec"])) == "orchestrator"
    assert stored["metadata"]["namespace"] == "libnetwork"
    assert stored["metadata"]["labels"] == {
        "projectcalico.org/namespace": "libnetwork",
        "projectcalico.org/orchestrator": "libnetwork",
    }
    assert stored["metadata"]["annotations"] == {
        "org.projectcalico.libnetwork/network-id": NET,
        "org.projectcalico.libnetwork/network-name": "frontend",
    }
    assert stored["metadata"]["uid"]
    assert stored["metadata"]["creationTimestamp"].endswith("Z")


async def test_create_endpoint_chooses_a_local_unicast_mac_and_says_which(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        answer = await host.drivers.network.create_endpoint(endpoint())
        spec = host.veths.present["cali8f3a01b2c3d"]
    mac = answer.interface.mac_address
    assert int(mac[:2], 16) & 0b11 == 0b10
    assert spec.peer_mac == mac
    assert (spec.peer_name, spec.mtu, spec.ipv6) == ("temp8f3a01b2c3d", 1500, False)
    assert answer.interface.address == answer.interface.address_ipv6 == ""


async def test_interface_has_a_carrier_before_join_where_felix_reports_nothing_without_one(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        assert not host.veths.present["cali8f3a01b2c3d"].carrier
    async with running_host(tmp_path / "beside-felix") as host:
        host.status.needs_carrier = True
        await host.drivers.network.create_endpoint(endpoint())
        assert host.veths.present["cali8f3a01b2c3d"].carrier


async def test_a_users_mac_is_kept_and_not_answered(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        answer = await host.drivers.network.create_endpoint(endpoint(mac="0A:00:00:00:00:07"))
        assert answer == messages.CreatedEndpoint(interface=messages.EndpointInterface())
        assert (await host.value(PATH))["spec"]["mac"] == "0a:00:00:00:00:07"
        with pytest.raises(Refused, match="MAC address"):
            await host.drivers.network.create_endpoint(endpoint("9" * 64, mac="no"))


async def test_a_users_interface_name_is_answered_in_join(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        driver = host.drivers.network
        await driver.create_endpoint(endpoint(name="eth7"))
        assert (await driver.join(joining())).interface_name.dst_name == "eth7"
        await driver.delete_endpoint(of())
        await driver.create_endpoint(endpoint())
        assert (await driver.join(joining())).interface_name.dst_name == ""


@pytest.mark.parametrize("name", ["sixteen-letters-", "a b", "a/b", "a:1", ".", "..", "lo"])
async def test_an_interface_name_that_the_kernel_refuses_is_refused_before_join(tmp_path: Path, name: str) -> None:
    async with running_host(tmp_path) as host:
        with pytest.raises(Refused, match="interface name"):
            await host.drivers.network.create_endpoint(endpoint(name=name))
        assert host.veths.present == {}


async def test_the_steady_state_costs_one_transaction_up_and_one_down(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        driver = host.drivers.network
        await driver.create_network(network())
        await driver.create_endpoint(endpoint("7" * 64, v4="10.65.0.7/32"))
        host.transactions()
        await driver.create_endpoint(endpoint())
        assert host.transactions() == 1
        await driver.join(joining())
        await driver.leave(of())
        assert host.transactions() == 0
        await driver.delete_endpoint(of())
        assert host.transactions() == 1


async def test_first_endpoint_brings_record_and_profile_in_its_own_transaction(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        assert host.transactions() == 1
        assert await host.resource("Profile", "net1") is not None


async def test_without_profiles_the_endpoint_has_none(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"}), create_profiles=False) as host:
        await host.drivers.network.create_network(network())
        await host.drivers.network.create_endpoint(endpoint())
        assert "profiles" not in (await host.value(PATH))["spec"]
        assert await host.keys("/calico/resources/v3/projectcalico.org/profiles/") == []


async def test_failed_interface_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.veths.fail = True
        with pytest.raises(DataplaneError):
            await host.drivers.network.create_endpoint(endpoint())
        assert await host.endpoints() == []
        assert host.veths.present == {}


async def test_failed_write_takes_the_interface_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_host(tmp_path) as host:

        async def refuse(*_: Any) -> None:
            raise DatastoreUnavailable("the datastore is away")

        monkeypatch.setattr(host.cache, "commit", refuse)
        with pytest.raises(DatastoreUnavailable):
            await host.drivers.network.create_endpoint(endpoint())
        assert host.veths.created == 1
        assert host.veths.present == {}


async def test_create_endpoint_again_gives_the_same_answer_and_touches_nothing(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        first = await host.drivers.network.create_endpoint(endpoint())
        stored = await host.value(PATH)
        host.transactions()
        assert await host.drivers.network.create_endpoint(endpoint()) == first
        assert (host.transactions(), host.veths.created) == (0, 1)
        assert await host.value(PATH) == stored
        with pytest.raises(AlreadyExists, match=r"exists already with 10\.65\.77\.65"):
            await host.drivers.network.create_endpoint(endpoint(v4="10.65.0.9/32"))


async def test_an_address_of_another_endpoint_of_this_node_is_refused(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        with pytest.raises(AddressInUse, match=r"10\.65\.77\.65 is in use by endpoint 8f3a01b2c3d4 on node host-1"):
            await host.drivers.network.create_endpoint(endpoint("9" * 64))
        assert list(host.veths.present) == ["cali8f3a01b2c3d"]


async def test_an_interface_name_of_another_endpoint_is_refused(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        twin = ENDPOINT[:11] + "f" * 53
        with pytest.raises(AlreadyExists, match="interface cali8f3a01b2c3d belongs to endpoint"):
            await host.drivers.network.create_endpoint(endpoint(twin, v4="10.65.0.9/32"))
        assert list(host.veths.present) == ["cali8f3a01b2c3d"]


async def test_an_endpoint_without_an_address_is_refused(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        with pytest.raises(Refused, match="without an address"):
            await host.drivers.network.create_endpoint(endpoint(v4=""))
        with pytest.raises(Refused, match="an address that is none"):
            await host.drivers.network.create_endpoint(endpoint(v4="10.0.0.300/32"))


async def test_join_of_an_ipv4_endpoint_has_no_ipv6_parts(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        answer = await host.drivers.network.join(joining())
        assert [key.name for key in host.status.asked] == [f"host--1-libnetwork-libnetwork-{ENDPOINT}"]
    assert answer == messages.Joined(
        interface_name=messages.InterfaceName(src_name="temp8f3a01b2c3d", dst_prefix="cali"),
        gateway="169.254.1.1",
        static_routes=(messages.StaticRoute(destination="169.254.1.1/32", route_type=1),),
    )


async def test_join_of_a_dual_stack_endpoint_has_both(tmp_path: Path) -> None:
    async with running_host(tmp_path, interface_prefix="eth") as host:
        await host.drivers.network.create_endpoint(endpoint(v6=V6))
        answer = await host.drivers.network.join(joining())
    assert (answer.gateway, answer.gateway_ipv6) == ("169.254.1.1", "fe80::ecee:eeff:feee:eeee")
    assert [route.destination for route in answer.static_routes] == [
        "169.254.1.1/32",
        "fe80::ecee:eeff:feee:eeee/128",
    ]
    assert answer.interface_name.dst_prefix == "eth"


async def test_join_of_an_ipv6_endpoint_has_no_ipv4_parts(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint(v4="", v6=V6))
        answer = await host.drivers.network.join(joining())
    assert (answer.gateway, answer.gateway_ipv6) == ("", "fe80::ecee:eeff:feee:eeee")
    assert not answer.disable_gateway_service


async def test_join_answers_although_the_agent_is_silent(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.status.programmed = False
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.drivers.network.join(joining())).gateway == "169.254.1.1"


async def test_join_of_an_unknown_endpoint_is_one_sentence(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        with pytest.raises(NotFound, match="endpoint 8f3a01b2c3d4 does not exist on node host-1"):
            await host.drivers.network.join(joining())


async def test_second_network_of_a_container_gets_another_next_hop(tmp_path: Path) -> None:
    second, third = "9" * 64, "7" * 64
    async with running_host(tmp_path) as host:
        driver = host.drivers.network
        await driver.create_endpoint(endpoint(v6=V6))
        await driver.create_endpoint(endpoint(second, v4="10.65.0.9/32", v6="fd80:24e2:f998:72d6::9/128"))
        await driver.create_endpoint(endpoint(third, v4="", v6="fd80:24e2:f998:72d6::7/128"))
        assert (await driver.join(joining())).gateway == "169.254.1.1"
        answers = [await driver.join(joining(second)), await driver.join(joining(second))]
        hops = ("169.254.1.2", "fe80::ecee:eeff:feee:eeef")
        assert [(answer.gateway, answer.gateway_ipv6) for answer in answers] == [hops] * 2
        assert host.veths.gateways["cali" + second[:11]] == IPv6Address(hops[1])
        without_ipv4 = await driver.join(joining(third))
        assert (without_ipv4.gateway, without_ipv4.gateway_ipv6) == ("", "fe80::ecee:eeff:feee:eef0")
        assert (await driver.join(joining(third, sandbox="/other"))).gateway_ipv6 == "fe80::ecee:eeff:feee:eeee"


async def test_next_hops_survive_a_restart_and_a_leave_frees_them(tmp_path: Path) -> None:
    second, third = "9" * 64, "7" * 64
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.create_endpoint(endpoint(second, v4="10.65.0.9/32"))
        await host.drivers.network.create_endpoint(endpoint(third, v4="10.65.0.7/32"))
        await host.drivers.network.join(joining())
    async with running_host(tmp_path, datastore=host.datastore) as again:
        assert (await again.drivers.network.join(joining(second))).gateway == "169.254.1.2"
        await again.drivers.network.leave(of())
        assert (await again.drivers.network.join(joining(third))).gateway == "169.254.1.1"


@pytest.mark.parametrize("content", [b"", b"nonsense", b'{"a":[]}', b"\xff"])
async def test_an_unreadable_table_of_sandboxes_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "sandboxes.json", content)
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.drivers.network.join(joining())).gateway == "169.254.1.1"


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def test_join_and_delete_work_for_an_endpoint_of_an_earlier_life(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint(v6=V6))
        async with running_host(tmp_path, datastore=host.datastore, veths=host.veths) as again:
            answer = await again.drivers.network.join(joining())
            assert (answer.gateway, answer.gateway_ipv6) == ("169.254.1.1", "fe80::ecee:eeff:feee:eeee")
            await again.drivers.network.leave(of())
            await again.drivers.network.delete_endpoint(of())
            await again.assembly.parts.removals.drain()
            assert await again.endpoints() == []
            assert again.veths.present == {}


async def test_leave_and_delete_of_unknown_endpoints_succeed(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        for _ in range(2):
            await host.drivers.network.leave(of())
            await host.drivers.network.delete_endpoint(of())
        assert host.transactions() == 0


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (network({"com.docker.network.internal": True}), "Calico driver does not support the flag --internal."),
        (
            network({"com.docker.network.generic": {"REJECT": ""}}),
            "Calico driver does not support the flag REJECT.",
        ),
        (
            network({"com.docker.network.generic": {"REJECT2": "", "REJECT": ""}}),
            "Calico driver does not support the flags REJECT, REJECT2.",
        ),
        (
            messages.CreateNetwork(
                network_id=NET, ipv4_data=(messages.IpamData(address_space="LocalDefault", pool="172.18.0.0/16"),)
            ),
            "Non-Calico IPAM driver is used",
        ),
        (
            messages.CreateNetwork(network_id=NET, ipv4_data=(), ipv6_data=()),
            "a Calico network needs IPv4 or IPv6 addresses; create it without --ipv4=false or with --ipv6",
        ),
    ],
)
async def test_what_a_calico_network_cannot_be_is_refused(
    tmp_path: Path, request_: messages.CreateNetwork, sentence: str
) -> None:
    async with running_host(tmp_path) as host:
        with pytest.raises(Refused) as refusal:
            await host.drivers.network.create_network(request_)
        assert str(refusal.value) == sentence
        assert host.transactions() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"com.docker.network.enable_ipv4": True},
        {"com.docker.network.enable_ipv4": True, "com.docker.network.enable_ipv6": True},
        {"com.docker.network.internal": False},
        {"com.docker.network.generic": None},
        {"com.docker.network.something_new": True},
    ],
)
async def test_what_docker_sends_by_itself_is_accepted(tmp_path: Path, options: dict[str, Any]) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_network(network(options))


async def test_delete_endpoint_does_not_wait_for_the_interface_and_a_new_one_does(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        host.veths.gate.clear()
        await host.drivers.network.delete_endpoint(of())
        assert await host.endpoints() == []
        assert "cali8f3a01b2c3d" in host.veths.present
        again = asyncio.create_task(host.drivers.network.create_endpoint(endpoint()))
        await asyncio.sleep(0.01)
        assert host.veths.created == 1
        host.veths.gate.set()
        await again
        assert (host.veths.created, list(host.veths.present)) == (2, ["cali8f3a01b2c3d"])


async def test_an_interface_that_cannot_be_removed_fails_no_call(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint())
        host.veths.fail = True
        await host.drivers.network.delete_endpoint(of())
        with capture_logs() as logs:
            await host.assembly.parts.removals.drain()
    assert [entry["interface"] for entry in logs] == ["cali8f3a01b2c3d"]

"""Networks, their records and their profiles."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.datastore.protocol import Delete, Put, Transaction
from calico_libnetwork.docker import messages, profiles
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.names import is_label_key, is_resource_name
from tests.unit.docker_fakes import CREATED, FakeDaemon, Host, running_host
from tests.unit.test_network_driver import NET, endpoint, network, of

OTHER = "2" * 64
PROFILES = "/calico/resources/v3/projectcalico.org/profiles/"
RECORDS = "/calico-libnetwork/v1/networks/"


def deleting(network_id: str = NET) -> messages.NetworkRequest:
    return messages.NetworkRequest(network_id=network_id)


async def names_of_profiles(host: Host) -> list[str]:
    return [key.removeprefix(PROFILES) for key in await host.keys(PROFILES)]


async def test_profile_is_what_members_need_to_reach_each_other_and_nobody_else(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "frontend"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        profile = await host.resource("Profile", "frontend")
    key = "network.projectcalico.org/frontend"
    assert profile["spec"] == {
        "ingress": [{"action": "Allow", "source": {"selector": f"has({key})"}, "destination": {}}],
        "egress": [{"action": "Allow", "source": {}, "destination": {}}],
        "labelsToApply": {key: ""},
    }
    assert profile["metadata"]["annotations"] == {
        "org.projectcalico.libnetwork/network-id": NET,
        "org.projectcalico.libnetwork/network-name": "frontend",
        "org.projectcalico.libnetwork/owner": "calico-libnetwork",
    }


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("net1", "net1"),
        ("a.b-c", "a.b-c"),
        ("Front_End", "front-end-a3843ca0bd73"),
        ("my net", "my-net-b973a0eb2332"),
        ("_x_", "x-f1f6bd62c1e0"),
        ("a..b", "a.b-f62b42414c51"),
        ("a.-b", "a.b-cf3cd0bc6dbd"),
        ("---", "network-cb3f91d54eee"),
        ("日本", "network-cf2abf0c5be3"),
        ("projectcalico-default-allow", "projectcalico-default-allow-4c8d499b8749"),
        ("n" * 253, "n" * 253),
        ("n" * 254, "n" * 240 + "-f2160c16eb3d"),
    ],
)
def test_profile_name(name: str, profile: str) -> None:
    assert profiles.profile_name(name, NET) == profile


def test_a_name_that_another_network_has_is_told_apart_by_the_id() -> None:
    assert profiles.profile_name("net1", NET, taken=True) == "net1-111111111111"


@given(st.text(max_size=300), st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=12, max_size=64), st.booleans())
def test_every_network_name_gives_legal_names(name: str, network_id: str, taken: bool) -> None:
    profile = profiles.profile_name(name, network_id, taken=taken)
    assert is_resource_name(profile)
    assert is_label_key(profiles.label_key(profile))


def test_long_names_that_begin_alike_have_labels_of_their_own() -> None:
    keys = {profiles.label_key("n" * 100 + end) for end in "abc"}
    assert len(keys) == 3


async def test_network_of_unknown_name_gets_one_from_its_id_and_keeps_it(tmp_path: Path) -> None:
    daemon = FakeDaemon(None)
    async with running_host(tmp_path, daemon=daemon) as host:
        await host.drivers.network.create_network(network())
        await host.drivers.network.create_endpoint(endpoint())
        daemon.names = {NET: "net1"}
        await host.drivers.network.create_endpoint(endpoint("9" * 64, v4="10.65.0.9/32"))
        assert [each["spec"]["profiles"] for each in await host.endpoints()] == [["network-111111111111"]] * 2


async def test_a_network_never_announced_works(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.value(RECORDS + NET))["profile"] == "net1"


async def test_create_network_keeps_pools_and_auxiliary_addresses(tmp_path: Path) -> None:
    space = "CalicoGlobalAddressSpace"
    request = messages.CreateNetwork(
        network_id=NET,
        ipv4_data=(messages.IpamData(address_space=space, pool="10.65.0.0/16", aux_addresses={"h1": "10.65.0.9/32"}),),
        ipv6_data=(messages.IpamData(address_space=space, pool="::/0", aux_addresses=None),),
    )
    async with running_host(tmp_path) as host:
        for _ in range(2):
            await host.drivers.network.create_network(request)
        assert host.transactions() == 1
        assert await host.value(RECORDS + NET) == {
            "id": NET,
            "node": "host-1",
            "pools": ["10.65.0.0/16", "::/0"],
            "auxiliaryAddresses": ["10.65.0.9"],
        }


async def test_create_network_again_keeps_name_and_profile(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.create_network(network())
        record = await host.value(RECORDS + NET)
    assert (record["name"], record["profile"], record["pools"]) == ("net1", "net1", ["0.0.0.0/0"])


async def test_delete_network_removes_record_and_profile_in_one_transaction(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_network(network())
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.delete_endpoint(of())
        host.transactions()
        await host.drivers.network.delete_network(deleting())
        assert host.transactions() == 1
        assert await host.keys(RECORDS) == await host.keys(PROFILES) == []
        await host.drivers.network.delete_network(deleting())
        assert host.transactions() == 0


async def edit(host: Host, name: str, change: Any) -> None:
    path = ResourceKey("Profile", name).path
    document = documents.decode((await host.datastore.get([path])).items[0].value)
    change(document)
    await host.cache.commit(Transaction([], [Put(path, documents.encode(document))]))


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["spec"]["ingress"].clear(),
        lambda document: document["spec"]["labelsToApply"].update(role="web"),
        lambda document: document["metadata"].pop("annotations"),
    ],
)
async def test_an_edited_profile_is_never_overwritten_and_stays(tmp_path: Path, change: Any) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_network(network())
        await host.drivers.network.create_endpoint(endpoint())
        await edit(host, "net1", change)
        edited = await host.resource("Profile", "net1")
        await host.drivers.network.create_endpoint(endpoint("9" * 64, v4="10.65.0.9/32"))
        for endpoint_id in ("9" * 64, endpoint().endpoint_id):
            await host.drivers.network.delete_endpoint(of(endpoint_id))
        await host.drivers.network.delete_network(deleting())
        assert await host.resource("Profile", "net1") == edited


async def test_a_users_own_profile_is_used_as_it_is(tmp_path: Path) -> None:
    users = documents.new_document("Profile", "net1", {"labelsToApply": {"role": "x"}}, uid="u", created=CREATED)
    path = ResourceKey("Profile", "net1").path
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.cache.commit(Transaction([], [Put(path, documents.encode(users))]))
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.endpoints())[0]["spec"]["profiles"] == ["net1"]
        await host.drivers.network.delete_endpoint(of())
        await host.drivers.network.delete_network(deleting())
        assert await host.resource("Profile", "net1") == users


async def test_a_profile_in_use_by_another_host_stays(tmp_path: Path) -> None:
    async with (
        running_host(tmp_path / "1", daemon=FakeDaemon({NET: "net1"})) as host,
        running_host(
            tmp_path / "2", datastore=host.datastore, node="host-2", daemon=FakeDaemon({OTHER: "net1"})
        ) as other,
    ):
        await host.drivers.network.create_endpoint(endpoint())
        await other.drivers.network.create_endpoint(endpoint("9" * 64, v4="10.65.0.9/32", network_id=OTHER))
        assert await names_of_profiles(host) == ["net1"]
        await host.caught_up()
        await host.drivers.network.delete_endpoint(of())
        await host.drivers.network.delete_network(deleting())
        assert await names_of_profiles(host) == ["net1"]
        await other.caught_up()
        await other.drivers.network.delete_endpoint(of("9" * 64))
        await other.drivers.network.delete_network(deleting(OTHER))
        assert await names_of_profiles(host) == []


async def test_one_network_of_several_hosts_is_kept_while_another_uses_it(tmp_path: Path) -> None:
    """As in a swarm, where each node deletes the network by itself and under one id."""
    daemon = FakeDaemon({NET: "net1"})
    async with (
        running_host(tmp_path / "1", daemon=daemon) as host,
        running_host(tmp_path / "2", datastore=host.datastore, node="host-2", daemon=daemon) as other,
    ):
        await other.drivers.network.create_endpoint(endpoint())
        await host.caught_up()
        await host.drivers.network.delete_network(deleting())
        assert await host.keys(RECORDS) == [RECORDS + NET]


async def test_a_profile_deleted_by_hand_comes_back_with_the_next_endpoint(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        path = ResourceKey("Profile", "net1").path
        await host.cache.commit(Transaction([], [Delete(path)]))
        await host.drivers.network.create_endpoint(endpoint("9" * 64, v4="10.65.0.9/32"))
        assert await names_of_profiles(host) == ["net1"]


async def test_two_networks_of_one_name_on_one_host_are_apart(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1", OTHER: "net1"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.create_endpoint(endpoint("9" * 64, v4="10.65.0.9/32", network_id=OTHER))
        assert await names_of_profiles(host) == ["net1", "net1-222222222222"]


async def test_a_network_removed_while_the_plugin_was_down_does_not_take_the_name(tmp_path: Path) -> None:
    daemon = FakeDaemon({NET: "net1"})
    async with running_host(tmp_path, daemon=daemon) as host:
        await host.drivers.network.create_endpoint(endpoint())
        daemon.names = {OTHER: "net1"}
        await host.drivers.network.create_endpoint(endpoint("9" * 64, v4="10.65.0.9/32", network_id=OTHER))
        assert [each["spec"]["profiles"] for each in await host.endpoints()] == [["net1"]] * 2


async def test_networks_that_docker_lost_are_forgotten(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_network(network())
        await host.drivers.network.create_network(network(network_id=OTHER))
        listener = host.assembly.listener
        assert listener.known_networks() == {NET, OTHER}
        await listener.networks_gone({OTHER})
        assert await host.keys(RECORDS) == [RECORDS + NET]


async def test_an_unreadable_record_counts_as_none(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.cache.commit(Transaction([], [Put(RECORDS + NET, b"\xffnonsense")]))
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.value(RECORDS + NET))["profile"] == "net1"


async def test_concurrent_first_endpoints_of_a_network_share_its_profile(tmp_path: Path) -> None:
    async with (
        running_host(tmp_path / "1", daemon=FakeDaemon({NET: "net1"})) as host,
        running_host(
            tmp_path / "2", datastore=host.datastore, node="host-2", daemon=FakeDaemon({NET: "net1"})
        ) as other,
    ):
        await asyncio.gather(
            *(
                each.drivers.network.create_endpoint(
                    endpoint(f"{number:x}{place}" + "0" * 62, v4=f"10.65.{place}.{number}/32")
                )
                for place, each in enumerate((host, other))
                for number in range(1, 9)
            )
        )
        assert len(await host.endpoints()) == 16
        assert await names_of_profiles(host) == ["net1"]


async def test_a_profile_that_endpoints_name_is_restored(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon({NET: "net1"})) as host:
        await host.drivers.network.create_endpoint(endpoint())
        before = await host.resource("Profile", "net1")
        assert await host.assembly.parts.networks.restore_profiles() == []
        await host.cache.commit(Transaction([], [Delete(ResourceKey("Profile", "net1").path)]))
        assert await host.assembly.parts.networks.restore_profiles() == ["net1"]
        assert (await host.resource("Profile", "net1"))["spec"] == before["spec"]

"""A container on several networks: each of its endpoints is a member of all of them, for as long as it is on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from calico_libnetwork.datastore.protocol import Delete, Put, Transaction
from calico_libnetwork.docker.containers import Container
from calico_libnetwork.docker.endpoints import SIBLING_PROFILES, Endpoint, endpoint_key
from calico_libnetwork.docker.siblings import shared_profiles
from calico_libnetwork.errors import DatastoreUnavailable
from calico_libnetwork.model import documents
from tests.unit.docker_fakes import NODE, FakeDaemon, Host, running_host
from tests.unit.test_network_driver import endpoint, joining, of

FRONT, BACK, THIRD = "1" * 64, "2" * 64, "3" * 64
IN_FRONT, IN_BACK, IN_THIRD = "a" * 64, "b" * 64, "c" * 64
WEB = "d" * 64
NETWORKS = {FRONT: "front", BACK: "back", THIRD: "third"}
ADDRESSES = {IN_FRONT: "10.65.0.1/32", IN_BACK: "10.65.0.2/32", IN_THIRD: "10.65.0.3/32"}
PLACES = {IN_FRONT: FRONT, IN_BACK: BACK, IN_THIRD: THIRD}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with running_host(tmp_path, daemon=FakeDaemon(dict(NETWORKS))) as running:
        yield running


async def create(host: Host, *endpoint_ids: str) -> None:
    for each in endpoint_ids:
        await host.drivers.network.create_endpoint(endpoint(each, v4=ADDRESSES[each], network_id=PLACES[each]))


async def connect(host: Host, *endpoint_ids: str, sandbox: str = "/netns/1") -> None:
    await create(host, *endpoint_ids)
    for each in endpoint_ids:
        await host.drivers.network.join(joining(each, sandbox))


async def disconnect(host: Host, endpoint_id: str) -> None:
    await host.drivers.network.leave(of(endpoint_id, PLACES[endpoint_id]))
    await host.drivers.network.delete_endpoint(of(endpoint_id, PLACES[endpoint_id]))


async def profiles(host: Host) -> dict[str, list[str]]:
    return {stored["spec"]["endpoint"]: stored["spec"].get("profiles", []) for stored in await host.endpoints()}


async def edit(host: Host, endpoint_id: str, wanted: Sequence[str]) -> None:
    """By hand, as with calicoctl."""
    path = endpoint_key(NODE, endpoint_id).path
    document = await host.value(path)
    document["spec"]["profiles"] = list(wanted)
    await host.datastore.commit(Transaction([], [Put(path, documents.encode(document))]))
    await host.caught_up()


async def identify(host: Host, *endpoint_ids: str) -> None:
    """Docker's word of the connection comes."""
    host.table.put(Container(id=WEB, name="web"))
    for endpoint_id in endpoint_ids:
        host.daemon.members[WEB] = {"Name": "web", "EndpointID": endpoint_id}
        await host.assembly.listener.container_connected(PLACES[endpoint_id], WEB)


def an_endpoint(wanted: tuple[str, ...], of_siblings: tuple[str, ...]) -> Endpoint:
    return Endpoint(
        key=endpoint_key(NODE, IN_FRONT),
        node=NODE,
        endpoint_id=IN_FRONT,
        interface="cali1",
        mac="",
        addresses=frozenset(),
        profiles=wanted,
        sibling_profiles=of_siblings,
        network_id=FRONT,
        container_id=WEB,
        container_name="web",
        aliases=frozenset(),
        created="",
        held=False,
    )


@pytest.mark.parametrize(
    ("has", "of_siblings", "others", "expected", "added"),
    [
        (("front",), (), (), ("front",), ()),
        (("front",), (), ("third", "back"), ("front", "back", "third"), ("back", "third")),
        (("front", "back"), ("back",), (), ("front",), ()),
        (("front", "back"), ("back",), ("third",), ("front", "third"), ("third",)),
        (("mine", "front", "back"), ("back",), ("back",), ("mine", "front", "back"), ("back",)),
        (("front", "back"), (), ("back",), ("front", "back"), ()),
        (("front", "back"), (), (), ("front", "back"), ()),
    ],
)
def test_profiles_of_siblings_come_last_and_go_and_those_of_others_stay(
    has: tuple[str, ...],
    of_siblings: tuple[str, ...],
    others: tuple[str, ...],
    expected: tuple[str, ...],
    added: tuple[str, ...],
) -> None:
    assert shared_profiles(an_endpoint(has, of_siblings), others) == (expected, added)


async def test_the_second_join_makes_both_members_of_both_in_one_transaction(host: Host) -> None:
    await create(host, IN_FRONT, IN_BACK)
    host.transactions()
    await host.drivers.network.join(joining(IN_FRONT, "/netns/1"))
    assert host.transactions() == 0
    await host.drivers.network.join(joining(IN_BACK, "/netns/1"))
    assert host.transactions() == 1
    assert await profiles(host) == {IN_FRONT: ["front", "back"], IN_BACK: ["back", "front"]}
    await host.drivers.network.join(joining(IN_BACK, "/netns/1"))
    assert host.transactions() == 0


async def test_disconnect_takes_its_network_from_the_others_before_it_answers(host: Host) -> None:
    await connect(host, IN_FRONT, IN_BACK, IN_THIRD)
    assert await profiles(host) == {
        IN_FRONT: ["front", "back", "third"],
        IN_BACK: ["back", "front", "third"],
        IN_THIRD: ["third", "back", "front"],
    }
    await disconnect(host, IN_THIRD)
    assert await profiles(host) == {IN_FRONT: ["front", "back"], IN_BACK: ["back", "front"]}
    await disconnect(host, IN_BACK)
    assert await profiles(host) == {IN_FRONT: ["front"]}
    assert SIBLING_PROFILES not in (await host.endpoints())[0]["metadata"]["annotations"]
    host.transactions()
    await disconnect(host, IN_FRONT)
    assert host.transactions() == 1


async def test_containers_share_nothing_with_each_other(host: Host) -> None:
    await connect(host, IN_FRONT, sandbox="/netns/1")
    await connect(host, IN_BACK, sandbox="/netns/2")
    await host.assembly.recording.record(())
    assert await profiles(host) == {IN_FRONT: ["front"], IN_BACK: ["back"]}


async def test_what_a_user_wrote_into_the_profiles_stays(host: Host) -> None:
    await connect(host, IN_FRONT)
    await edit(host, IN_FRONT, ["first", "front", "third"])
    await connect(host, IN_BACK, IN_THIRD)
    assert (await profiles(host))[IN_FRONT] == ["first", "front", "third", "back"]
    await disconnect(host, IN_BACK)
    await disconnect(host, IN_THIRD)
    assert await profiles(host) == {IN_FRONT: ["first", "front", "third"]}


async def test_an_endpoint_whose_networks_profile_was_taken_away_gives_and_gets_none(host: Host) -> None:
    await connect(host, IN_FRONT, IN_BACK)
    await edit(host, IN_BACK, ["front"])
    await host.assembly.recording.record(())
    assert await profiles(host) == {IN_FRONT: ["front"], IN_BACK: []}


async def test_without_profiles_for_networks_there_is_nothing_to_share(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=FakeDaemon(dict(NETWORKS)), create_profiles=False) as host:
        await connect(host, IN_FRONT, IN_BACK)
        assert await profiles(host) == {IN_FRONT: [], IN_BACK: []}


async def test_a_container_that_docker_names_later_is_on_both_then(host: Host) -> None:
    await create(host, IN_FRONT, IN_BACK)
    await identify(host, IN_FRONT, IN_BACK)
    assert await profiles(host) == {IN_FRONT: ["front", "back"], IN_BACK: ["back", "front"]}


@pytest.mark.parametrize("left", ["no interface", "another sandbox"])
async def test_what_a_crash_left_of_an_earlier_start_is_no_sibling(host: Host, left: str) -> None:
    await connect(host, IN_BACK, sandbox="/netns/earlier")
    await identify(host, IN_BACK)
    if left == "no interface":
        host.assembly.parts.sandboxes.forget(IN_BACK)
        del host.veths.present["cali" + IN_BACK[:11]]
    await connect(host, IN_FRONT, sandbox="/netns/now")
    await identify(host, IN_FRONT)
    assert await profiles(host) == {IN_FRONT: ["front"], IN_BACK: ["back"]}


async def test_what_a_crash_left_does_not_keep_the_others_apart(host: Host) -> None:
    await connect(host, IN_FRONT, sandbox="/netns/earlier")
    await create(host, IN_BACK, IN_THIRD)
    for endpoint_id in (IN_BACK, IN_THIRD):
        host.assembly.parts.sandboxes.enter("/netns/now", endpoint_id)
    await identify(host, IN_FRONT, IN_BACK, IN_THIRD)
    assert await profiles(host) == {IN_FRONT: ["front"], IN_BACK: ["back", "third"], IN_THIRD: ["third", "back"]}


async def test_a_restart_keeps_it_and_a_round_repairs_it(tmp_path: Path, host: Host) -> None:
    """Also one right after Join, with the table of sandboxes not written yet."""
    await connect(host, IN_FRONT, IN_BACK)
    both = {IN_FRONT: ["front", "back"], IN_BACK: ["back", "front"]}
    async with running_host(tmp_path, datastore=host.datastore, daemon=host.daemon, veths=host.veths) as again:
        await again.assembly.recording.record(())
        assert again.transactions() == 0
        assert await profiles(again) == both
        await identify(again, IN_FRONT, IN_BACK)
        await edit(again, IN_FRONT, ["front"])
        await again.assembly.recording.record(())
        assert await profiles(again) == both
        await disconnect(again, IN_BACK)
        assert await profiles(again) == {IN_FRONT: ["front"]}


async def test_an_endpoint_that_is_recorded_again_is_on_both(host: Host) -> None:
    await connect(host, IN_FRONT, IN_BACK)
    host.daemon.members[WEB] = {
        "Name": "web",
        "EndpointID": IN_BACK,
        "IPv4Address": ADDRESSES[IN_BACK],
        "IPv6Address": "",
    }
    await host.datastore.commit(Transaction([], [Delete(endpoint_key(NODE, IN_BACK).path)]))
    await host.caught_up()
    await host.assembly.recording.record([await host.daemon.network(BACK)])
    assert await profiles(host) == {IN_FRONT: ["front", "back"], IN_BACK: ["back", "front"]}


async def test_a_disconnect_during_an_outage_is_made_up_for(host: Host) -> None:
    await connect(host, IN_FRONT, IN_BACK)
    host.datastore.down = True
    await host.drivers.network.leave(of(IN_BACK, BACK))
    with pytest.raises(DatastoreUnavailable):
        await host.drivers.network.delete_endpoint(of(IN_BACK, BACK))
    host.datastore.down = False
    await host.assembly.reconciler.round()
    assert await profiles(host) == {IN_FRONT: ["front"]}

"""Two hosts with a Docker each and one datastore: which networks each ends up with."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Delete, Put, Transaction
from calico_libnetwork.docker import cluster, cluster_networks
from calico_libnetwork.docker import cluster_records as records
from calico_libnetwork.docker.cluster_networks import ClusterNetworks
from calico_libnetwork.docker.cluster_plan import Clash, Create, Forget, Join, Publish, Remove, View, Withdraw, plan
from calico_libnetwork.docker.cluster_records import ClusterNetwork, LocalNetwork, Member, Specification
from calico_libnetwork.errors import DockerRefused, DockerUnavailable, NotFound

PREFIX = "/calico-libnetwork/v1/"
PLAIN = Specification(driver="calico", ipam_driver="calico-ipam")
SIX = Specification(driver="calico", ipam_driver="calico-ipam", ipv6=True)
NET1 = ClusterNetwork(name="net1", uid="u1", node="other", specification=PLAIN)
MEMBER1 = Member(uid="u1", name="net1", daemon="d1")


def local(
    network_id: str = "a" * 64, name: str = "net1", uid: str = "", specification: Specification = PLAIN
) -> LocalNetwork:
    return LocalNetwork(network_id, name, uid, specification)


def view(
    *networks: LocalNetwork, cluster: Sequence[ClusterNetwork] = (), members: Mapping[str, Member] | None = None
) -> View:
    return View(networks, {each.name: each for each in cluster}, members or {}, "d1")


def test_a_new_network_of_a_user_is_published() -> None:
    assert plan(view(local())) == [Publish(local())]


def test_a_network_of_another_driver_is_nobodys_business() -> None:
    assert plan(view(local(specification=Specification(driver="bridge", ipam_driver="default")))) == []


def test_a_network_of_a_managed_plugin_is_ours() -> None:
    managed = local(specification=Specification(driver="calico:latest", ipam_driver="calico:latest"))
    assert plan(view(managed)) == [Publish(managed)]


def test_a_network_that_this_host_lacks_is_created() -> None:
    assert plan(view(cluster=[NET1])) == [Create(NET1)]


def test_a_network_that_is_everywhere_costs_nothing() -> None:
    assert plan(view(local(), cluster=[NET1], members={"a" * 64: MEMBER1})) == []


def test_a_network_just_created_from_its_record_is_recorded() -> None:
    assert plan(view(local(uid="u1"), cluster=[NET1])) == [Join(local(uid="u1"), NET1)]


def test_a_network_removed_here_is_withdrawn() -> None:
    assert plan(view(cluster=[NET1], members={"a" * 64: MEMBER1})) == [Withdraw(NET1, "a" * 64)]


def test_a_network_removed_here_and_elsewhere_is_forgotten() -> None:
    assert plan(view(members={"a" * 64: MEMBER1})) == [Forget("a" * 64)]


def test_a_docker_with_a_new_data_directory_has_removed_nothing() -> None:
    before = Member(uid="u1", name="net1", daemon="d0")
    assert plan(view(cluster=[NET1], members={"a" * 64: before})) == [Forget("a" * 64), Create(NET1)]


def test_a_network_removed_elsewhere_is_removed() -> None:
    assert plan(view(local(), members={"a" * 64: MEMBER1})) == [Remove(local())]
    assert plan(view(local(uid="u1"))) == [Remove(local(uid="u1"))]


def test_a_network_removed_and_created_anew_elsewhere_is_the_new_one() -> None:
    anew = ClusterNetwork(name="net1", uid="u2", node="other", specification=PLAIN)
    assert plan(view(local(), cluster=[anew], members={"a" * 64: MEMBER1})) == [Join(local(), anew)]


def test_a_network_created_anew_with_another_specification_replaces_the_old_one() -> None:
    anew = ClusterNetwork(name="net1", uid="u2", node="other", specification=SIX)
    assert plan(view(local(), cluster=[anew], members={"a" * 64: MEMBER1})) == [Remove(local())]


def test_the_same_network_created_on_two_hosts_is_one() -> None:
    assert plan(view(local(), cluster=[NET1])) == [Join(local(), NET1)]


def test_labels_may_differ() -> None:
    labelled = local(specification=Specification(driver="calico", ipam_driver="calico-ipam", labels={"a": "b"}))
    assert plan(view(labelled, cluster=[NET1])) == [Join(labelled, NET1)]


def test_another_network_of_the_name_clashes() -> None:
    (clash,) = plan(view(local(specification=SIX), cluster=[NET1]))
    assert clash == Clash(
        "net1",
        "network net1 (aaaaaaaaaaaa) of this host is not the cluster's network of that name, created on other"
        " (IPv6: True here, False there); remove one of the two",
    )


def test_a_network_of_another_driver_with_the_name_clashes() -> None:
    bridge = local(specification=Specification(driver="bridge", ipam_driver="default"))
    (clash,) = plan(view(bridge, cluster=[NET1]))
    assert isinstance(clash, Clash)
    assert "a network of driver bridge has its name" in clash.reason


def test_of_two_networks_of_one_name_one_is_the_clusters() -> None:
    steps = plan(view(local(), local("b" * 64), cluster=[NET1], members={"b" * 64: MEMBER1}))
    assert [type(step) for step in steps] == [Clash]


_specifications = st.sampled_from([PLAIN, SIX])
_uids = st.sampled_from(["u1", "u2", "u3"])
_names = st.sampled_from(["net1", "net2"])
_ids = st.sampled_from(["a" * 64, "b" * 64, "c" * 64])


@given(
    st.dictionaries(_ids, st.tuples(_names, st.just("") | _uids, _specifications)),
    st.dictionaries(_names, st.tuples(_uids, _specifications)),
    st.dictionaries(_ids, _uids),
)
def test_a_plan_touches_no_network_twice_and_loses_none_of_a_user(
    networks: dict[str, tuple[str, str, Specification]],
    shared: dict[str, tuple[str, Specification]],
    members: dict[str, str],
) -> None:
    seen = view(
        *(local(each, *rest) for each, rest in networks.items()),
        cluster=[
            ClusterNetwork(name=name, uid=uid, node="n", specification=spec) for name, (uid, spec) in shared.items()
        ],
        members={each: Member(uid=uid, name="?", daemon="d1") for each, uid in members.items()},
    )
    steps = plan(seen)
    touched = [step.local.id for step in steps if isinstance(step, Publish | Join | Remove)]
    assert len(touched) == len(set(touched))
    users = {each for each, (_, uid, _) in networks.items() if not uid and each not in members}
    assert not users & {step.local.id for step in steps if isinstance(step, Remove)}
    joined = [step.network.uid for step in steps if isinstance(step, Join) and step.local.id in users]
    assert len(joined) == len(set(joined))


SHOWN = {
    "Name": "net1",
    "Id": "a" * 64,
    "Driver": "calico",
    "EnableIPv4": True,
    "EnableIPv6": True,
    "Attachable": True,
    "IPAM": {"Driver": "calico-ipam", "Options": {}, "Config": []},
    "Labels": {"team": "blue", "org.projectcalico.libnetwork.cluster": "u1"},
}


@pytest.mark.parametrize(
    ("config", "subnets"),
    [
        pytest.param([], (), id="nothing"),
        pytest.param(None, (), id="null"),
        pytest.param([{"Subnet": "0.0.0.0/0", "Gateway": "0.0.0.0"}], (), id="none asked for"),
        pytest.param([{"Subnet": "::/0", "Gateway": "::/0"}], (), id="none asked for, IPv6 up to 26"),
        pytest.param([{"Subnet": "fd21:db66:18ab::/48", "Gateway": "::/0"}], (), id="20.10 with local scope"),
        pytest.param([{"Subnet": "192.168.0.0/16"}], ("192.168.0.0/16",), id="a pool"),
        pytest.param([{"Subnet": "192.168.0.0/16", "Gateway": "0.0.0.0"}], ("192.168.0.0/16",), id="a pool on 29"),
        pytest.param([{"Subnet": "0.0.0.0/0"}], ("0.0.0.0/0",), id="any, asked for"),
        pytest.param([{"Subnet": "10.0.0.0/8", "AuxiliaryAddresses": {"x": "10.0.0.7"}}], ("10.0.0.0/8",), id="aux"),
    ],
)
def test_subnets_as_docker_shows_them(config: Any, subnets: tuple[str, ...]) -> None:
    found = records.local_network({**SHOWN, "IPAM": {"Driver": "calico-ipam", "Config": config}})
    assert found.specification.subnets == subnets


def test_what_docker_shows_and_takes_of_a_network() -> None:
    found = records.local_network(SHOWN)
    assert found.uid == "u1"
    assert found.specification.labels == {"team": "blue"}
    request = records.creation_request(
        ClusterNetwork(name="net1", uid="u1", node="n", specification=found.specification)
    )
    assert request == {
        "Name": "net1",
        "CheckDuplicate": True,
        "Driver": "calico",
        "EnableIPv6": True,
        "Attachable": True,
        "IPAM": {"Driver": "calico-ipam", "Config": []},
        "Labels": {"team": "blue", "org.projectcalico.libnetwork.cluster": "u1"},
    }


def test_a_docker_that_does_not_know_ipv4_off_has_it_on() -> None:
    before_28 = {key: value for key, value in SHOWN.items() if key != "EnableIPv4"}
    assert records.local_network(before_28).specification.ipv4
    off = records.local_network({**SHOWN, "EnableIPv4": False}).specification
    assert not off.ipv4
    network = ClusterNetwork(name="net1", uid="u1", node="n", specification=off)
    assert records.creation_request(network)["EnableIPv4"] is False


@pytest.mark.parametrize("name", ["net1", "a/b c", "../x", "%2F", "日本"])
def test_any_network_name_is_one_key(name: str) -> None:
    key = records.network_key(name)
    assert key.count("/") == records.NETWORKS.count("/")
    assert records.network_key(name + "x") != key


@dataclass
class FakeDocker:
    """A daemon's networks, and calls of a listener as the watcher would make them."""

    name: str
    ids: Any
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    swarm: str = "inactive"
    identity: str = "d1"
    serves: bool = True
    refuses: str = ""
    created: int = 0
    before_create: Callable[[], Awaitable[None]] | None = None

    async def info(self) -> Mapping[str, Any]:
        if not self.serves:
            raise DockerUnavailable("the Docker API is not connected")
        return {"ID": self.identity, "ServerVersion": "28.5.2", "Swarm": {"LocalNodeState": self.swarm}}

    async def networks(self) -> list[Mapping[str, Any]]:
        await asyncio.sleep(0)
        return [*self.shown.values()]

    async def create_network(self, request: Mapping[str, Any]) -> str:
        if self.before_create is not None:
            await self.before_create()
        if self.refuses or any(each["Name"] == request["Name"] for each in self.shown.values()):
            raise DockerRefused(f"Docker says: {self.refuses or 'network exists'}")
        self.created += 1
        return self.add(str(request["Name"]), **{key: request[key] for key in ("EnableIPv6", "Attachable", "Labels")})

    async def remove_network(self, network_id: str) -> None:
        if network_id not in self.shown:
            raise NotFound("Docker says: no such network")
        if network_id in self.in_use:
            raise DockerRefused("Docker says: network net1 has active endpoints")
        del self.shown[network_id]

    def add(self, name: str, **more: Any) -> str:
        network_id = f"{next(self.ids):064x}"
        ipam = {"Driver": "calico-ipam", "Config": [{"Subnet": "0.0.0.0/0", "Gateway": "0.0.0.0"}]}
        plain = {"Id": network_id, "Name": name, "Driver": "calico", "IPAM": ipam, "Labels": {}}
        self.shown[network_id] = {**plain, **more}
        return network_id

    def names(self) -> list[str]:
        return sorted(each["Name"] for each in self.shown.values())


@dataclass
class Host:
    docker: FakeDocker
    cache: Cache
    networks: ClusterNetworks
    used_elsewhere: set[str]


@dataclass
class Cluster:
    datastore: MemoryDatastore
    hosts: list[Host]

    async def settle(self, *hosts: Host) -> None:
        """Rounds on all hosts, or on ``hosts``, until nothing is written any more."""
        for _ in range(10):
            before = (await self.datastore.list([PREFIX])).items
            for host in hosts or self.hosts:
                await host.cache.refresh([*{item.key for item in (*before, *host.cache.under(PREFIX))}])
                await host.networks.round()
            if (await self.datastore.list([PREFIX])).items == before:
                return
        raise AssertionError("the hosts never agree")

    async def keys(self) -> list[str]:
        return [item.key.removeprefix(PREFIX) for item in (await self.datastore.list([PREFIX])).items]

    def problems(self) -> list[str]:
        return [problem for host in self.hosts for problem in host.networks.problems]


@asynccontextmanager
async def cluster_of(count: int = 2) -> AsyncIterator[Cluster]:
    datastore = MemoryDatastore()
    ids = itertools.count(1)
    async with AsyncExitStack() as stack:
        hosts = []
        for number in range(count):
            cache = Cache(datastore, [PREFIX])
            running = asyncio.create_task(cache.run())
            stack.callback(running.cancel)
            await cache.synced()
            docker, used = FakeDocker(f"host-{number}", ids), set[str]()

            async def restore() -> None:
                pass

            networks = ClusterNetworks(
                cache, docker, node=docker.name, used_elsewhere=used.__contains__, restore_profiles=restore
            )
            hosts.append(Host(docker, cache, networks, used))
        yield Cluster(datastore, hosts)


async def test_a_network_appears_on_the_other_host_and_goes_with_it() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        network_id = first.docker.add("net1", EnableIPv6=True, Labels={"team": "blue"})
        await world.settle()
        (shown,) = second.docker.shown.values()
        assert (shown["Name"], shown["EnableIPv6"], shown["Labels"]["team"]) == ("net1", True, "blue")
        assert len(await world.keys()) == 3

        await first.docker.remove_network(network_id)
        await world.settle()
        assert second.docker.names() == []
        assert await world.keys() == []


async def test_the_copy_may_be_removed_as_well_as_the_original() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle()
        second.docker.shown.clear()
        await world.settle()
        assert first.docker.names() == second.docker.names() == []


async def test_a_network_in_use_is_kept_and_said_so_until_it_is_free() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle()
        second.docker.in_use = set(second.docker.shown)
        first.docker.shown.clear()
        await world.settle()
        assert second.docker.names() == ["net1"]
        (problem,) = world.problems()
        assert "was removed on another host and stays here until its last container has left it" in problem
        assert first.docker.names() == []

        (network_id,) = second.docker.in_use
        second.docker.in_use = set()
        second.networks._wake.clear()
        second.networks.container_disconnected(network_id)
        assert second.networks._wake.is_set()
        await world.settle()
        assert second.docker.names() == []
        assert world.problems() == []
        assert await world.keys() == []


async def test_a_network_in_use_becomes_the_one_that_is_created_anew() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle()
        second.docker.in_use = set(second.docker.shown)
        first.docker.shown.clear()
        await world.settle()
        first.docker.add("net1")
        await world.settle()
        assert set(second.docker.shown) == second.docker.in_use
        assert world.problems() == []
        assert len(await world.keys()) == 3


async def test_both_hosts_create_it_at_once_and_have_one() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        second.docker.add("net1")
        await asyncio.gather(first.networks.round(), second.networks.round())
        await world.settle()
        assert (first.docker.created, second.docker.created) == (0, 0)
        assert world.problems() == []
        assert len(await world.keys()) == 3
        first.docker.shown.clear()
        await world.settle()
        assert second.docker.names() == []


async def test_different_networks_of_one_name_are_left_alone_and_told() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        second.docker.add("net1", EnableIPv6=True)
        await world.settle()
        (problem,) = world.problems()
        assert "IPv6: True here, False there" in problem
        assert second.docker.names() == ["net1"]

        second.docker.shown.clear()
        await world.settle()
        (shown,) = second.docker.shown.values()
        assert not shown["EnableIPv6"]
        assert world.problems() == []


async def test_when_the_winner_goes_the_loser_is_the_clusters() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        second.docker.add("net1", EnableIPv6=True)
        await world.settle()
        first.docker.shown.clear()
        await world.settle()
        (shown,) = first.docker.shown.values()
        assert shown["EnableIPv6"]


async def test_a_host_that_was_down_learns_what_was_removed_and_created() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("old")
        await world.settle()
        first.docker.shown.clear()
        first.docker.add("new")
        await world.settle(first)
        second.docker.add("mine")  # while the plugin or the datastore was down
        await world.settle()
        assert first.docker.names() == second.docker.names() == ["mine", "new"]


async def test_a_host_that_lost_its_docker_data_gets_its_networks_back() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        second.docker.add("net1")
        await world.settle()
        second.docker.shown.clear()
        second.docker.identity = "another"
        await world.settle()
        assert first.docker.names() == second.docker.names() == ["net1"]
        assert len(await world.keys()) == 3


async def test_a_datastore_that_was_emptied_is_filled_again() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle()
        second.docker.in_use = set(second.docker.shown)
        await world.datastore.commit(Transaction([], [Put(PREFIX + "x", b"")]))
        for key in await world.keys():
            await world.datastore.commit(Transaction([], [Delete(PREFIX + key)]))
        await world.settle()
        assert first.docker.names() == second.docker.names() == ["net1"]
        assert len(await world.keys()) == 3
        assert world.problems() == []


async def test_a_crash_between_creation_and_record_leaves_no_second_network() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle(first)
        await second.cache.refresh([PREFIX + key for key in await world.keys()])
        (network,) = second.networks._networks().values()
        await second.docker.create_network(records.creation_request(network))
        await world.settle()
        assert second.docker.names() == ["net1"]
        assert second.docker.created == 1


async def test_a_network_withdrawn_while_it_is_created_elsewhere_goes_again() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle(first)

        async def withdrawn_meanwhile() -> None:
            second.docker.before_create = None
            first.docker.shown.clear()
            await world.settle(first)

        second.docker.before_create = withdrawn_meanwhile
        await world.settle()
        assert second.docker.created == 1
        assert first.docker.names() == second.docker.names() == []
        assert await world.keys() == []


async def test_what_docker_refuses_is_told_and_tried_again() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        second.docker.refuses = "pool is gone"
        first.docker.add("net1")
        first.docker.add("net2")
        await world.settle()
        assert [problem.split(",")[0] for problem in world.problems()] == [
            "network net1 of the cluster",
            "network net2 of the cluster",
        ]
        assert world.problems()[0].endswith("cannot be made here: Docker says: pool is gone")
        second.docker.refuses = ""
        await world.settle()
        assert second.docker.names() == ["net1", "net2"]
        assert world.problems() == []


@pytest.mark.parametrize("state", ["active", "pending", "locked"])
async def test_a_swarm_member_takes_no_part(state: str) -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle()
        second.docker.swarm = state
        second.docker.shown.clear()
        second.docker.add("net2")
        await world.settle()
        assert first.docker.names() == ["net1"]
        assert second.networks.off == "left to Docker's swarm or cluster store"


async def test_pruning_spares_what_another_host_uses() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("used")
        first.docker.add("unused")
        await world.settle()
        (uid,) = (each.uid for each in second.networks._networks().values() if each.name == "used")
        first.docker.in_use = {each for each, shown in first.docker.shown.items() if shown["Name"] == "used"}
        second.used_elsewhere.add(uid)
        second.docker.shown.clear()
        second.networks.networks_pruned()
        await world.settle()
        assert first.docker.names() == second.docker.names() == ["used"]
        assert set(first.docker.shown) == first.docker.in_use
        assert world.problems() == []


async def test_removing_what_another_host_uses_is_no_pruning() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("used")
        await world.settle()
        (uid,) = (each.uid for each in second.networks._networks().values())
        second.used_elsewhere.add(uid)
        second.docker.shown.clear()
        await world.settle()
        assert first.docker.names() == second.docker.names() == []


async def test_an_unreadable_record_is_replaced_and_harms_nobody() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        await world.datastore.commit(Transaction([], [Put(records.network_key("net1"), b"\xff{")]))
        await world.datastore.commit(Transaction([], [Put(records.members_prefix("host-0") + "x", b"[]")]))
        first.docker.add("net1")
        await world.settle()
        assert second.docker.names() == ["net1"]


async def test_a_host_that_leaves_removes_nothing_of_the_others() -> None:
    async with cluster_of() as world:
        first, second = world.hosts
        first.docker.add("net1")
        await world.settle()
        await cluster.leave(second.cache, node="host-1")
        second.docker.shown.clear()
        await world.settle(first)
        assert first.docker.names() == ["net1"]
        await world.settle()
        assert second.docker.names() == ["net1"]


async def test_it_runs_by_itself_and_survives_a_daemon_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_networks, "PERIOD", 60)
    async with cluster_of() as world:
        first, second = world.hosts
        second.docker.serves = False
        running = [asyncio.create_task(host.networks.run()) for host in world.hosts]
        first.docker.add("net1")
        first.networks.networks_changed()
        async with asyncio.timeout(2):
            while not second.cache.under(records.NETWORKS):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.001)
            second.docker.serves = True
            second.networks.networks_changed()  # as the watcher says at every connection
            while second.docker.names() != ["net1"]:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.001)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

"""Names of other hosts' containers in hosts files: which, in which words, and how the file is changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Delete, Put, Transaction
from calico_libnetwork.docker import cluster_records as records
from calico_libnetwork.docker import host_names
from calico_libnetwork.docker.cluster_members import ClusterMembers
from calico_libnetwork.docker.cluster_records import Member
from calico_libnetwork.docker.containers import Container, ContainerTable
from calico_libnetwork.docker.endpoints import ALIASES, Endpoint, EndpointIndex, NewEndpoint
from calico_libnetwork.docker.host_names import HostNames, revise
from calico_libnetwork.docker.hosts_file import MARK, Entry, revised
from calico_libnetwork.docker.labels import CONTAINER_NAME
from calico_libnetwork.docker.profiles import NETWORK_ID
from calico_libnetwork.errors import DockerUnavailable, NotFound
from calico_libnetwork.model import documents
from calico_libnetwork.model.resources import CONTAINER_ID

HERE, THERE = "host-1", "host-2"
NET_HERE, NET_THERE = "1" * 64, "2" * 64
WORKLOAD_A = "a" * 64
DOCKERS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n10.65.0.1\taaaaaaaaaaaa\n"
E_LINE = f"10.65.0.5\tworkload-E.net1 workload-E\t{MARK}\n"


def entry(address: str, *names: str) -> Entry:
    return Entry(address, names)


WORKLOAD_E = entry("10.65.0.5", "workload-E.net1", "workload-E")


def test_names_come_after_dockers_lines() -> None:
    assert revised(DOCKERS, [WORKLOAD_E]) == DOCKERS + E_LINE


def test_names_that_are_gone_are_removed_and_nothing_else() -> None:
    later = DOCKERS + E_LINE + "10.65.0.2\tadded-by-docker\n"
    assert revised(later, []) == DOCKERS + "10.65.0.2\tadded-by-docker\n"


def test_what_is_there_already_changes_nothing() -> None:
    shuffled = E_LINE + DOCKERS
    assert revised(shuffled, [WORKLOAD_E]) == shuffled


def test_a_name_only_added_leaves_the_rest_in_place() -> None:
    before = DOCKERS + E_LINE + "10.65.0.2\tadded-by-docker\n"
    assert revised(before, [WORKLOAD_E, entry("10.65.0.6", "f.net1")]) == f"{before}10.65.0.6\tf.net1\t{MARK}\n"


def test_dockers_own_names_win() -> None:
    file = DOCKERS + "10.9.9.9\tworkload-E # --add-host\n"
    assert revised(file, [WORKLOAD_E]) == f"{file}10.65.0.5\tworkload-E.net1\t{MARK}\n"
    assert revised(DOCKERS, [entry("10.65.0.5", "localhost")]) == DOCKERS


def test_a_last_line_without_an_end_is_ended_first() -> None:
    assert revised("10.0.0.1\tx", [WORKLOAD_E]) == "10.0.0.1\tx\n" + E_LINE


_lines = st.lists(
    st.sampled_from(
        ["127.0.0.1\tlocalhost\n", "# comment\n", "\n", "10.0.0.1\tx # y\n", E_LINE, f"10.0.0.2\tq\t{MARK}\n"]
    )
)
_entries = st.lists(
    st.builds(
        entry,
        st.sampled_from(["10.65.0.5", "10.65.0.6", "fd00::5"]),
        st.sampled_from(["a.net1", "b.net1", "x"]),
        st.sampled_from(["a", "b", "localhost"]),
    )
)


@given(_lines, _entries)
def test_any_file_keeps_its_lines_and_is_revised_once(lines: list[str], entries: list[Entry]) -> None:
    after = revised("".join(lines), entries)
    assert [line for line in after.splitlines(keepends=True) if MARK not in line] == [
        line for line in lines if MARK not in line
    ]
    assert revised(after, entries) == after
    assert MARK not in revised(after, [])


def test_the_file_stays_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(DOCKERS)
    inode = file.stat().st_ino
    assert revise(file, [WORKLOAD_E])
    assert revise(file, [entry("10.65.0.6", "x")])
    assert file.read_text() == f"{DOCKERS}10.65.0.6\tx\t{MARK}\n"
    assert not revise(file, [])
    assert (file.read_text(), file.stat().st_ino) == (DOCKERS, inode)


def test_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(b"10.0.0.1 \xff\xfe\n")
    revise(file, [WORKLOAD_E])
    assert file.read_bytes() == b"10.0.0.1 \xff\xfe\n" + E_LINE.encode()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text(DOCKERS)
    (tmp_path / "hosts").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        revise(tmp_path / "hosts", [WORKLOAD_E])
    assert (tmp_path / "victim").read_text() == DOCKERS


@dataclass
class World:
    """The host with workload-A, and the datastore it shares with another."""

    directory: Path
    datastore: MemoryDatastore
    cache: Cache
    table: ContainerTable
    names: HostNames
    endpoints: EndpointIndex
    described: dict[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    published: dict[str, frozenset[str] | None] = field(default_factory=dict)
    starting: bool = False

    async def follow_names(self, aliases_of: Callable[[Endpoint], frozenset[str] | None]) -> None:
        """The product's own writes them to the datastore."""
        self.published = {endpoint.container_name: aliases_of(endpoint) for endpoint in self.endpoints.of_node()}

    async def container_networks(self, container_id: str) -> Mapping[str, Mapping[str, Any]]:
        if self.starting:
            raise DockerUnavailable("the Docker API did not answer within 2.0 s")
        if container_id not in self.described:
            raise NotFound(f"no container {container_id}")
        return self.described[container_id]

    async def info(self) -> Mapping[str, Any]:
        return {"DockerRootDir": str(self.directory)}

    def file(self, container_id: str = WORKLOAD_A) -> Path:
        return self.directory / "containers" / container_id / "hosts"

    def ours(self, container_id: str = WORKLOAD_A) -> list[str]:
        """The lines with a mark, without it."""
        lines = self.file(container_id).read_text().splitlines()
        return [line.removesuffix(MARK).strip().replace("\t", " ") for line in lines if MARK in line]

    def docker_writes(self, container_id: str = WORKLOAD_A) -> None:
        self.file(container_id).parent.mkdir(parents=True, exist_ok=True)
        self.file(container_id).write_text(DOCKERS)

    async def put(self, *puts: Put | Delete) -> None:
        await self.datastore.commit(Transaction([], [*puts]))
        await self.cache.refresh([put.key for put in puts])

    async def round(self) -> None:
        await self.names.round()


def member(node: str, network_id: str, uid: str = "u1") -> Put:
    return Put(records.members_prefix(node) + network_id, records.encode(Member(uid=uid, name="net1")))


def workload(
    node: str,
    network_id: str,
    name: str,
    *addresses: str,
    container_id: str = "",
    endpoint_id: str = "",
    held: bool = False,
    aliases: str = "",
) -> Put:
    new = NewEndpoint(
        node=node,
        endpoint_id=(endpoint_id or name).ljust(64, "0"),
        addresses=tuple(map(ip_address, addresses)),
        profiles=(),
        mac="",
        labels={},
        annotations={
            NETWORK_ID: network_id,
            CONTAINER_NAME: name,
            CONTAINER_ID: container_id or name.ljust(64, "0"),
            ALIASES: aliases,
        },
        held=held,
    )
    return Put(new.key.path, documents.encode(new.document(uid="u", created="2026-11-24T00:00:00Z")))


A_HERE = workload(HERE, NET_HERE, "workload-A", "10.65.0.1", "fd00::1", container_id=WORKLOAD_A)
NAMES_OF_E = "workload-E.net1 workload-E workload-E00.net1 workload-E00"
E_THERE = workload(THERE, NET_THERE, "workload-E", "10.65.0.5", "fd00::5")


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    datastore = MemoryDatastore()
    cache = Cache(datastore, ["/calico/", "/calico-libnetwork/"])
    running = asyncio.create_task(cache.run())
    await cache.synced()
    table = ContainerTable()
    table.put(Container(id=WORKLOAD_A, name="workload-A"))
    endpoints = EndpointIndex(cache, node=HERE)
    made = World(tmp_path, datastore, cache, table, None, endpoints)  # type: ignore[arg-type]  # the next line
    made.names = HostNames(
        cache,
        node=HERE,
        docker=made,
        table=table,
        endpoints=endpoints,
        members=ClusterMembers(cache, endpoints, node=HERE),
        own_names=made,
    )
    await made.names._aliases.learn()
    made.docker_writes()
    await made.put(member(HERE, NET_HERE), member(THERE, NET_THERE), A_HERE)
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_container_elsewhere_has_both_names_and_families(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(E_THERE)
        await here.round()
        assert here.ours() == [f"10.65.0.5 {NAMES_OF_E}", f"fd00::5 {NAMES_OF_E}"]

        await here.put(Delete(E_THERE.key))
        await here.round()
        assert here.file().read_text() == DOCKERS


async def test_a_container_of_another_network_has_none(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(member(THERE, "3" * 64, "u3"), workload(THERE, "3" * 64, "stranger", "10.65.0.9"))
        await here.put(workload(THERE, "4" * 64, "of-no-cluster-network", "10.65.0.8"))
        await here.round()
        assert here.ours() == []


async def test_only_families_that_the_container_has_itself(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(workload(HERE, NET_HERE, "workload-A", "10.65.0.1", container_id=WORKLOAD_A), E_THERE)
        await here.round()
        assert here.ours() == [f"10.65.0.5 {NAMES_OF_E}"]


async def test_a_local_container_of_the_name_keeps_it(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.table.put(Container(id="e" * 64, name="workload-E"))
        await here.put(E_THERE)
        await here.round()
        names = "workload-E.net1 workload-E00.net1 workload-E00"
        assert here.ours() == [f"10.65.0.5 {names}", f"fd00::5 {names}"]

        await here.put(workload(HERE, NET_HERE, "workload-E", "10.65.0.7"))
        await here.round()
        assert "workload-E" not in " ".join(here.ours()).split()


async def test_a_held_or_nameless_endpoint_has_no_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(workload(THERE, NET_THERE, "held", "10.65.0.5", held=True))
        await here.put(workload(THERE, NET_THERE, "", "10.65.0.6", endpoint_id="f"))
        await here.round()
        assert here.ours() == []


@pytest.mark.parametrize("name", ["a\n127.0.0.1 b", "a b", "#a", "-", "a\tb"])
async def test_a_name_that_docker_would_not_take_is_left_out(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as here:
        await here.put(workload(THERE, NET_THERE, name, "10.65.0.5", endpoint_id="f"))
        await here.round()
        assert here.file().read_text() == DOCKERS


async def test_two_containers_of_one_name_on_two_hosts_are_both_found(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(member("host-3", "3" * 64))
        await here.put(workload(THERE, NET_THERE, "web", "10.65.0.5"), workload("host-3", "3" * 64, "web", "10.65.0.4"))
        await here.round()
        names = "web.net1 web web000000000.net1 web000000000"
        assert here.ours() == [f"10.65.0.4 {names}", f"10.65.0.5 {names}"]


async def test_what_docker_overwrote_comes_back(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(E_THERE)
        await here.round()
        here.docker_writes()
        await here.round()
        assert len(here.ours()) == 2


async def test_a_container_that_left_the_network_loses_the_names(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(E_THERE)
        await here.round()
        await here.put(Delete(A_HERE.key))
        await here.round()
        assert here.file().read_text() == DOCKERS


async def test_what_an_earlier_process_left_is_found(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.file().write_text(DOCKERS + E_LINE)
        await here.round()
        assert here.file().read_text() == DOCKERS


async def test_a_container_that_is_gone_is_no_problem(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.file().unlink()
        await here.put(E_THERE)
        await here.round()
        assert not here.names.problem


async def test_a_data_directory_that_is_out_of_reach_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.directory = tmp_path / "elsewhere"
        await here.put(E_THERE)
        await here.round()
        assert "elsewhere/containers is not there; mount it" in here.names.problem


async def test_an_endpoint_cannot_name_a_file(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (tmp_path / "hosts").write_text(DOCKERS)
        await here.put(workload(HERE, NET_HERE, "x", "10.65.0.3", container_id=".."), E_THERE)
        await here.round()
        assert (tmp_path / "hosts").read_text() == DOCKERS


async def test_it_follows_the_datastore_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_names, "_SPACING", 0)
    async with world(tmp_path) as here:
        running = asyncio.create_task(here.names.run())
        await here.datastore.commit(Transaction([], [E_THERE]))
        async with asyncio.timeout(2):
            while not here.ours():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.001)
            here.docker_writes()
            here.names.docker_wrote()
            while not here.ours():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_aliases_are_names_too_and_one_alias_may_be_that_of_several(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(member("host-3", "3" * 64))
        await here.put(
            workload(THERE, NET_THERE, "one", "10.65.0.5", aliases="db,web"),
            workload("host-3", "3" * 64, "two", "10.65.0.4", aliases="web"),
        )
        await here.round()
        assert [line for line in here.ours() if "one" not in line and "two" not in line] == [
            "10.65.0.5 db.net1 db",
            "10.65.0.4 web.net1 web",
            "10.65.0.5 web.net1 web",
        ]


async def test_an_alias_of_containers_here_and_there_is_written_for_both(tmp_path: Path) -> None:
    """The file hides what Docker would answer."""
    async with world(tmp_path) as here:
        await here.put(
            workload(HERE, NET_HERE, "local", "10.65.0.2", aliases="own,web"),
            workload(THERE, NET_THERE, "remote", "10.65.0.5", aliases="web"),
        )
        await here.round()
        assert [line for line in here.ours() if "web" in line] == ["10.65.0.2 web.net1 web", "10.65.0.5 web.net1 web"]
        assert not [line for line in here.ours() if "own" in line]


async def test_an_alias_that_is_the_name_of_a_container_here_is_left_to_docker(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.put(
            workload(HERE, NET_HERE, "web", "10.65.0.2"),
            workload(THERE, NET_THERE, "remote", "10.65.0.5", aliases="web"),
        )
        await here.round()
        assert not [line for line in here.ours() if "web" in line]


async def test_a_name_in_another_network_of_this_host_stays_dockers(tmp_path: Path) -> None:
    """A container may be in both networks; the file comes before Docker's answer."""
    async with world(tmp_path) as here:
        bridge = {"NetworkID": "9" * 64, "EndpointID": "e", "DNSNames": ["db", "shop-db-1"]}
        here.described["d" * 64] = {"shop_default": bridge}
        here.names.docker_wrote("d" * 64)
        await here.names._aliases.learn()
        await here.put(workload(THERE, NET_THERE, "remote", "10.65.0.5", aliases="db"))
        await here.round()
        assert [line for line in here.ours() if "db" in line] == ["10.65.0.5 db.net1"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"Aliases": ["web", "aaaaaaaaaaaa"]}, {"web", "aaaaaaaaaaaa"}),  # Docker 20.10
        ({"Aliases": ["web"], "DNSNames": ["workload-A", "web", "host"]}, {"workload-A", "web", "host"}),
        ({"Aliases": None, "DNSNames": None}, set()),
        ({"Aliases": ["a b", "x,y", "ok"]}, {"ok"}),
    ],
)
async def test_what_docker_says_of_a_container_is_learnt(
    tmp_path: Path, settings: dict[str, Any], expected: set[str]
) -> None:
    async with world(tmp_path) as here:
        here.described[WORKLOAD_A] = {
            "net1": {"NetworkID": NET_HERE, "EndpointID": "e", **settings},
            "left": {"NetworkID": "9" * 64, "EndpointID": "", "Aliases": ["gone"]},
        }
        await here.round()
        assert here.published == {"workload-A": None}
        here.names.daemon_listed()
        await here.names._aliases.learn()
        await here.round()
        assert here.published == {"workload-A": frozenset(expected)}
        assert here.names._aliases.of(WORKLOAD_A, "9" * 64) is None


async def test_a_container_that_is_not_described_in_time_is_asked_for_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        aliases = here.names._aliases

        here.starting = True
        here.names.docker_wrote(WORKLOAD_A)
        await aliases.learn()
        here.starting = False
        here.described[WORKLOAD_A] = {"net1": {"NetworkID": NET_HERE, "EndpointID": "e", "Aliases": ["web"]}}
        await aliases.learn()
        assert aliases.of(WORKLOAD_A, NET_HERE) == frozenset({"web"})


async def test_no_name_is_written_before_those_of_this_host_are_known(tmp_path: Path) -> None:
    """As after a start of the plugin, whose table of containers was saved."""
    async with world(tmp_path) as here:
        bridge = {"NetworkID": "9" * 64, "EndpointID": "e", "Aliases": ["db"]}
        here.described[WORKLOAD_A] = {"shop_default": bridge}
        await here.put(workload(THERE, NET_THERE, "remote", "10.65.0.5", aliases="db"))
        here.names.daemon_listed()
        running = asyncio.create_task(here.names.run())
        async with asyncio.timeout(2):
            while not here.ours():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)
        assert [line for line in here.ours() if "db" in line] == ["10.65.0.5 db.net1"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

"""The watcher, the breaker and the announced scope, against an API on a unix socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork import state_file
from calico_libnetwork.docker import daemon, scope, watcher
from calico_libnetwork.docker.containers import Container, ContainerTable
from calico_libnetwork.docker.daemon import Daemon
from calico_libnetwork.docker.identity import Identities
from calico_libnetwork.docker.scope import AnnouncedScope, kind_of
from calico_libnetwork.docker.unconnected import unconnected
from calico_libnetwork.docker.watcher import DockerNames, Watcher
from calico_libnetwork.errors import DockerUnavailable
from tests.unit.fake_dockerd import FakeDockerd

NET, CONTAINER, ENDPOINT = "1" * 64, "c" * 64, "e" * 64
WEB = Container(id=CONTAINER, name="web", image="busybox", labels={"a": "b"})


@dataclass
class Told:
    """A listener that remembers."""

    networks: set[str] = field(default_factory=set)
    gone: list[set[str]] = field(default_factory=list)
    connected: list[tuple[str, str]] = field(default_factory=list)
    renamed: int = 0
    listed: int = 0

    def known_networks(self) -> set[str]:
        return set(self.networks)

    async def networks_gone(self, network_ids: set[str]) -> None:
        self.gone.append(network_ids)

    async def container_connected(self, network_id: str, container_id: str) -> None:
        self.connected.append((network_id, container_id))

    async def container_renamed(self) -> None:
        self.renamed += 1

    async def daemon_listed(self) -> None:
        self.listed += 1


@dataclass
class Watching:
    dockerd: FakeDockerd
    daemon: Daemon
    table: ContainerTable
    scope: AnnouncedScope
    watcher: Watcher
    told: Told

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.002)


@asynccontextmanager
async def watching(
    directory: Path, dockerd: FakeDockerd | None = None, *, start: bool = True
) -> AsyncIterator[Watching]:
    dockerd = dockerd or FakeDockerd(directory / "docker.sock")
    if start:
        await dockerd.start()
    asked, table = Daemon(dockerd.url), ContainerTable()
    announced = AnnouncedScope("auto", directory / "docker.json")
    watching = Watcher(asked, table, announced, directory / "containers.json")
    told = Told()
    await watching.attach(told)
    running = asyncio.create_task(watching.run())
    try:
        if start and dockerd.answers.is_set():
            async with asyncio.timeout(5):
                await dockerd.streaming.wait()
        yield Watching(dockerd, asked, table, announced, watching, told)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await dockerd.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "PAUSE", 0.01)
    monkeypatch.setattr(state_file, "DELAY", 0.0)


async def test_containers_and_networks_are_known_from_the_list(tmp_path: Path) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.add_container(CONTAINER, "web", {"a": "b"})
    dockerd.add_network(NET, "net1")
    async with watching(tmp_path, dockerd) as it:
        assert it.table.by_name("web") == it.table.by_id(CONTAINER) == WEB
        assert await DockerNames(it.daemon, it.table).network_name(NET) == "net1"
        assert it.told.listed == 1


async def test_events_keep_the_table(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        it.dockerd.emit("container", "create", CONTAINER, name="web", image="busybox", a="b")
        await it.until(lambda: it.table.by_name("web") == WEB)
        it.dockerd.emit("container", "rename", CONTAINER, name="/shop", oldName="/web")
        await it.until(lambda: it.table.by_name("shop") is not None)
        assert it.table.by_name("web") is None
        await it.until(lambda: it.told.renamed == 1)
        it.dockerd.emit("network", "create", NET, name="net1", type="calico")
        await it.until(lambda: it.table.network_name(NET) == "net1")
        it.dockerd.emit("network", "connect", NET, name="net1", type="calico", container=CONTAINER)
        await it.until(lambda: it.told.connected == [(NET, CONTAINER)])
        it.dockerd.emit("container", "destroy", CONTAINER, name="shop")
        it.dockerd.emit("network", "destroy", NET, name="net1")
        await it.until(lambda: it.table.network_name(NET) is None)
        assert it.table.by_id(CONTAINER) is None


async def test_a_new_connection_replays_from_the_last_event_and_lists_anew(tmp_path: Path) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    async with watching(tmp_path, dockerd) as it:
        it.told.networks = {NET}
        last = dockerd.emit("container", "create", CONTAINER, name="web", image="busybox")
        await it.until(lambda: it.table.by_name("web") is not None)
        await dockerd.stop()
        await it.until(lambda: not it.daemon.serving)
        dockerd.add_container("d" * 64, "other")
        await dockerd.start()
        await it.until(lambda: len(dockerd.since) == 2)
        assert dockerd.since[1] == f"{last // 10**9}.{last % 10**9:09}"
        assert it.table.by_name("web") is None
        assert it.table.by_name("other") is not None
        assert it.told.gone == [set(), {NET}]


async def test_a_listener_attached_late_is_told_at_once(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        late = Told(networks={NET})
        await it.watcher.attach(late)
        assert (late.gone, late.listed) == ([{NET}], 1)


async def test_a_container_that_runs_without_its_network_is_told_until_it_has_one(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        it.dockerd.add_network(NET, "net1")
        it.dockerd.emit("network", "create", NET, name="net1", type="calico")
        listed: list[tuple[str, dict[str, Any]]] = [("net1", {}), ("net1", {"net1": {}}), ("none", {})]
        for number, (mode, networks) in enumerate(listed):
            identity, name = f"{number}" * 64, f"web{number}"
            it.dockerd.add_container(identity, name)
            it.dockerd.containers[identity] |= {
                "State": "running",
                "HostConfig": {"NetworkMode": mode},
                "NetworkSettings": {"Networks": networks},
            }
            it.dockerd.emit("container", "create", identity, name=name, image="busybox")
            if networks:
                it.dockerd.emit("network", "connect", NET, name="net1", container=identity)
            it.dockerd.emit("container", "start", identity, name=name, image="busybox")
        finding = "container web0 was started on network net1 and is on none now: docker network connect net1 web0"
        await it.until(lambda: [text.startswith(finding) for text in unconnected(it.table, {NET})] == [True])
        assert unconnected(it.table, set()) == []
        await it.until(lambda: it.dockerd.requests.count("/v1.51/containers/json") >= 3)
        it.dockerd.emit("network", "connect", NET, name="net1", container="0" * 64)
        await it.until(lambda: unconnected(it.table, {NET}) == [])
        it.dockerd.emit("container", "die", "0" * 64, name="web0")
        it.dockerd.emit("container", "start", "0" * 64, name="web0")
        await it.until(lambda: len(unconnected(it.table, {NET})) == 1)
        # one that was connected as it started is not asked for; at the start, and three times for a container
        assert it.dockerd.requests.count("/v1.51/containers/json") == 4
    async with watching(tmp_path, it.dockerd) as it:
        await it.until(lambda: len(unconnected(it.table, {NET})) == 1)
        it.dockerd.emit("container", "die", "0" * 64, name="web0")
        await it.until(lambda: unconnected(it.table, {NET}) == [])


async def test_the_table_survives_a_restart_without_docker(tmp_path: Path) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.add_container(CONTAINER, "web", {"a": "b"})
    dockerd.add_network(NET, "net1")
    async with watching(tmp_path, dockerd):
        pass
    async with watching(tmp_path, start=False) as it:
        assert it.table.by_name("web") == WEB
        assert await DockerNames(it.daemon, it.table).network_name(NET) == "net1"
        assert await Identities(it.daemon, it.table).named("web") == WEB


@pytest.mark.parametrize("content", [b"", b"nonsense", b'{"containers": 7}', b"\xff"])
async def test_an_unreadable_table_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "containers.json", content)
    async with watching(tmp_path) as it:
        assert it.table.by_name("web") is None


async def test_while_docker_starts_one_question_waits_a_moment_and_no_other(tmp_path: Path) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.answers.clear()
    async with watching(tmp_path, dockerd) as it:
        started = time.monotonic()
        with pytest.raises(DockerUnavailable):
            await it.daemon.network(NET)
        assert time.monotonic() - started < 0.5
        started = time.monotonic()
        for _ in range(20):
            assert await DockerNames(it.daemon, it.table).network_name(NET) is None
            assert await Identities(it.daemon, it.table).of_endpoint(NET, ENDPOINT) is None
        assert time.monotonic() - started < 0.1
        dockerd.add_network(NET, "net1")
        dockerd.answers.set()
        await it.until(lambda: it.daemon.serving)
        assert await DockerNames(it.daemon, it.table).network_name(NET) == "net1"


async def test_a_daemon_that_falls_silent_costs_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "QUESTION_DEADLINE", 0.05)
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    async with watching(tmp_path, dockerd) as it:
        await it.until(lambda: it.daemon.serving)
        dockerd.add_network(NET, "net1")
        dockerd.answers.clear()
        for _ in range(10):
            with pytest.raises(DockerUnavailable):
                await it.daemon.network(NET)
        assert sum(path.endswith(NET) for path in dockerd.requests) == 1
        assert not it.daemon.serving


async def test_without_docker_questions_end_at_once(tmp_path: Path) -> None:
    async with watching(tmp_path, start=False) as it:
        with pytest.raises(DockerUnavailable):
            await it.daemon.network(NET)
        started = time.monotonic()
        with pytest.raises(DockerUnavailable):
            await it.daemon.container_named("web")
        assert time.monotonic() - started < 0.05


async def test_whether_a_network_exists(tmp_path: Path) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.add_network(NET, "net1")
    async with watching(tmp_path, dockerd) as it:
        names = DockerNames(it.daemon, it.table)
        await it.until(lambda: it.daemon.serving)
        assert await names.network_exists(NET) is True
        assert await names.network_exists("2" * 64) is False
        await dockerd.stop()
        await it.until(lambda: not it.daemon.serving)
        assert await names.network_exists(NET) is None


@pytest.mark.parametrize(
    "members",
    [
        {f"ep-{ENDPOINT}": {"Name": "web", "EndpointID": ENDPOINT}},
        {"ep-other": {"Name": "x", "EndpointID": "f" * 64}, CONTAINER: {"Name": "web", "EndpointID": ENDPOINT}},
    ],
    ids=["joining", "joined"],
)
async def test_the_container_behind_an_endpoint(tmp_path: Path, members: dict[str, dict[str, str]]) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.add_network(NET, "net1", members)
    dockerd.add_container(CONTAINER, "web", {"a": "b"})
    dockerd.add_container("d" * 64, "web2")
    async with watching(tmp_path, dockerd) as it:
        await it.until(lambda: it.daemon.serving)
        identities = Identities(it.daemon, it.table)
        assert await identities.of_endpoint(NET, ENDPOINT) == WEB
        assert await identities.of_endpoint(NET, "0" * 64) is None


async def test_networks_of_this_driver_are_found_under_any_of_its_names(tmp_path: Path) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    for network_id, driver in {"1": "calico", "2": "calico-ipam", "3": "calico:latest", "4": "bridge"}.items():
        dockerd.add_network(network_id, f"net{network_id}")
        dockerd.networks[network_id]["Driver"] = driver
    dockerd.add_network("5", "net5")
    dockerd.networks["5"]["Driver"] = "registry/mine:1"
    async with watching(tmp_path, dockerd) as it:
        await it.until(lambda: it.daemon.serving)
        assert [each["Id"] for each in await it.daemon.own_networks({"5", "6"})] == ["1", "2", "3", "5"]


@pytest.mark.parametrize("name", ["we.b", "w+b", "a[0]"])
async def test_a_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.add_container(CONTAINER, "weeb")
    dockerd.add_container("d" * 64, name)
    async with watching(tmp_path, dockerd) as it:
        await it.until(lambda: it.daemon.serving)
        found = await it.daemon.container_named(name)
    assert found is not None
    assert found.id == "d" * 64


@pytest.mark.parametrize(
    ("version", "swarm", "cluster_store", "expected"),
    [
        ("20.10.24+dfsg1", "inactive", "", "local"),
        ("20.10.24", "inactive", "etcd://10.0.0.1:2379", "global"),
        ("23.0.6", "inactive", "", "local"),
        ("24.0.0", "inactive", "", "global"),
        ("28.5.2", "", "", "global"),
        ("29.7.2", "active", "", "local"),
        ("29.7.2", "locked", "", "local"),
        ("dev", "inactive", "", "global"),
    ],
)
async def test_scope_is_what_the_daemon_takes(
    tmp_path: Path, version: str, swarm: str, cluster_store: str, expected: str
) -> None:
    dockerd = FakeDockerd(tmp_path / "docker.sock")
    dockerd.version, dockerd.swarm, dockerd.cluster_store = version, swarm, cluster_store
    async with watching(tmp_path, dockerd):
        pass
    saved = AnnouncedScope("auto", tmp_path / "docker.json")
    assert await saved.scope(host_header="x") == expected
    assert await AnnouncedScope("global", tmp_path / "docker.json").scope(host_header="x") == "global"


async def test_scope_of_a_daemon_never_asked_is_answered_in_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scope.PATIENCE <= 0.5
    monkeypatch.setattr(scope, "PATIENCE", 0.05)
    started = time.monotonic()
    announced = AnnouncedScope("auto", tmp_path / "docker.json")
    assert await announced.scope(host_header="plugin.moby.localhost") == "global"
    assert await announced.scope(host_header="") == "local"
    assert time.monotonic() - started < 0.2


async def test_scope_waits_for_a_daemon_that_is_just_being_asked(tmp_path: Path) -> None:
    announced = AnnouncedScope("auto", tmp_path / "docker.json")
    asking = asyncio.create_task(announced.scope(host_header="plugin.moby.localhost"))
    await asyncio.sleep(0)
    announced.learn(kind_of({"ServerVersion": "29.7.2", "Swarm": {"LocalNodeState": "active"}}))
    assert await asking == "local"


async def test_entering_swarm_mode_is_noticed(tmp_path: Path) -> None:
    async with watching(tmp_path) as it:
        await it.until(lambda: it.daemon.serving)
        assert await it.scope.scope(host_header="") == "global"
        it.dockerd.swarm = "active"
        it.dockerd.emit("network", "create", NET, name="ingress", type="overlay")
        finding = "Docker took the Calico driver's scope as global, and needs local now: restart Docker"
        await it.until(lambda: it.scope.findings == [finding])
        restarted = AnnouncedScope("auto", tmp_path / "docker.json")
        assert restarted.findings == [finding]
        assert AnnouncedScope("global", tmp_path / "docker.json").findings == []
        assert await restarted.scope(host_header="") == "local"
        assert restarted.findings == AnnouncedScope("auto", tmp_path / "docker.json").findings == []


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)

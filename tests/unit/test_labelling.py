"""Container labels on workload endpoints: known in time, or the endpoint stays closed."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.docker import identity, messages
from calico_libnetwork.docker.containers import Container
from calico_libnetwork.docker.labels import facts_of
from calico_libnetwork.errors import AddressInUse
from calico_libnetwork.model import documents
from tests.unit.docker_fakes import FakeDaemon, Host, running_host
from tests.unit.test_network_driver import ENDPOINT, NET, PATH, V4, V6, endpoint, joining, of

WEB = Container(
    id="c" * 64,
    name="web",
    image="nginx:1",
    labels={
        "org.projectcalico.label.role": "frontend",
        "other": "x",
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
    },
)
ANNOTATIONS = {
    "org.projectcalico.libnetwork/compose-project": "shop",
    "org.projectcalico.libnetwork/compose-service": "web",
    "org.projectcalico.libnetwork/container-id": "c" * 64,
    "org.projectcalico.libnetwork/container-image": "nginx:1",
    "org.projectcalico.libnetwork/container-name": "web",
    "org.projectcalico.libnetwork/network-id": NET,
    "org.projectcalico.libnetwork/network-name": "net1",
}
LABELS = {
    "projectcalico.org/namespace": "libnetwork",
    "projectcalico.org/orchestrator": "libnetwork",
    "role": "frontend",
}


def docker(*, answers: bool = True) -> FakeDaemon:
    daemon = FakeDaemon({NET: "net1"} if answers else None)
    daemon.add(WEB)
    return daemon


def joins(daemon: FakeDaemon) -> None:
    """The endpoint is listed as Docker lists it from Join on."""
    daemon.members[f"ep-{ENDPOINT}"] = {"Name": "web", "EndpointID": ENDPOINT}


def started(daemon: FakeDaemon) -> None:
    daemon.members.clear()
    daemon.members[WEB.id] = {"Name": "web", "EndpointID": ENDPOINT}


async def requested(host: Host, name: str = "") -> str:
    options = {messages.ENDPOINT_NAME: name} if name else None
    request = messages.RequestAddress(pool_id="CalicoPoolIPv4", address=V4.partition("/")[0], options=options)
    return (await host.drivers.ipam.request_address(request)).address


async def until_open(host: Host) -> Any:
    changed = asyncio.Event()
    undo = host.cache.subscribe(lambda _: changed.set())
    async with asyncio.timeout(2):
        while "ipNetworks" not in (stored := await host.value(PATH))["spec"]:
            await changed.wait()
            changed.clear()
    undo()
    return stored


async def test_docker_29_names_the_container_and_its_labels_are_there_from_the_start(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=docker(), label_endpoints=True) as host:
        await requested(host, "web")
        host.transactions()
        await host.drivers.network.create_endpoint(endpoint())
        assert host.transactions() == 1
        stored = await host.value(PATH)
        assert stored["metadata"]["labels"] == LABELS
        assert stored["metadata"]["annotations"] == ANNOTATIONS
        assert stored["spec"]["ipNetworks"] == [V4]
        await host.drivers.network.join(joining())
        assert host.transactions() == 0


async def test_older_dockers_tell_in_join_and_until_then_the_endpoint_is_closed(tmp_path: Path) -> None:
    daemon = docker()
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as host:
        await requested(host)
        await host.drivers.network.create_endpoint(endpoint(v6=V6))
        assert "ipNetworks" not in (await host.value(PATH))["spec"]
        joins(daemon)
        host.transactions()
        answer = await host.drivers.network.join(joining())
        assert host.transactions() == 1
        assert (answer.gateway, answer.gateway_ipv6) == ("169.254.1.1", "fe80::ecee:eeff:feee:eeee")
        assert len(host.status.asked) == 1
        opened = await host.value(PATH)
    assert opened["metadata"]["labels"] == LABELS
    assert opened["metadata"]["annotations"] == ANNOTATIONS
    assert list(opened["spec"].items())[4:6] == [("ipNetworks", [V4, V6]), ("profiles", ["net1"])]


async def test_a_held_endpoint_still_holds_its_address(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=docker(), label_endpoints=True) as host:
        await requested(host)
        await host.drivers.network.create_endpoint(endpoint())
        assert [each.endpoint_id for each in host.assembly.parts.endpoints.holders(ip_address(V4[:-3]))] == [ENDPOINT]
        with pytest.raises(AddressInUse):
            await requested(host)
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.delete_endpoint(of())
        assert await host.endpoints() == []


async def test_while_docker_is_silent_join_answers_and_the_next_word_opens(tmp_path: Path) -> None:
    daemon = docker(answers=False)
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as host:
        await host.drivers.network.create_endpoint(endpoint())
        answer = await host.drivers.network.join(joining())
        assert answer.gateway == "169.254.1.1"
        assert host.status.asked == []
        assert "ipNetworks" not in (await host.value(PATH))["spec"]
        daemon.names = {NET: "net1"}
        host.table.put(WEB)
        started(daemon)
        await host.assembly.listener.container_connected(NET, WEB.id)
        assert (await host.value(PATH))["metadata"]["labels"] == LABELS
        assert (await host.value(PATH))["spec"]["ipNetworks"] == [V4]


async def test_the_namespace_tells_while_docker_28_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "container_in", {Path("/netns/1"): WEB.id}.get)
    async with running_host(tmp_path, daemon=docker(answers=False), label_endpoints=True) as host:
        host.table.put(WEB)
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.join(joining(sandbox="/netns/2"))
        assert "ipNetworks" not in (await host.value(PATH))["spec"]
        await host.drivers.network.join(joining(sandbox="/netns/1"))
        assert (await host.value(PATH))["metadata"]["labels"] == LABELS


async def test_the_saved_table_serves_while_docker_29_starts(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=docker(answers=False), label_endpoints=True) as host:
        host.table.put(WEB)
        await requested(host, "web")
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.value(PATH))["metadata"]["labels"] == LABELS


async def test_labels_that_never_come_open_the_endpoint_after_the_timeout(tmp_path: Path) -> None:
    async with running_host(
        tmp_path, daemon=docker(answers=False), label_endpoints=True, label_poll_timeout=0.05
    ) as host:
        with capture_logs() as logs:
            await host.drivers.network.create_endpoint(endpoint())
            opened = await until_open(host)
    assert "role" not in opened["metadata"]["labels"]
    assert [entry["endpoint"] for entry in logs if "opened without them" in entry["event"]] == [ENDPOINT[:12]]


async def test_the_time_in_which_docker_starts_does_not_count(tmp_path: Path) -> None:
    daemon = docker(answers=False)
    daemon.starts = asyncio.Event()
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True, label_poll_timeout=0) as host:
        host.table.put_network(NET, "net1")
        await host.drivers.network.create_endpoint(endpoint())
        await asyncio.sleep(0.05)
        assert "ipNetworks" not in (await host.value(PATH))["spec"]
        daemon.starts.set()
        await until_open(host)


async def test_an_endpoint_held_in_an_earlier_life_is_opened_in_this_one(tmp_path: Path) -> None:
    daemon = docker(answers=False)
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as host:
        await host.drivers.network.create_endpoint(endpoint())
        async with running_host(
            tmp_path, datastore=host.datastore, daemon=daemon, label_endpoints=True, label_poll_timeout=0.05
        ) as again:
            await until_open(again)


async def test_a_daemon_that_is_back_is_asked_for_all(tmp_path: Path) -> None:
    daemon = docker(answers=False)
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as host:
        await host.drivers.network.create_endpoint(endpoint())
        daemon.names = {NET: "net1"}
        host.table.put(WEB)
        started(daemon)
        await host.assembly.listener.daemon_listed()
        assert (await host.value(PATH))["metadata"]["labels"] == LABELS
        asked = len(daemon.questions)
        await host.assembly.listener.daemon_listed()
        await host.assembly.listener.container_connected(NET, WEB.id)
        assert len(daemon.questions) == asked


async def test_labels_and_fields_of_others_stay_when_ours_come(tmp_path: Path) -> None:
    daemon = docker()
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as host:
        await host.drivers.network.create_endpoint(endpoint())
        stored = await host.value(PATH)
        stored["metadata"]["labels"]["theirs"] = "yes"
        stored["spec"]["new"] = {"field": 1}
        await host.cache.commit(Transaction([], [Put(PATH, documents.encode(stored))]))
        joins(daemon)
        await host.drivers.network.join(joining())
        opened = await host.value(PATH)
    assert opened["metadata"]["labels"] == LABELS | {"theirs": "yes"}
    assert opened["spec"]["new"] == {"field": 1}
    assert opened["metadata"]["uid"] == stored["metadata"]["uid"]


async def test_without_labelling_nothing_is_asked_and_the_name_comes_later(tmp_path: Path) -> None:
    daemon = docker()
    async with running_host(tmp_path, daemon=daemon) as host:
        await host.drivers.network.create_endpoint(endpoint())
        await host.drivers.network.join(joining())
        assert daemon.questions == [f"network {NET[:12]}"]  # for its name, once
        host.table.put(WEB)
        started(daemon)
        await host.assembly.listener.container_connected(NET, WEB.id)
        stored = await host.value(PATH)
    assert stored["metadata"]["annotations"] == ANNOTATIONS
    assert "role" not in stored["metadata"]["labels"]


async def test_a_renamed_container_has_its_new_name(tmp_path: Path) -> None:
    daemon = docker()
    async with running_host(tmp_path, daemon=daemon) as host:
        await host.drivers.network.create_endpoint(endpoint())
        host.table.put(WEB)
        started(daemon)
        await host.assembly.listener.container_connected(NET, WEB.id)
        host.transactions()
        await host.assembly.listener.daemon_listed()
        assert host.transactions() == 0
        host.table.apply(
            {"Type": "container", "Action": "rename", "Actor": {"ID": WEB.id, "Attributes": {"name": "/x"}}}
        )
        await host.assembly.listener.container_renamed()
        stored = await host.value(PATH)
    assert stored["metadata"]["annotations"] == {**ANNOTATIONS, "org.projectcalico.libnetwork/container-name": "x"}


async def test_a_containers_aliases_are_published_but_for_what_others_know_anyway(tmp_path: Path) -> None:
    daemon = docker()
    async with running_host(tmp_path, daemon=daemon) as host:
        await host.drivers.network.create_endpoint(endpoint())
        host.table.put(WEB)
        started(daemon)
        await host.assembly.listener.container_connected(NET, WEB.id)
        labelling = host.assembly.parts.labelling
        for _ in range(2):
            await labelling.follow_names(lambda _: frozenset({"web", WEB.id[:12], "shop", "api"}))
        host.transactions()
        await labelling.follow_names(lambda _: None)  # not known now: what was published stays
        assert host.transactions() == 0
        stored = await host.value(PATH)
        assert stored["metadata"]["annotations"] == {**ANNOTATIONS, "org.projectcalico.libnetwork/aliases": "api,shop"}
        await labelling.follow_names(lambda _: frozenset({"web"}))
        stored = await host.value(PATH)
        assert stored["metadata"]["annotations"]["org.projectcalico.libnetwork/aliases"] == ""


async def test_without_labelling_docker_29_gives_the_name_at_once(tmp_path: Path) -> None:
    async with running_host(tmp_path, daemon=docker()) as host:
        host.table.put(WEB)
        await requested(host, "web")
        await host.drivers.network.create_endpoint(endpoint())
        assert (await host.value(PATH))["metadata"]["annotations"] == ANNOTATIONS


async def test_a_label_that_calico_does_not_take_is_skipped_and_named(tmp_path: Path) -> None:
    daemon = FakeDaemon({NET: "net1"})
    bad = "org.projectcalico.label.bad value"
    daemon.add(Container(id="c" * 64, name="web", labels={bad: "x", "org.projectcalico.label.role": "db"}))
    async with running_host(tmp_path, daemon=daemon, label_endpoints=True) as host:
        await requested(host, "web")
        with capture_logs() as logs:
            await host.drivers.network.create_endpoint(endpoint())
        assert (await host.value(PATH))["metadata"]["labels"]["role"] == "db"
    assert [(entry["label"], entry["container"]) for entry in logs if "label" in entry] == [(bad, "web")]


@pytest.mark.parametrize(
    ("key", "value", "copied"),
    [
        ("role", "frontend", True),
        ("example.com/role", "", True),
        ("a" * 63, "v" * 63, True),
        ("a" * 64, "v", False),
        ("role", "v" * 64, False),
        ("role", "two words", False),
        ("role", "-x", False),
        ("", "x", False),
        ("ro le", "x", False),
        ("Example.com/role", "x", False),
        ("projectcalico.org/namespace", "kube-system", False),
        ("projectcalico.org/orchestrator", "k8s", False),
        ("pcns.team", "x", False),
        ("pcsa.team", "x", False),
        ("network.projectcalico.org/net2", "", False),
    ],
)
def test_which_labels_are_copied(key: str, value: str, copied: bool) -> None:
    full_key = f"org.projectcalico.label.{key}"
    facts = facts_of(Container(id="c", name="n", labels={full_key: value}), copy_labels=True)
    assert facts.labels == ({key: value} if copied else {})
    assert set(facts.skipped) == (set() if copied else {full_key})

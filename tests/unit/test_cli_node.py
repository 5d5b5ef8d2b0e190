"""``node`` and ``status`` with and without a running process, as a user calls them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from calico_libnetwork.cli import deletion
from calico_libnetwork.cli.deletion import open_ipam
from calico_libnetwork.cli.node import node
from calico_libnetwork.cli.session import FILE, Session
from calico_libnetwork.cli.status import status
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.editing import Editor
from calico_libnetwork.datastore.initialise import FirstStart, initialise
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Datastore, Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.docker.labels import CONTAINER_NAME
from calico_libnetwork.docker.networks import PREFIX as NETWORKS
from calico_libnetwork.docker.profiles import NETWORK_ID, profile_document
from calico_libnetwork.errors import CalicoError
from calico_libnetwork.model import documents
from calico_libnetwork.model.documents import Document, new_document
from calico_libnetwork.model.kinds import ResourceKey
from tests.unit.first_start import plain_node
from tests.unit.running_process import PARTS, ROUTING, running_process

Command = Callable[..., Result]
BLOCK = "192.168.179.128/26"  # which Calico's hash of host-b names
CREATED = "2026-11-24T00:00:00Z"
NETWORK = "5e1f".ljust(64, "0")


async def fill(store: Datastore) -> None:
    """host-a with web and host-b with db, each with an address, and one address of a plugin that wrote no node."""
    for number, name in enumerate(("host-a", "host-b"), start=1):
        await initialise(store, FirstStart(node=name, node_document=plain_node(name), ipv6=False))
        await _put(store, _node(name, number))
    for name, container in (("host-a", "web"), ("host-b", "db")):
        async with open_ipam(store, name) as ipam:
            address = await ipam.auto_assign(4, handle=f"libnetwork.{name}.1", attributes={"node": name})
        await _put(store, _endpoint(name, container, f"{address}/32"))
    private = f"{deletion.PRIVATE_PREFIX}host-b/networks/{NETWORK}"
    record = json.dumps({"id": NETWORK, "node": "host-a", "name": "net1"}).encode()
    await store.commit(Transaction([], [Put(private, b"{}"), Put(NETWORKS + NETWORK, record)]))


def _node(name: str, number: int) -> Document:
    spec = {"bgp": {"ipv4Address": f"172.30.0.{number}/24"}}
    return new_document("Node", name, spec, uid=name, created=CREATED)


def _endpoint(host: str, container: str, network: str) -> Document:
    spec = {"node": host, "orchestrator": "libnetwork", "workload": "libnetwork", "endpoint": container}
    return new_document(
        "WorkloadEndpoint",
        f"{host.replace('-', '--')}-libnetwork-libnetwork-{container}",
        spec | {"ipNetworks": [network], "interfaceName": f"cali{container}"},
        uid=container,
        created=CREATED,
        namespace="libnetwork",
        annotations={CONTAINER_NAME: container, NETWORK_ID: NETWORK},
    )


async def _put(store: Datastore, document: Document) -> None:
    metadata = document["metadata"]
    key = ResourceKey(document["kind"], metadata["name"], metadata.get("namespace", ""))
    await store.commit(Transaction([], [Put(key.path, documents.encode(document))]))


async def _prepare(file: Path) -> None:
    store = await SqliteDatastore.open(file)
    await fill(store)
    await store.close()


async def filled() -> MemoryDatastore:
    store = MemoryDatastore()
    await fill(store)
    return store


@pytest.fixture
def calico(tmp_path: Path) -> Command:
    config = Config(datastore_type="embedded", state_directory=tmp_path, run_directory=tmp_path, nodename="host-a")

    def call(*words: str, answer: str = "") -> Result:
        command = {"node": node, "status": status}[words[0]]
        return CliRunner().invoke(command, words[1:], input=answer, obj=Session(config))

    return call


@pytest.fixture
def stopped(calico: Command, tmp_path: Path) -> Command:
    asyncio.run(_prepare(tmp_path / FILE))
    return calico


def left(tmp_path: Path) -> list[str]:
    async def keys() -> list[str]:
        store = await SqliteDatastore.open(tmp_path / FILE)
        found = [item.key for item in (await store.list(["/"])).items]
        await store.close()
        return found

    return asyncio.run(keys())


def test_deleted_node_is_shown_with_what_it_holds_and_asked_for(stopped: Command, tmp_path: Path) -> None:
    answer = stopped("node", "delete", "host-b", answer="y\n")
    assert answer.exit_code == 0, answer.output
    assert answer.output.splitlines()[:5] == [
        "Node host-b holds:",
        "  workload endpoints: 1 (db)",
        f"  addresses: 1 ({BLOCK.removesuffix('/26')})",
        f"  blocks: 1 ({BLOCK})",
        "  others that name it: 1 (FelixConfiguration(node.host-b))",
    ]
    assert answer.output.endswith("Successfully deleted node host-b\n")
    assert not [key for key in left(tmp_path) if "host-b" in key or "host--b" in key]
    assert [key for key in left(tmp_path) if key.endswith(("nodes/host-a", "host--a-libnetwork-libnetwork-web"))]


def test_a_no_deletes_nothing(stopped: Command, tmp_path: Path) -> None:
    before = left(tmp_path)
    assert stopped("node", "delete", "host-b", answer="n\n").exit_code == 1
    assert left(tmp_path) == before


def test_an_unknown_node_is_named(stopped: Command) -> None:
    answer = stopped("node", "delete", "host-x", "--yes")
    assert str(answer.exception) == "Node(host-x) does not exist, and nothing is held in its name"


def test_what_is_left_of_a_node_without_a_node_is_deleted_too(stopped: Command, tmp_path: Path) -> None:
    async def forget() -> None:
        store = await SqliteDatastore.open(tmp_path / FILE)
        await Editor(store).delete(ResourceKey("Node", "host-b"))
        await store.close()

    asyncio.run(forget())
    answer = stopped("node", "delete", "host-b", "--yes")
    assert answer.output.startswith("Node(host-b) does not exist, but there are of it:\n  workload endpoints: 1 (db)\n")
    assert not [key for key in left(tmp_path) if "host-b" in key]


def test_the_own_node_is_not_deleted_while_it_runs(calico: Command, tmp_path: Path) -> None:
    store = asyncio.run(filled())
    with running_process(tmp_path, store):
        answer = calico("node", "delete", "host-a", "--yes")
        assert isinstance(answer.exception, CalicoError)
        assert "is this host, and calico-libnetwork runs here" in str(answer.exception)
        assert calico("node", "delete", "host-a", "--yes", "--force").exit_code == 0
        assert calico("node", "delete", "host-b", "--yes").exit_code == 0


PEER = {
    "address": "172.30.0.2",
    "ipVersion": 4,
    "asNumber": 64512,
    "type": "node-to-node mesh",
    "state": "up",
    "since": "2026-11-24 10:00:00",
    "info": "Established",
    "imported": 1,
    "exported": 2,
}
BGP = ROUTING | {"mode": "bird", "reason": "Node(host-b) is on another subnet", "peers": [PEER]}


def test_a_node_that_speaks_bgp_is_not_deleted(calico: Command, tmp_path: Path) -> None:
    store = asyncio.run(filled())
    with running_process(tmp_path, store, parts={"routing": BGP}):
        answer = calico("node", "delete", "host-b", "--yes")
    assert "it speaks BGP with this host" in str(answer.exception)


def test_an_address_that_moved_elsewhere_is_kept() -> None:
    async def scenario() -> None:
        store = await filled()
        async with open_ipam(store, "host-b") as ipam:
            (address,) = [each.address for each in ipam.assignments("host-b")]
        await _put(store, _endpoint("host-a", "moved", f"{address}/32"))
        assert (await deletion.holdings(store, "host-b")).addresses == ()
        await deletion.delete_node(store, "host-b")
        async with open_ipam(store) as ipam:
            assert ipam.assignment(address) is not None

    asyncio.run(scenario())


def test_networks_of_a_node_go_with_it_and_their_profiles_unless_others_need_them() -> None:
    async def scenario() -> None:
        store = await filled()
        for network, profile in (("net2", "net2"), ("net3", "net1")):
            record = {"id": network, "node": "host-b", "name": profile, "profile": profile}
            document = profile_document(profile, network_id=network, network_name=profile, uid=network, created=CREATED)
            path = ResourceKey("Profile", profile).path
            puts = [Put(NETWORKS + network, json.dumps(record).encode()), Put(path, documents.encode(document))]
            await store.commit(Transaction([], puts))
        needed = json.dumps({"id": NETWORK, "node": "host-a", "name": "net1", "profile": "net1"}).encode()
        await store.commit(Transaction([], [Put(NETWORKS + NETWORK, needed)]))
        await deletion.delete_node(store, "host-b")
        assert [item.key for item in (await store.list([NETWORKS])).items] == [NETWORKS + NETWORK]
        profiles = (await store.list([ResourceKey("Profile", "net").path])).items
        assert [item.key for item in profiles] == [ResourceKey("Profile", "net1").path]

    asyncio.run(scenario())


def test_status_of_a_node_names_peers_routes_and_blocks(calico: Command, tmp_path: Path) -> None:
    way = {"gateway": "172.30.0.2", "interface": "eth0", "kind": "unicast", "destinations": [BLOCK]}
    with running_process(tmp_path, asyncio.run(filled()), parts={"routing": BGP | {"routes": [way]}}):
        answer = calico("node", "status")
    assert answer.exit_code == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in answer.output.splitlines()]
    assert "Routes between hosts: bird, for Node(host-b) is on another subnet." in answer.output
    assert ["172.30.0.2", "node-to-node mesh", "host-b", "up", PEER["since"], "Established", "1", "2"] in rows
    assert "No IPv6 peers found." in answer.output
    assert ["172.30.0.2", "eth0", "host-b", BLOCK] in rows
    assert ["host-b", "default-ipv4-ippool", "1", "64", "1 (2%)"] in rows


def test_status_of_a_node_works_without_a_process_and_ends_with_one(stopped: Command) -> None:
    answer = stopped("node", "status", "--blocks")
    assert answer.exit_code == 1
    assert "calico-libnetwork is not running" in answer.stderr
    assert BLOCK in answer.stdout
    told = json.loads(stopped("node", "status", "-o", "json").stdout)
    assert [each["name"] for each in told["nodes"]] == ["host-a", "host-b"]
    assert told["usage"][1]["blocks"] == [BLOCK]


def test_the_screen_shows_pools_networks_and_findings(calico: Command, tmp_path: Path) -> None:
    agent: dict[str, Any] = {"failures": [], "findings": ["GlobalNetworkPolicy(p): http is not enforced"]}
    with running_process(tmp_path, asyncio.run(filled()), parts={"agent": agent}):
        answer = calico("status")
        told = json.loads(calico("status", "-o", "json").stdout)
    assert answer.exit_code == 0
    assert answer.output.splitlines() == [
        "ready        node host-a, version 0.1.0, built-in dataplane",
        "agent        0 endpoints in force",
        "datastore    connected: memory",
        "docker       answers: unix:///var/run/docker.sock",
        "routing      direct, for all nodes run this agent and share a subnet",
        "pools        default-ipv4-ippool  192.168.0.0/16  2 (0%) of 65536 in use",
        "networks     net1  2 endpoints on 2 nodes",
        "refused      none",
        "obstacles    none",
        "unreadable   none",
        "findings     GlobalNetworkPolicy(p): http is not enforced",
    ]
    assert told["networks"] == [{"name": "net1", "endpoints": 2, "nodes": 2}]


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ({"datastore": {"where": "etcd", "state": "no answer", "revision": 0}}, "datastore    NOT connected: etcd"),
        ({"docker": {"where": "unix:///d", "answers": False}}, "docker       DOES NOT ANSWER: unix:///d"),
    ],
)
def test_what_does_not_answer_ends_with_one(calico: Command, tmp_path: Path, part: dict[str, Any], line: str) -> None:
    with running_process(tmp_path, MemoryDatastore(), parts=part):
        answer = calico("status")
    assert answer.exit_code == 1
    assert line in answer.output.splitlines()


@pytest.mark.parametrize(("elsewhere", "shown"), [([], []), (["10.9.0.0/26"], ["1 route to other hosts"])])
def test_what_leads_nowhere_is_no_route_to_another_host(
    calico: Command, tmp_path: Path, elsewhere: list[str], shown: list[str]
) -> None:
    nowhere = {"gateway": "", "interface": "", "kind": "blackhole", "destinations": ["10.5.0.0/26"]}
    away = {"gateway": "192.0.2.2", "interface": "eth0", "kind": "unicast", "destinations": elsewhere}
    routing = ROUTING | {"routes": [nowhere, away]}
    with running_process(tmp_path, MemoryDatastore(), parts={"routing": routing}):
        lines = calico("status").output.splitlines()
    assert [line.strip().partition(";")[0] for line in lines if "to other hosts" in line] == shown


def test_what_docker_and_its_containers_lack_is_a_finding(calico: Command, tmp_path: Path) -> None:
    parts = {"docker": PARTS["docker"] | {"findings": ["restart Docker"]}, "unconnected": ["container web"]}
    with running_process(tmp_path, MemoryDatastore(), parts=parts):
        lines = calico("status").output.splitlines()
    assert lines[-2:] == ["findings     restart Docker", "             container web"]


def test_pools_beyond_counting_fit_the_screen(calico: Command, tmp_path: Path) -> None:
    store = MemoryDatastore()
    pool = new_document(
        "IPPool", "default-ipv6-ippool", {"cidr": "fd80:24e2:f998:72d6::/64"}, uid="pool", created=CREATED
    )
    asyncio.run(_put(store, pool))
    with running_process(tmp_path, store):
        lines = calico("status").output.splitlines()
    assert "pools        default-ipv6-ippool  fd80:24e2:f998:72d6::/64  0 in use" in lines


def test_a_process_that_an_upgrade_has_yet_to_restart_is_shown(
    calico: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(PARTS, "unreadable")
    with running_process(tmp_path, MemoryDatastore()):
        assert calico("status").exit_code == 0


def test_a_long_list_is_counted(calico: Command, tmp_path: Path) -> None:
    agent: dict[str, Any] = {"failures": [], "findings": [f"finding {number}" for number in range(30)]}
    with running_process(tmp_path, MemoryDatastore(), parts={"agent": agent}):
        lines = calico("status").output.splitlines()
    assert len(lines) < 24
    assert lines[-1].split() == ["and", "22", "more,", "with", "-o", "json"]

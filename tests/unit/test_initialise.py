"""The first start writes what calico/node writes, keeps what it finds, and two hosts end with one result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.datastore.initialise import FirstStart, Started, initialise
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Listing, Outcome, Put, Transaction
from calico_libnetwork.errors import ConfigError, Conflict
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.validation import validate


def node_document(stored: documents.Document | None) -> documents.Document:
    made = stored or documents.new_document("Node", "host-a", {}, uid="u", created="2026-11-24T00:00:00Z")
    return made | {"spec": made["spec"] | {"bgp": {"ipv4Address": "172.31.77.1/24"}}, "status": {}}


HOST = FirstStart(
    node="host-a",
    node_document=node_document,
    host_networks=(IPv4Network("172.31.77.0/24"),),
)
CLUSTER = ResourceKey("ClusterInformation", "default")
NODE = ResourceKey("Node", "host-a")
POOL = ResourceKey("IPPool", "default-ipv4-ippool")
POOL6 = ResourceKey("IPPool", "default-ipv6-ippool")


async def stored(datastore: MemoryDatastore) -> dict[str, dict[str, Any]]:
    listing = await datastore.list(["/"])
    return {item.key.rpartition("v3/projectcalico.org/")[2]: documents.decode(item.value) for item in listing.items}


async def read(datastore: MemoryDatastore, key: ResourceKey) -> dict[str, Any]:
    (item,) = (await datastore.get([key.path])).items
    return documents.decode(item.value)


async def put(datastore: MemoryDatastore, key: ResourceKey, document: dict[str, Any]) -> None:
    await datastore.commit(Transaction([], [Put(key.path, documents.encode(document))]))


async def started(settings: FirstStart = HOST, *before: tuple[ResourceKey, dict[str, Any]]) -> MemoryDatastore:
    datastore = MemoryDatastore()
    for key, document in before:
        await put(datastore, key, document)
    await initialise(datastore, settings)
    return datastore


async def test_bare_datastore_gets_everything_that_calico_node_makes() -> None:
    found = await stored(await started())
    assert sorted(found) == [
        "bgpconfigurations/default",
        "clusterinformations/default",
        "felixconfigurations/default",
        "felixconfigurations/node.host-a",
        "ipamconfigurations/default",
        "ippools/default-ipv4-ippool",
        "ippools/default-ipv6-ippool",
        "nodes/host-a",
        "tiers/default",
        "tiers/kube-admin",
        "tiers/kube-baseline",
    ]
    cluster = found["clusterinformations/default"]["spec"]
    assert len(cluster.pop("clusterGUID")) == 32
    assert cluster == {"clusterType": "docker", "datastoreReady": True}
    assert found["felixconfigurations/node.host-a"]["spec"]["defaultEndpointToHostAction"] == "Return"
    assert found["felixconfigurations/default"]["spec"]["reportingInterval"] == "0s"


async def test_everything_written_is_in_the_form_that_calico_stores() -> None:
    for item in (await (await started()).list(["/"])).items:
        document = documents.decode(item.value)
        valid = validate(document)
        assert valid.key.path == item.key
        if valid.key.kind == "FelixConfiguration":  # an older Felix warns of values it does not know
            valid.document["spec"] = {
                name: value for name, value in valid.document["spec"].items() if not name.startswith("nftables")
            }
        assert documents.encode(valid.document) == item.value


async def test_tiers_are_stored_as_calicos_tools_store_them() -> None:
    recorded = {}
    data = Path(__file__).parents[1] / "data" / "calico" / "resources.jsonl"
    for line in data.read_text().splitlines():
        record = json.loads(line)
        if "/tiers/" in record.get("key", "") and "step" in record:
            recorded[record["key"]] = record["value"]
    datastore = await started()
    for item in (await datastore.get(sorted(recorded))).items:
        ours, theirs = documents.decode(item.value), documents.decode(recorded.pop(item.key).encode())
        for changing in ("uid", "creationTimestamp"):
            ours["metadata"][changing] = theirs["metadata"][changing]
        assert documents.encode(ours) == documents.encode(theirs)
    assert not recorded


async def test_default_pools_are_calicos() -> None:
    datastore = await started()
    pool, pool6 = await read(datastore, POOL), await read(datastore, POOL6)
    assert documents.encode(pool["spec"]) == (
        b'{"cidr":"192.168.0.0/16","vxlanMode":"Never","ipipMode":"Never","natOutgoing":true,"blockSize":26,'
        b'"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}'
    )
    cidr = IPv6Network(pool6["spec"]["cidr"])
    assert cidr.prefixlen == 48
    assert cidr.subnet_of(IPv6Network("fd00::/8"))
    assert pool6["spec"]["blockSize"] == 122
    assert "natOutgoing" not in pool6["spec"]


@pytest.mark.parametrize(
    ("host_networks", "cidr"),
    [
        ([], "192.168.0.0/16"),
        (["0.0.0.0/0", "10.0.0.0/8"], "192.168.0.0/16"),
        (["192.168.178.0/24"], "172.16.0.0/16"),
        (["192.168.0.0/24", "172.16.0.0/14"], "172.20.0.0/16"),
        (["192.168.0.0/16", "172.16.0.0/12"], "192.168.0.0/16"),
    ],
)
async def test_default_pool_keeps_away_from_the_hosts_networks(host_networks: list[str], cidr: str) -> None:
    datastore = await started(replace(HOST, host_networks=tuple(map(IPv4Network, host_networks))))
    assert (await read(datastore, POOL))["spec"]["cidr"] == cidr


async def test_pools_of_the_settings_are_made() -> None:
    pools = replace(HOST, ipv4_pool=IPv4Network("10.9.0.0/16"), ipv6_pool=IPv6Network("fd09::/64"))
    datastore = await started(pools)
    assert (await read(datastore, POOL))["spec"]["cidr"] == "10.9.0.0/16"
    assert (await read(datastore, POOL6))["spec"]["cidr"] == "fd09::/64"


async def test_no_pool_is_made_where_the_family_has_one_or_the_user_wants_none() -> None:
    mine = (
        ResourceKey("IPPool", "mine"),
        {"kind": "IPPool", "metadata": {"name": "mine"}, "spec": {"cidr": "10.1.0.0/16"}},
    )
    assert "ippools/default-ipv4-ippool" not in await stored(await started(HOST, mine))
    assert "ippools/default-ipv6-ippool" in await stored(await started(HOST, mine))
    assert "ippools/default-ipv6-ippool" not in await stored(await started(replace(HOST, ipv6=False)))
    assert not [key for key in await stored(await started(replace(HOST, no_default_pools=True))) if "pool" in key]


async def test_contradicting_pool_settings_stop_the_start() -> None:
    with pytest.raises(ConfigError, match="NO_DEFAULT_POOLS and CALICO_IPV4POOL_CIDR"):
        await started(replace(HOST, no_default_pools=True, ipv4_pool=IPv4Network("10.9.0.0/16")))


async def test_second_start_writes_nothing() -> None:
    datastore = await started()
    before = await datastore.list(["/"])
    assert await initialise(datastore, HOST) == Started(True)
    assert await datastore.list(["/"]) == before


async def test_cluster_information_of_others_is_completed_and_kept() -> None:
    document = {
        "kind": "ClusterInformation",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "default", "uid": "u", "creationTimestamp": "2018-01-01T00:00:00Z"},
        "spec": {"clusterGUID": "1b9c", "clusterType": "k8s,bgp", "calicoVersion": "v3.30", "future": [1]},
    }
    cluster = await read(await started(HOST, (CLUSTER, document)), CLUSTER)
    spec = {"clusterType": "k8s,bgp,docker", "datastoreReady": True}
    assert cluster == document | {"spec": document["spec"] | spec}  # type: ignore[operator]


async def test_locked_datastore_is_not_written_to() -> None:
    datastore = MemoryDatastore()
    await put(datastore, CLUSTER, {"kind": "ClusterInformation", "spec": {"datastoreReady": False}})
    before = await datastore.list(["/"])
    answer = await initialise(datastore, HOST)
    assert not answer.ready
    assert "datastoreReady is false" in answer.remark
    assert await datastore.list(["/"]) == before


async def test_unreadable_values_are_left_alone() -> None:
    datastore = MemoryDatastore()
    keys = [CLUSTER, NODE, ResourceKey("Tier", "default"), ResourceKey("IPPool", "broken")]
    await datastore.commit(Transaction([], [Put(key.path, b"nonsense") for key in keys]))
    assert (await initialise(datastore, HOST)).ready
    assert [item.value for item in (await datastore.get([key.path for key in keys])).items] == [b"nonsense"] * 4


def node(spec: dict[str, Any], **metadata: Any) -> tuple[ResourceKey, dict[str, Any]]:
    head = {"kind": "Node", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "host-a", **metadata}}
    return NODE, head | {"spec": spec, "status": {}}


async def test_new_node_is_made_without_a_stored_one() -> None:
    assert await read(await started(), NODE) == node_document(None)


async def test_stored_node_is_changed_and_not_replaced() -> None:
    document = await read(await started(HOST, node({"orchRefs": [{"orchestrator": "x"}]})), NODE)
    assert document["spec"] == {"orchRefs": [{"orchestrator": "x"}], "bgp": {"ipv4Address": "172.31.77.1/24"}}


class Raced(MemoryDatastore):
    """Lets ``hosts`` read the same state before the first of them writes."""

    def __init__(self, hosts: int) -> None:
        super().__init__()
        self._all_have_read = asyncio.Barrier(hosts)
        self._waiting = hosts

    async def list(self, prefixes: Sequence[str]) -> Listing:
        listing = await super().list(prefixes)
        if self._waiting:
            self._waiting -= 1
            await self._all_have_read.wait()
        return listing


async def test_hosts_that_start_together_end_with_one_result() -> None:
    datastore = Raced(8)
    hosts = [replace(HOST, node=f"host-{number}") for number in range(8)]
    answers = await asyncio.gather(*(initialise(datastore, host) for host in hosts))
    assert all(answer.ready for answer in answers)
    keys = [item.key for item in (await datastore.list(["/"])).items]
    assert len([key for key in keys if "/ippools/" in key]) == 2
    assert len([key for key in keys if "/nodes/" in key]) == 8


class Contended(MemoryDatastore):
    async def commit(self, transaction: Transaction) -> Outcome:
        return Outcome(False, 1)


async def test_endless_conflicts_end_in_a_sentence() -> None:
    with pytest.raises(Conflict, match="other hosts kept changing memory during the first start"):
        await initialise(Contended(), HOST)

"""Whatever stands under any key, nobody stumbles: the first start, the plugin, the agent and every command go on.

Each test is a world in which every kind of key holds one kind of nonsense, beside what is right.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from click.testing import CliRunner

from calico_libnetwork.agent.intake import Intake
from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.cli.main import cli
from calico_libnetwork.cli.session import FILE, Session
from calico_libnetwork.cli.status import networks_of
from calico_libnetwork.config import Config
from calico_libnetwork.dataplane.rules import Ruleset, RulesSettings
from calico_libnetwork.dataplane.table import Table
from calico_libnetwork.datastore.initialise import FirstStart, initialise
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.docker import messages
from calico_libnetwork.errors import CalicoError
from calico_libnetwork.model.kinds import KINDS
from calico_libnetwork.routing.router import Router
from tests.unit.docker_fakes import NODE, CountingDatastore, node, pool, running_host
from tests.unit.first_start import plain_node

DEEP = b"[" * 100_000 + b"]" * 100_000
SPECS = {
    "numbers": 5, "texts": "x", "no texts": "", "lists": [], "lists of numbers": [5], "lists of lists": [["x"]],
    "objects": {}, "objects of objects": {"x": {"y": []}}, "nulls": None, "flags": True,
}  # fmt: skip
WHOLE = {
    "nothing": b"", "half": b"{", "no text": b"\xff\xfe", "null": b"null", "number": b"7", "list": b"[]",
    "object": b"{}", "spec is a number": b'{"spec": 5}', "spec is a list": b'{"spec": []}',
    "metadata is a list": b'{"metadata": []}', "named, and spec is a number": b'{"metadata": {"name": "x"}, "spec": 5}',
    "named, and no spec": b'{"metadata": {"name": "x"}, "spec": null}',
    "deep": b'{"spec": {"x": ' + DEEP + b"}}", "deep list": DEEP,
    "long number": b'{"spec": {"x": ' + b"9" * 5000 + b"}}",
}  # fmt: skip
OTHER_KEYS = (
    "/calico/ipam/v2/assignment/ipv4/block/10.64.0.0-26",
    f"/calico/ipam/v2/host/{NODE}/ipv4/block/10.64.0.0-26",
    "/calico/ipam/v2/host/other/ipv4/block/10.64.1.0-26",
    "/calico/ipam/v2/host/other/ipv4/block/nonsense",
    "/calico/ipam/v2/handle/x",
    "/calico-libnetwork/v1/networks/x",
    "/calico-libnetwork/v1/cluster-networks/x",
    "/calico-libnetwork/v1/hosts/other/networks/x",
)
COMMANDS = (
    ["ipam", "check"], ["ipam", "show"], ["ipam", "show", "--show-blocks"], ["ipam", "show", "--show-borrowed"],
    ["ipam", "show", "--ip", "10.64.0.1"], ["node", "status"], ["explain", "10.64.0.1", "10.64.0.2"],
    ["datastore", "export"], ["datastore", "lock"], ["node", "delete", "other", "--yes"],
    *(["get", kind.plural, "-o", "wide"] for kind in KINDS.values()),
    ["get", "gnp", "-o", "yaml"],
)  # fmt: skip


def named(kind: str, spec: object) -> bytes:
    """Every field of the kind's spec holds ``spec``."""
    view = KINDS[kind].decoder.type
    fields: dict[str, Any] = {"x": spec}
    for part in get_args(view):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            fields |= {field.encode_name: spec for field in msgspec.structs.fields(part)}
    metadata = {"name": "x", "namespace": "default"}
    return json.dumps(
        {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": fields}
    ).encode()


def world(name: str) -> dict[str, bytes]:
    keys = {kind.name: kind.prefix + ("default/x" if kind.namespaced else "x") for kind in KINDS.values()}
    extra = {
        "ClusterInformation": KINDS["ClusterInformation"].prefix + "default",
        "FelixConfiguration": KINDS["FelixConfiguration"].prefix + "default",
        "BGPConfiguration": KINDS["BGPConfiguration"].prefix + "default",
        "Tier": KINDS["Tier"].prefix + "default",
        "WorkloadEndpoint": f"{KINDS['WorkloadEndpoint'].prefix}libnetwork/{NODE}-libnetwork-libnetwork-x",
    }
    found = {}
    for places in (keys, extra):
        for kind, key in places.items():
            found[key] = WHOLE[name] if name in WHOLE else named(kind, SPECS[name])
    for key in OTHER_KEYS:
        fields = ("cidr", "affinity", "allocations", "unallocated", "attributes", "block", "state", "name", "id")
        found[key] = WHOLE[name] if name in WHOLE else json.dumps(dict.fromkeys(fields, SPECS[name])).encode()
    return found


WORLDS = pytest.mark.parametrize("name", [*WHOLE, *SPECS])


@WORLDS
async def test_the_plugin_starts_and_serves(tmp_path: Path, name: str) -> None:
    store = CountingDatastore()
    puts = [Put(key, value) for key, value in world(name).items()]
    await store.commit(Transaction([], [*puts, pool("pool4", "10.65.0.0/16"), node(NODE)]))
    first = FirstStart(node=NODE, node_document=plain_node(NODE), ipv6=False)
    assert (await initialise(store, first)).ready
    async with running_host(tmp_path, datastore=store) as host:
        host.daemon.names = {"a" * 64: "net1"}
        address = (await host.drivers.ipam.request_address(messages.RequestAddress(pool_id="CalicoPoolIPv4"))).address
        await host.drivers.network.create_endpoint(
            messages.CreateEndpoint(
                network_id="a" * 64, endpoint_id="b" * 64, interface=messages.EndpointInterface(address=address)
            )
        )
        await host.assembly.reconciler.round()
        await host.drivers.network.delete_endpoint(messages.EndpointRequest(network_id="a" * 64, endpoint_id="b" * 64))
        await host.drivers.network.delete_network(messages.NetworkRequest(network_id="a" * 64))


@WORLDS
async def test_the_agent_renders_rules_and_routes(tmp_path: Path, name: str) -> None:
    store = CountingDatastore()
    await store.commit(Transaction([], [Put(key, value) for key, value in world(name).items()]))
    ruleset, router = Ruleset(node=NODE, settings=RulesSettings()), Router(node=NODE, setting="bird")
    table, arp = Table("inet", "calico-libnetwork"), Table("arp", "calico-libnetwork")
    last_readable = LastReadable(tmp_path / "last-readable.json")
    intake = Intake(
        [ruleset, router], [router], node=NODE, note=lambda _item, _reason: None, last_readable=last_readable
    )
    items = (await store.list(["/"])).items
    intake.take_all(items)
    ruleset.render(table, arp)
    router.desired()
    assert list(ruleset.findings) == sorted(ruleset.findings)
    networks_of({item.key: item.value for item in items})


@WORLDS
def test_every_command_answers(tmp_path: Path, name: str) -> None:
    async def fill() -> None:
        store = await SqliteDatastore.open(tmp_path / FILE)
        await store.commit(Transaction([], [Put(key, value) for key, value in world(name).items()]))
        await store.close()

    asyncio.run(fill())
    config = Config(datastore_type="embedded", state_directory=tmp_path, run_directory=tmp_path, nodename=NODE)
    for words in COMMANDS:
        result = CliRunner().invoke(cli, words, obj=Session(config))
        fault = result.exception
        assert fault is None or isinstance(fault, (SystemExit, CalicoError)), (words, fault, result.exc_info)
        assert "Usage" not in result.stderr

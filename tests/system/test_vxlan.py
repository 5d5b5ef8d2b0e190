"""Three hosts, two subnets with a router between them that knows nothing of the pools: VXLAN, both families."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.routing.vtep import VxlanState
from tests.system.conftest import Namespace, Workloads
from tests.system.routing_lab import Host, Lab, lab_in
from tests.unit.routing_objects import node, pool

OURS: dict[str, Any] = {"annotations": {"calico-libnetwork/routes": "direct"}}
UNDERLAY = {
    "a": ("10.0.0.1/24", "fd00::1/64"),
    "b": ("10.0.0.2/24", "fd00::2/64"),
    "c": ("10.0.1.3/24", "fd01::3/64"),
}
BLOCKS = {
    "a": ("10.66.0.0/26", "fd66::/122"),
    "b": ("10.66.0.64/26", "fd66::40/122"),
    "c": ("10.66.0.128/26", "fd66::80/122"),
}
TUNNELS = {"a": ("10.66.0.0", "fd66::"), "b": ("10.66.0.64", "fd66::40"), "c": ("10.66.0.128", "fd66::80")}
WORKLOADS = {"a": ("10.66.0.5", "fd66::5"), "b": ("10.66.0.69", "fd66::45"), "c": ("10.66.0.133", "fd66::85")}


@pytest.fixture
async def lab(namespace: Namespace, workloads: Workloads, tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab_in(namespace, workloads, tmp_path) as made:
        namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        made.lan("lan0", "10.0.0.254/24", "fd00::fe/64")
        made.lan("lan1", "10.0.1.254/24", "fd01::fe/64")
        for name, addresses in UNDERLAY.items():
            tunnel = dict(zip(("ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr"), TUNNELS[name], strict=True))
            made.tell(node(name, *addresses, spec=tunnel, **OURS))
            lan, four, six = ("lan1", "10.0.1.254", "fd01::fe") if name == "c" else ("lan0", "10.0.0.254", "fd00::fe")
            await made.host(name, *addresses, lan=lan, gateways=(four, six), setting="direct")
        for name, blocks in BLOCKS.items():
            made.claim(name, *blocks)
        yield made


async def start(lab: Lab, mode: str) -> dict[str, Namespace]:
    lab.tell(pool("pool4", "10.66.0.0/16", vxlanMode=mode), pool("pool6", "fd66::/48", vxlanMode=mode))
    await lab.sync()
    return {name: lab.workload(lab.hosts[name], f"{four}/32", f"{six}/128") for name, (four, six) in WORKLOADS.items()}


def device(host: Host, name: str = "vxlan.calico") -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(host.namespace.run("ip", "-j", "-d", "addr", "show", "dev", name))
    return found[0]


async def test_workloads_reach_each_other_through_the_tunnel_in_both_families(lab: Lab) -> None:
    workload = await start(lab, "Always")
    for target in ("b", "c"):
        for address in WORKLOADS[target]:
            workload["a"].run("ping", "-c1", "-W2", address)
    a = lab.hosts["a"]
    assert "via 10.66.0.64 dev vxlan.calico proto 80 onlink mtu 1450" in a.route("10.66.0.64/26")
    assert "dev vxlan-v6.calico" in a.route("fd66::40/122")
    assert "mtu 1430" in a.route("fd66::40/122")


async def test_the_tunnels_mtu_is_enforced(lab: Lab) -> None:
    workload = await start(lab, "Always")
    for size in ("1422", "1423"):
        fits = workload["a"].succeeds("ping", "-c1", "-W2", "-M", "do", "-s", size, WORKLOADS["c"][0])
        assert fits is (size == "1422")
    assert workload["a"].succeeds("ping", "-c1", "-W2", "-M", "do", "-s", "1382", WORKLOADS["c"][1])


async def test_hosts_reach_remote_workloads_from_their_tunnel_address(lab: Lab) -> None:
    await start(lab, "Always")
    a = lab.hosts["a"].namespace
    a.run("ping", "-c1", "-W2", WORKLOADS["c"][0])
    assert "src 10.66.0.0 " in a.run("ip", "route", "get", WORKLOADS["c"][0])


async def test_cross_subnet_is_direct_on_the_same_subnet_only(lab: Lab) -> None:
    workload = await start(lab, "CrossSubnet")
    a = lab.hosts["a"]
    assert "via 10.0.0.2 dev eth0" in a.route("10.66.0.64/26")
    assert "via fd00::2 dev eth0" in a.route("fd66::40/122")
    assert "dev vxlan.calico" in a.route("10.66.0.128/26")
    for target in ("b", "c"):
        for address in WORKLOADS[target]:
            workload["a"].run("ping", "-c1", "-W2", address)
    assert workload["a"].succeeds("ping", "-c1", "-W2", "-M", "do", "-s", "1472", WORKLOADS["b"][0])


async def test_the_device_is_as_calicos(lab: Lab) -> None:
    await start(lab, "Always")
    found = device(lab.hosts["a"])
    data = found["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["learning"], data["local"], data["link"]) == (
        4096, 4789, False, "10.0.0.1", "eth0",
    )  # fmt: skip
    assert found["address"] == "66:86:f7:e4:37:fa"
    assert found["mtu"] == 1450
    assert [(entry["local"], entry["prefixlen"]) for entry in found["addr_info"] if entry["scope"] == "global"] == [
        ("10.66.0.0", 32)
    ]
    fdb = lab.hosts["a"].namespace.run("bridge", "fdb", "show", "dev", "vxlan.calico")
    assert "dst 10.0.0.2 self permanent" in fdb
    assert "dst 10.0.1.3 self permanent" in fdb


async def test_a_restart_finds_everything_and_writes_nothing(lab: Lab) -> None:
    await start(lab, "Always")
    a = lab.hosts["a"]
    before = device(a)["ifindex"]
    with a.namespace_monitor("link", "address", "neigh", "route") as monitor:
        a.vxlan.stale = a.routes.stale = True
        a.vxlan._applied = None
        await a.sync()
        a.namespace.run("ip", "route", "add", "192.0.2.1", "dev", "lo")  # a mark
    assert any("192.0.2.1" in line for line in monitor.lines)
    written = [line for line in monitor.lines if "vxlan" in line]
    assert written == []
    assert device(a)["ifindex"] == before


async def test_what_others_changed_is_made_right(lab: Lab) -> None:
    workload = await start(lab, "Always")
    a = lab.hosts["a"]
    a.namespace.run("ip", "addr", "add", "192.0.2.9/24", "dev", "vxlan.calico")
    a.namespace.run("bridge", "fdb", "add", "66:00:00:00:00:01", "dst", "10.0.0.9", "dev", "vxlan.calico")
    a.namespace.run("ip", "neigh", "flush", "dev", "vxlan.calico", "nud", "permanent")
    a.namespace.run("ip", "link", "set", "vxlan.calico", "mtu", "1400")
    a.vxlan.stale = True
    await a.sync()
    assert "192.0.2.9" not in a.namespace.run("ip", "addr", "show", "dev", "vxlan.calico")
    assert "66:00:00:00:00:01" not in a.namespace.run("bridge", "fdb", "show", "dev", "vxlan.calico")
    assert device(a)["mtu"] == 1450
    workload["a"].run("ping", "-c1", "-W2", WORKLOADS["c"][0])


async def test_a_device_that_differs_in_its_nature_is_made_anew(lab: Lab) -> None:
    a = lab.hosts["a"]
    a.namespace.run("ip", "link", "add", "vxlan.calico", "type", "vxlan", "id", "7", "dstport", "8472", "dev", "eth0")
    workload = await start(lab, "Always")
    assert device(a)["linkinfo"]["info_data"]["id"] == 4096
    workload["a"].run("ping", "-c1", "-W2", WORKLOADS["c"][0])


async def test_a_node_that_moves_or_leaves(lab: Lab) -> None:
    workload = await start(lab, "Always")
    c = lab.hosts["c"]
    c.namespace.run("ip", "addr", "del", "10.0.1.3/24", "dev", "eth0")
    c.namespace.run("ip", "addr", "add", "10.0.1.33/24", "dev", "eth0")
    c.namespace.run("ip", "route", "replace", "default", "via", "10.0.1.254")
    moved = node("c", "10.0.1.33/24", "fd01::3/64", spec={"ipv4VXLANTunnelAddr": "10.66.0.128"}, **OURS)
    lab.tell(moved)
    await lab.sync()
    workload["a"].run("ping", "-c1", "-W2", WORKLOADS["c"][0])
    lab.forget(moved)
    a = lab.hosts["a"]
    await a.sync()
    assert a.route("10.66.0.128/26") == ""
    assert "10.0.1.33" not in a.namespace.run("bridge", "fdb", "show", "dev", "vxlan.calico")
    assert "10.66.0.128" not in a.namespace.run("ip", "neigh", "show", "dev", "vxlan.calico", "nud", "permanent")


async def test_without_vxlan_pools_the_devices_go(lab: Lab) -> None:
    await start(lab, "Always")
    a = lab.hosts["a"]
    lab.tell(pool("pool4", "10.66.0.0/16"), pool("pool6", "fd66::/48"))
    await a.sync()
    assert not a.namespace.succeeds("ip", "link", "show", "vxlan.calico")
    assert not a.namespace.succeeds("ip", "link", "show", "vxlan-v6.calico")
    assert "via 10.0.0.2 dev eth0" in a.route("10.66.0.64/26")
    assert await a.vxlan.apply(VxlanState()) == []


async def test_a_refused_device_is_a_failure_with_a_name_and_is_tried_again(lab: Lab) -> None:
    a = lab.hosts["a"]
    a.namespace.run("ip", "link", "add", "other", "type", "vxlan", "id", "4096", "dstport", "4789", "dev", "eth0",
                    "local", "10.0.0.1")  # fmt: skip
    lab.tell(pool("pool4", "10.66.0.0/16", vxlanMode="Always"))
    a.links.poll()
    state = a.router
    with pytest.raises(AssertionError):
        await a.sync()
    (failure,) = await a.vxlan.apply(state.desired().vxlan)
    assert failure.interface == "vxlan.calico"
    assert "cannot be set up" in failure.reason
    a.namespace.run("ip", "link", "del", "other")
    assert await a.vxlan.apply(state.desired().vxlan) == []


async def test_a_pool_that_changes_its_mode_is_rerouted_at_once_in_both_families(lab: Lab) -> None:
    workload = await start(lab, "CrossSubnet")
    for mode, way in (
        ("Always", "dev vxlan-v6.calico"),
        ("CrossSubnet", "dev eth0"),
        ("Always", "dev vxlan-v6.calico"),
    ):
        lab.tell(pool("pool4", "10.66.0.0/16", vxlanMode=mode), pool("pool6", "fd66::/48", vxlanMode=mode))
        await lab.sync()
        assert way in lab.hosts["a"].route("fd66::40/122")
        for address in WORKLOADS["b"]:
            workload["a"].run("ping", "-c1", "-W2", address)

"""Hosts on one LAN that reach each other by routes from the datastore alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Namespace, Workloads
from tests.system.routing_lab import Lab, lab_in
from tests.unit.routing_objects import endpoint, node, pool

OURS: dict[str, Any] = {"annotations": {"calico-libnetwork/routes": "direct"}}
ADDRESSES = {name: (f"10.0.0.{number}/24", f"fd00::{number}/64") for number, name in enumerate("abc", 1)}


@pytest.fixture
async def lab(namespace: Namespace, workloads: Workloads, tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab_in(namespace, workloads, tmp_path) as made:
        made.lan("lan")
        made.tell(pool("pool4", "10.66.0.0/16"), pool("pool6", "fd66::/48"))
        for name, addresses in ADDRESSES.items():
            made.tell(node(name, *addresses, **OURS))
            await made.host(name, *addresses)
        yield made


async def test_workloads_of_all_hosts_reach_each_other_without_bird(lab: Lab) -> None:
    blocks = {
        "a": ("10.66.0.0/26", "fd66::/122"),
        "b": ("10.66.0.64/26", "fd66::40/122"),
        "c": ("10.66.0.128/26", "fd66::80/122"),
    }
    for name, owned in blocks.items():
        lab.claim(name, *owned)
    await lab.sync()
    one = lab.workload(lab.hosts["a"], "10.66.0.1/32", "fd66::1/128")
    lab.workload(lab.hosts["b"], "10.66.0.65/32", "fd66::41/128")
    lab.workload(lab.hosts["c"], "10.66.0.129/32", "fd66::81/128")
    assert all(host.bird.pid is None for host in lab.hosts.values())
    assert "via 10.0.0.2 dev eth0 proto 80 onlink" in lab.hosts["a"].route("10.66.0.64/26")
    assert "blackhole" in lab.hosts["a"].route("10.66.0.0/26")
    for target in ("10.66.0.65", "10.66.0.129", "fd66::41", "fd66::81"):
        one.run("ping", "-c1", "-W2", target)


async def test_a_new_block_is_a_route_at_once_and_a_resync_writes_nothing(lab: Lab) -> None:
    await lab.sync()
    a = lab.hosts["a"]
    lab.claim("b", "10.66.0.64/26")
    begin = time.monotonic()
    await a.sync()
    print(f"block event to kernel route: {(time.monotonic() - begin) * 1e3:.1f} ms")
    assert a.route("10.66.0.64/26")
    with a.namespace_monitor() as monitor:
        a.routes.stale = a.vxlan.stale = True
        await a.sync()
    assert monitor.lines == []
    lab.release("b", "10.66.0.64/26")
    await a.sync()
    assert a.route("10.66.0.64/26") == ""


async def test_borrowed_addresses_beat_the_block_they_lie_in(lab: Lab) -> None:
    lab.claim("b", "10.66.0.64/26")
    lab.tell(endpoint("w", "c", "10.66.0.70/32"))
    await lab.sync()
    one = lab.workload(lab.hosts["a"], "10.66.0.1/32")
    lab.workload(lab.hosts["c"], "10.66.0.70/32")
    lab.claim("a", "10.66.0.0/26")
    await lab.sync()
    one.run("ping", "-c1", "-W2", "10.66.0.70")
    assert "via 10.0.0.3" in lab.hosts["b"].route("10.66.0.70")


async def test_a_node_that_changes_its_address_is_found_again(lab: Lab) -> None:
    lab.claim("b", "10.66.0.64/26")
    await lab.sync()
    b = lab.hosts["b"]
    b.namespace.run("ip", "addr", "del", "10.0.0.2/24", "dev", "eth0")
    b.namespace.run("ip", "addr", "add", "10.0.0.77/24", "dev", "eth0")
    lab.tell(node("b", "10.0.0.77/24", **OURS))
    await lab.sync()
    assert "via 10.0.0.77" in lab.hosts["a"].route("10.66.0.64/26")


async def test_a_pool_that_needs_ipip_is_refused_not_sent_unencapsulated(lab: Lab) -> None:
    lab.tell(pool("tunnel", "10.67.0.0/16", ipipMode="Always"))
    lab.claim("b", "10.67.0.0/26")
    await lab.sync()
    a = lab.hosts["a"]
    assert a.route("10.67.0.0/26").startswith("unreachable 10.67.0.0/26 proto 80")
    assert any(finding.subject == "IPPool(tunnel)" for finding in a.router.desired().findings)
    lab.tell(pool("tunnel", "10.67.0.0/16"))
    await lab.sync()
    assert "via 10.0.0.2" in a.route("10.67.0.0/26")

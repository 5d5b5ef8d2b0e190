"""What the agent calls: uplinks, passwords, tunnels and BIRD from one router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.routing import ipip
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.host_routing import HostRouting
from calico_libnetwork.routing.ipip import IpipDevice
from calico_libnetwork.routing.router import Router
from tests.system.conftest import Namespace
from tests.system.routing_lab import until
from tests.unit.routing_objects import node, pool, resource, tell

OURS: dict[str, Any] = {"annotations": {"calico-libnetwork/routes": "direct"}}


@pytest.fixture
async def links(namespace: Namespace, kernel: Kernel) -> AsyncIterator[Links]:
    namespace.run("ip", "link", "add", "eth0", "mtu", "1400", "type", "bridge")
    namespace.run("ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
    namespace.run("ip", "link", "set", "eth0", "up")
    async with Links(kernel, lambda _changes: None) as made:
        yield made


async def test_everything_from_the_resources(
    namespace: Namespace, kernel: Kernel, links: Links, tmp_path: Path
) -> None:
    router = Router(node="a")
    password = {"secretKeyRef": {"name": "s", "key": "k"}}
    tell(
        router,
        node("a", "10.0.0.1/24", spec={"ipv4VXLANTunnelAddr": "10.66.0.1"}, **OURS),
        pool("pool4", "10.66.0.0/16", vxlanMode="Always"),
        resource("BGPPeer", "tor", {"peerIP": "10.0.0.254", "asNumber": 65000, "password": password}),
    )
    secrets = tmp_path / "secrets"
    (secrets / "s").mkdir(parents=True)
    async with Bird(tmp_path / "bird", kernel) as bird:
        running = asyncio.create_task(bird.run())
        routing = HostRouting(router, kernel, links=links, bird=bird, secrets_directory=secrets)
        found, failures = await routing.prepare()
        assert failures == []
        assert found.workload_mtu == 1350
        assert "10.66.0.1/32" in namespace.run("ip", "addr", "show", "dev", "vxlan.calico")
        assert any("password in secret s, key k" in finding.text for finding in found.findings)
        (secrets / "s" / "k").write_text("secret\n")
        routing.distrust()
        found, _ = await routing.prepare()
        assert 'password "secret";' in (found.bird or "")
        await routing.conclude(found)

        async def configured() -> bool:
            status = await bird.status()
            return status is not None and bool(status.sessions)

        await until(configured)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_kernel_without_ipip_is_found_out(
    namespace: Namespace, kernel: Kernel, links: Links, tmp_path: Path
) -> None:
    if namespace.succeeds("ip", "link", "add", "probe", "type", "ipip", "local", "10.0.0.1", "remote", "10.0.0.2"):
        expected = True
        namespace.run("ip", "link", "del", "probe")
    else:
        expected = False
    router = Router(node="a")
    tell(
        router,
        node("a", "10.0.0.1/24", **OURS),
        node("b", "10.0.0.2/24", **OURS),
        pool("p", "10.66.0.0/16", ipipMode="Always"),
    )
    routing = HostRouting(router, kernel, links=links, bird=Bird(tmp_path, kernel))
    found, failures = await routing.prepare()
    assert failures == []
    assert ("ipip4" in found.tunnels_wanted) is expected
    assert await kernel.run(ipip.supported) is expected


async def test_the_ipip_device_gets_its_address_and_mtu(namespace: Namespace, kernel: Kernel) -> None:
    """A bridge of that name stands in: nothing here depends on the kind."""
    namespace.run("ip", "link", "add", "tunl0", "type", "bridge")
    namespace.run("ip", "addr", "add", "192.0.2.1/24", "dev", "tunl0")
    wanted = IpipDevice(IPv4Address("10.66.0.1"), 1380)
    assert await kernel.run(ipip.ensure, wanted) == []
    shown = namespace.run("ip", "addr", "show", "dev", "tunl0")
    assert "10.66.0.1/32" in shown
    assert "192.0.2.1" not in shown
    assert "mtu 1380" in shown
    assert ",UP" in shown
    namespace.run("ip", "link", "del", "tunl0")
    (failure,) = await kernel.run(ipip.ensure, wanted)
    assert failure.interface == "tunl0"

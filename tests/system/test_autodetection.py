"""The address that the kernel would speak from to a destination, among several of this host's."""

from __future__ import annotations

from calico_libnetwork.agent.own_node import detect
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import Links
from calico_libnetwork.routing.cluster import Family
from tests.system.conftest import Namespace


async def test_can_reach_takes_the_address_towards_the_destination(namespace: Namespace, kernel: Kernel) -> None:
    for name, addresses in (("up0", ("10.0.0.1/24", "fd01::1/64")), ("up1", ("10.1.0.1/24", "fd02::1/64"))):
        namespace.run("ip", "link", "add", name, "type", "bridge")
        for address in addresses:
            namespace.run("ip", "address", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))
        namespace.run("ip", "link", "set", name, "up")
    namespace.run("ip", "route", "add", "198.51.100.0/24", "via", "10.1.0.254")
    namespace.run("ip", "-6", "route", "add", "fd99::/64", "via", "fd02::fe")
    async with Links(kernel, lambda _changes: None) as links:
        methods: dict[Family, str] = {4: "can-reach=198.51.100.7", 6: "can-reach=fd99::7"}
        assert {version: str(found) for version, found in (await detect(links, methods)).items()} == {
            4: "10.1.0.1/24",
            6: "fd02::1/64",
        }
        namespace.run("ip", "route", "del", "198.51.100.0/24")
        assert set(await detect(links, methods)) == {6}

"""Hosts on one or two subnets, each with a router, a BIRD and the kernel drivers, fed from one set of resources."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calico_libnetwork.dataplane.addresses import first_found
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.routes import RouteKey, Routes
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.bird_control import Protocol
from calico_libnetwork.routing.cluster import FAMILIES
from calico_libnetwork.routing.remote_routes import Uplink
from calico_libnetwork.routing.router import Router
from calico_libnetwork.routing.vxlan import Vxlan
from tests.system.conftest import Namespace, Workloads, enter
from tests.unit.routing_objects import claim, key_of, release

# a link-local address is usable at once, so a test need not wait for the kernel to make sure that it is unique
_NO_DAD = ("net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")


@contextmanager
def inside(namespace: Namespace, home: Namespace) -> Iterator[None]:
    enter(namespace.descriptor)
    try:
        yield
    finally:
        enter(home.descriptor)


@dataclass
class Monitor:
    """Every route change of a host, from its making to ``end``."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.stdout is not None
            self.lines = self.process.stdout.read().splitlines()


@dataclass
class Host:
    name: str
    namespace: Namespace
    router: Router
    bird: Bird
    routes: Routes
    vxlan: Vxlan
    kernel: Kernel
    links: Links
    wanted: set[RouteKey] = field(default_factory=set)

    async def sync(self) -> None:
        """What the agent does after a change, in the agent's order."""
        self.links.poll()
        found = {family: first_found(self.links.by_name.values(), self.links.addresses, family) for family in FAMILIES}
        self.router.set_uplinks(
            {family: Uplink(up.interface, up.mtu) for family, up in found.items() if up is not None}
        )
        routing = self.router.desired()
        assert await self.vxlan.apply(routing.vxlan) == []
        self.links.poll()
        wanted = {route.key: route for route in routing.routes.values()}
        for key in self.wanted - wanted.keys():
            self.routes.unwant(key)
        for route in wanted.values():
            self.routes.want(route)
        self.wanted = set(wanted)
        assert await self.routes.apply() == []
        await self.vxlan.sweep(routing.vxlan)
        await self.bird.configure(routing.bird)

    def route(self, destination: str) -> str:
        """As ip prints it, "" for none."""
        family = "-6" if ":" in destination else "-4"
        return " ".join(self.namespace.run("ip", family, "route", "show", "exact", destination).split())

    async def sessions(self) -> dict[str, Protocol]:
        status = await self.bird.status()
        return {} if status is None else {session.name: session for session in status.sessions}

    async def established(self, *names: str) -> None:
        async def all_up() -> bool:
            found = await self.sessions()
            return all(name in found and found[name].established for name in names)

        await until(all_up)

    async def routed(self, destination: str, *words: str) -> float:
        """Seconds until a route to it shows all ``words``."""
        return await until(lambda: bool(route := self.route(destination)) and all(word in route for word in words))

    async def unrouted(self, destination: str) -> float:
        return await until(lambda: not self.route(destination))

    @contextmanager
    def namespace_monitor(self, *objects: str) -> Iterator[Monitor]:
        monitor = Monitor(self.namespace.start("ip", "monitor", *(objects or ("route",))))
        time.sleep(0.2)
        yield monitor
        monitor.end()

    def claim(self, block: str) -> None:
        """The kernel's part alone, as fast as it gets."""
        self.namespace.run("ip", *(("-6",) if ":" in block else ()), "route", "add", "blackhole", block, "proto", "80")


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0) -> float:
    """How long it took; a test's own patience, with a poll of two milliseconds."""
    begin = time.monotonic()
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return time.monotonic() - begin
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"not within {seconds} s")
        await asyncio.sleep(0.002)


@dataclass
class Lab:
    """The test's own namespace is the switch, and between subnets the router."""

    home: Namespace
    workloads: Workloads
    directory: Path
    stack: AsyncExitStack
    program: str
    hosts: dict[str, Host] = field(default_factory=dict)
    resources: dict[Any, Any] = field(default_factory=dict)

    def lan(self, name: str, *addresses: str) -> None:
        self.home.run("sysctl", "-qw", *_NO_DAD)
        self.home.run("ip", "link", "add", name, "type", "bridge", "mcast_snooping", "0")
        for address in addresses:
            self.home.run("ip", "addr", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))
        self.home.run("ip", "link", "set", name, "up")

    async def host(
        self, name: str, *addresses: str, lan: str = "lan", gateways: tuple[str, ...] = (), **router: Any
    ) -> Host:
        namespace = self.workloads.namespace()
        namespace.run("sysctl", "-qw", *_NO_DAD)
        self.home.run(
            "ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", namespace.path
        )
        self.home.run("ip", "link", "set", f"to-{name}", "master", lan, "up")
        for address in addresses:
            namespace.run("ip", "addr", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
        namespace.run("ip", "link", "set", "eth0", "up")
        for gateway in gateways:
            namespace.run("ip", "route", "add", "default", "via", gateway)
        namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        with inside(namespace, self.home):
            kernel = await self.stack.enter_async_context(Kernel())
            routes: list[Routes] = []

            def on_change(changes: LinkChanges) -> None:
                """A reading would take the workloads' routes, made by hand here, for left over."""
                for driver in routes:
                    driver.links_changed(replace(changes, routes=False))

            links = await self.stack.enter_async_context(Links(kernel, on_change))
        routes.append(Routes(kernel, links))
        bird = self.bird(name, namespace, kernel)
        await self.stack.enter_async_context(bird)
        made = Host(
            name=name,
            namespace=namespace,
            router=Router(node=name, **router),
            bird=bird,
            routes=routes[0],
            vxlan=Vxlan(kernel, links),
            kernel=kernel,
            links=links,
        )
        self.hosts[name] = made
        for key, resource in self.resources.items():
            made.router.update(key, resource)
        return made

    def bird(self, directory: str, namespace: Namespace, kernel: Kernel) -> Bird:
        return Bird(
            self.directory / directory,
            kernel,
            command=("nsenter", f"--net={namespace.path}", self.program),
            namespace=Path(namespace.path),
        )

    def tell(self, *resources: Any) -> None:
        for resource in resources:
            self.resources[key_of(resource)] = resource
            for host in self.hosts.values():
                host.router.update(key_of(resource), resource)

    def forget(self, resource: Any) -> None:
        del self.resources[key_of(resource)]
        for host in self.hosts.values():
            host.router.update(key_of(resource), None)

    def claim(self, node: str, *blocks: str) -> None:
        for host in self.hosts.values():
            claim(host.router, node, *blocks)

    def release(self, node: str, *blocks: str) -> None:
        for host in self.hosts.values():
            release(host.router, node, *blocks)

    async def sync(self) -> None:
        for host in self.hosts.values():
            await host.sync()

    def workload(self, host: Host, *addresses: str) -> Namespace:
        """Behind a veth of the host, reached by the host's own routes."""
        index = len(self.workloads.made)
        name = f"cali{index}"
        host.namespace.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"temp{index}")
        for setting in ("ipv4.conf.{}.proxy_arp=1", "ipv4.neigh.{}.proxy_delay=0", "ipv6.conf.{}.accept_dad=0"):
            host.namespace.run("sysctl", "-qw", f"net.{setting.format(name)}")
        host.namespace.run("ip", "link", "set", name, "address", "ee:ee:ee:ee:ee:ee", "up")
        made = self.workloads.namespace()
        made.run("sysctl", "-qw", *_NO_DAD)
        host.namespace.run("ip", "link", "set", f"temp{index}", "netns", made.path)
        made.run("ip", "link", "set", f"temp{index}", "name", "cali0")
        for address in addresses:
            made.run("ip", "addr", "add", address, "dev", "cali0", *(("nodad",) if ":" in address else ()))
        made.run("ip", "link", "set", "cali0", "up")
        for address in addresses:
            plain = address.split("/")[0]
            family, gateway = ("-6", "fe80::ecee:eeff:feee:eeee") if ":" in address else ("-4", "169.254.1.1")
            made.run("ip", family, "route", "add", gateway, "dev", "cali0")
            made.run("ip", family, "route", "add", "default", "via", gateway, "dev", "cali0", "src", plain)
            host.namespace.run("ip", family, "route", "add", plain, "dev", name, "proto", "3", "metric", "1024")
        host.namespace.run("ip", "route", "replace", "169.254.1.1", "dev", "lo")
        return made


@asynccontextmanager
async def lab_in(
    namespace: Namespace, workloads: Workloads, directory: Path, *, bird: str = "bird"
) -> AsyncIterator[Lab]:
    """``bird``: the program."""
    async with AsyncExitStack() as stack:
        yield Lab(namespace, workloads, directory, stack, bird)

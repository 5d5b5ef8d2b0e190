"""Several hosts with one etcd, on one subnet or with a router between two, and pings whose losses are known.

Hosts are cabled to the lab's fabric; those behind the router have a bridge of their own there, and the router has a
foot on both. The router routes between the two subnets and knows nothing of containers, unless it is given BIRD.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from tests.e2e.etcd import ADDRESS, etcd_in
from tests.e2e.lab import Docker, Host, Lab, dockers, tail
from tests.e2e.machine import Machine, Process, wait_for
from tests.etcd_server import EtcdServer

SOON = 5.0
"""Seconds within which all hosts follow a change."""
INTERVAL = 0.02
ROUTER, ROUTER6 = "172.30.0.2", "fd00:30::2"
BEHIND, BEHIND6 = "172.30.1", "fd00:31:"
_ANSWER = re.compile(r"bytes from .*icmp_seq=(\d+)")

_ROUTER = f"""
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip address add {ROUTER}/24 dev eth0
ip address add {ROUTER6}/64 dev eth0 nodad
ip address add {BEHIND}.1/24 dev eth1
ip address add {BEHIND6}:1/64 dev eth1 nodad
ip route add default via {ADDRESS}
ip -6 route add default via fd00:30::1
"""

_FABRIC = f"""
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link add behind type bridge
ip link set behind up
ip link set router0 master fabric
ip link set router1 master behind
ip route add {BEHIND}.0/24 via {ROUTER}
ip -6 route add {BEHIND6}:/64 via {ROUTER6}
"""

_NO_ROUTER = f"""
ip link delete behind
ip route delete {BEHIND}.0/24
ip -6 route delete {BEHIND6}:/64
"""

_MOVE_BEHIND = f"""
ip address flush dev eth0 scope global
ip address add {BEHIND}.$1/24 dev eth0
ip address add {BEHIND6}:$1/64 dev eth0 nodad
ip route replace default via {BEHIND}.1
ip -6 route replace default via {BEHIND6}:1
"""

_TO_BEHIND = f"""
ip route add {BEHIND}.0/24 via {ROUTER}
ip -6 route add {BEHIND6}:/64 via {ROUTER6}
"""


def release(wanted: str) -> Docker:
    return next(docker for docker in dockers() if docker.version.startswith(wanted))


@dataclass
class Cluster:
    """Hosts that share ``etcd``; ``environment`` is what all plugins have in common."""

    lab: Lab
    etcd: EtcdServer
    environment: dict[str, str] = field(default_factory=dict)
    hosts: list[Host] = field(default_factory=list)
    router: Machine | None = None

    def join(self, docker: Docker, *, store: bool = False, **environment: str) -> Host:
        """A further host on the first subnet, its plugin running; ``store``: etcd is Docker's cluster store too."""
        host = self.lab.host(docker)
        if store:
            host.dockerd.stop()
            options = ("--cluster-store", self.etcd.endpoint.replace("http", "etcd"))
            host.dockerd.start(*options, "--cluster-advertise", f"{host.address}:2376")
        if self.router is not None:
            host.machine.run("sh", "-ec", _TO_BEHIND)
        return self._start(host, **environment)

    def join_behind(self, docker: Docker, **environment: str) -> Host:
        """The same on the second subnet."""
        host = self.lab.host(docker)
        self.lab.fabric.run("ip", "link", "set", host.name, "master", "behind")
        host.machine.run("sh", "-ec", _MOVE_BEHIND, "sh", host.address.rpartition(".")[2])
        return self._start(host, **environment)

    def leave(self, host: Host) -> None:
        """Power off: no word to anybody."""
        self.hosts.remove(host)
        self.lab.remove(host)

    def _start(self, host: Host, **environment: str) -> Host:
        host.etcd = self.etcd
        host.plugin.start(**self.environment, **environment)
        self.hosts.append(host)
        wait_for("the agent to be at work", lambda: "ready" in host.plugin.log.read_text())
        return host

    def everywhere(self, what: str, condition: Callable[[Host], object], *, seconds: float = SOON) -> None:
        for host in self.hosts:
            found = partial(own_traces, host)
            wait_for(f"{what} on {host.name}", partial(condition, host), seconds=seconds, found=found)

    def network(self, name: str, *options: str) -> None:
        """Created on the first host, there on all."""
        self.hosts[0].network(name, *options)
        self.everywhere(name, lambda host: name in networks(host))

    def apply(self, *documents: Mapping[str, object]) -> None:
        self.hosts[0].calico("apply", "-f", "-", text=json.dumps(list(documents)))

    def get(self, kind: str, name: str) -> dict[str, object]:
        return dict(json.loads(self.hosts[0].calico("get", kind, name, "--output", "json")))

    def restart(self, **environment: str) -> None:
        """All plugins with another environment, as after an edit of their configuration."""
        self.environment = {"ETCD_ENDPOINTS": self.etcd.endpoint, **environment}
        for host in self.hosts:
            host.plugin.stop()
            host.plugin.start(**self.environment)
        self.everywhere("the agent at work", lambda host: "ready" in tail(host.plugin.log))

    def clear(self) -> None:
        """Removes what a test has made; fails if anything of it is left on a host."""
        for host in self.hosts:
            containers = host.docker("ps", "--all", "--quiet").split()
            if containers:
                host.docker("rm", "--force", *containers, seconds=300)
        for host in self.hosts:
            for name in networks(host):
                host.machine.try_run("docker", "network", "rm", name)
        self.everywhere("no network", lambda host: not networks(host), seconds=15)
        self.everywhere("no trace of a container", lambda host: not own_traces(host), seconds=10)


def networks(host: Host) -> list[str]:
    return host.docker("network", "ls", "--filter", "type=custom", "--format", "{{.Name}}").split()


def own_traces(host: Host) -> list[str]:
    """Signs of containers, of which the tunnels' own handles are none."""
    return [trace for trace in host.traces() if "tunnel-addr" not in trace and "vxlan" not in trace]


@contextmanager
def a_cluster(
    lab: Lab, *, with_router: bool = False, options: Sequence[str] = (), **environment: str
) -> Iterator[Cluster]:
    with etcd_in(lab, *options) as etcd:
        cluster = Cluster(lab, etcd, {"ETCD_ENDPOINTS": etcd.endpoint, **environment})
        if with_router:
            cluster.router = _router(lab)
        try:
            yield cluster
        finally:
            for host in list(cluster.hosts):
                cluster.leave(host)
            if cluster.router is not None:
                cluster.router.close()
                lab.fabric.run("sh", "-ec", _NO_ROUTER)


def _router(lab: Lab) -> Machine:
    number = len(list(lab.directory.glob("router*")))
    router = Machine("router", lab.directory / f"router{number}")
    lab.fabric.connect(router, "router0", "eth0")
    lab.fabric.connect(router, "router1", "eth1")
    router.run("sh", "-ec", _ROUTER)
    lab.fabric.run("sh", "-ec", _FABRIC)
    return router


@contextmanager
def partitioned(cluster: Cluster, host: Host) -> Iterator[None]:
    """The host's cable ends in a switch that forwards nothing; its own link stays up."""
    cluster.lab.fabric.run("ip", "link", "set", host.name, "nomaster")
    try:
        yield
    finally:
        cluster.lab.fabric.run("ip", "link", "set", host.name, "master", "fabric")


@dataclass
class Pings:
    """Fifty a second, from a container or a host, until ``stop``."""

    host: Host
    process: Process
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, host: Host, container: str, target: str) -> Pings:
        pid = host.inspect(container, "{{.State.Pid}}")
        log = host.machine.directory / f"ping-{container}-{time.monotonic_ns()}.log"
        command = ("nsenter", "-t", pid, "-n", "ping", "-n", "-i", f"{INTERVAL}", target)
        pings = cls(host, host.machine.start(*command, log=log))
        wait_for("the first ping to be answered", pings._answered, found=lambda: tail(log))
        return pings

    def lost(self) -> list[tuple[int, int]]:
        """Runs of lost pings up to the last answered one: number of the first, and how many."""
        runs: list[tuple[int, int]] = []
        expected = min(self._answered())
        for number in sorted(self._answered()):
            if number > expected:
                runs.append((expected, number - expected))
            expected = number + 1
        return runs

    def gap(self) -> float:
        """The longest time without an answer, in seconds; 0 when none was lost."""
        return max((count for _, count in self.lost()), default=0) * INTERVAL

    def stop(self) -> float:
        """The longest gap; waits until pings are answered again."""
        sent = time.monotonic() - self._started
        wait_for("pings to be answered", lambda: max(self._answered()) * INTERVAL > sent * 0.5, seconds=30)
        before = max(self._answered())
        wait_for("more pings to be answered", lambda: max(self._answered()) > before + 3, seconds=30)
        self.process.stop(signal.SIGINT)
        return self.gap()

    def _answered(self) -> set[int]:
        return {int(number) for number in _ANSWER.findall(self.process.log.read_text())}


@contextmanager
def pinging(*pairs: tuple[Host, str, str], allow: float = 0.0) -> Iterator[list[Pings]]:
    """Pings run all along; none of them may be without an answer for longer than ``allow`` seconds."""
    running = [Pings.start(*pair) for pair in pairs]
    try:
        yield running
        gaps = [each.stop() for each in running]
        assert max(gaps) <= allow, [(each.host.name, each.lost()) for each in running]
    finally:
        for each in running:
            each.process.stop(signal.SIGKILL)


def reaches(host: Host, container: str, *targets: str) -> Callable[[], bool]:
    return lambda: all(host.pings(container, target) for target in targets)


def both_addresses(host: Host, container: str, network: str) -> tuple[str, str]:
    return host.ipv4(container, network), host.ipv6(container, network)


def routes(host: Host, *options: str) -> str:
    return host.machine.run("ip", *options, "route")


def pool(cidr: str, name: str, **spec: object) -> dict[str, object]:
    body = {"cidr": cidr, "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": False, **spec}
    return {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name}, "spec": body}

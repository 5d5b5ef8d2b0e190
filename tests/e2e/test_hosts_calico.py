"""Two hosts with one etcd, one with the real Felix and one with our agent, and the real calicoctl at both.

Collected only where CALICO_LAB_PROGRAMS says where Calico's programs are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.calico_node import CalicoNode
from tests.e2e.etcd import etcd_in
from tests.e2e.lab import COMMAND, Host, Lab
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import SOON, networks, pinging, release
from tests.e2e.test_policy import PROFILES, by_role, profile
from tests.e2e.traffic import Flow, Traffic
from tests.etcd_server import EtcdServer

KINDS = (
    "bgpconfigurations", "bgpfilters", "bgppeers", "clusterinformations", "globalnetworkpolicies", "globalnetworksets",
    "hostendpoints", "ippools", "ipreservations", "networkpolicies", "networksets", "nodes", "workloadendpoints",
)  # fmt: skip
NAMESPACED = ("networkpolicies", "networksets", "workloadendpoints")
NODE = "/calico/resources/v3/projectcalico.org/nodes/"


@dataclass
class Mixed:
    etcd: EtcdServer
    beside: Host
    """Felix programs it."""
    own: Host
    """Our agent programs it."""
    calico: CalicoNode

    def __post_init__(self) -> None:
        first = Traffic(self.beside)
        self.traffic = (first, Traffic(self.own, elsewhere=(first,)))
        first.elsewhere = self.traffic[1:]

    def network(self, *names: str) -> None:
        for name in names:
            self.beside.network(name, "--ipv6")
        wait_for("the networks on the other host", lambda: set(names) <= set(networks(self.own)), seconds=SOON)

    def expect(self, allowed: object) -> None:
        for traffic in self.traffic:
            traffic.expect(allowed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mixed(lab: Lab) -> Iterator[Mixed]:
    with etcd_in(lab) as etcd:
        beside, own = lab.host(release("28.")), lab.host(release("28."))
        beside.etcd = own.etcd = etcd
        calico = CalicoNode(beside, etcd)
        calico.start_up()
        calico.start_felix()
        for host in (beside, own):
            host.plugin.start(ETCD_ENDPOINTS=etcd.endpoint)
        wait_for("the plugin to leave the host to Felix", lambda: "Felix programs" in status(beside))
        let_felix_pass(beside)
        yield Mixed(etcd, beside, own, calico)
        lab.remove(beside)
        lab.remove(own)


def status(host: Host) -> str:
    """Also where it ends with 1, because something is not ready."""
    return host.machine.try_run(str(COMMAND), "status").stdout


def let_felix_pass(host: Host) -> None:
    """By the commands that ``status`` gives."""
    lines = status(host).splitlines()
    obstacles = [line.rpartition("nftables mode: ")[2] for line in lines if "what Felix accepts" in line]
    assert obstacles
    for commands in obstacles:
        host.machine.run("sh", "-ec", commands)
    assert "obstacles    none" in status(host)


@pytest.fixture
def hosts(mixed: Mixed) -> Iterator[Mixed]:
    fresh = Mixed(mixed.etcd, mixed.beside, mixed.own, mixed.calico)
    yield fresh
    for traffic in fresh.traffic:
        traffic.close()
    for host in (mixed.beside, mixed.own):
        host.docker("rm", "--force", *host.docker("ps", "--all", "--quiet").split(), "none")
    for name in networks(mixed.beside):
        mixed.beside.docker("network", "rm", name)
    wait_for("no network on the other host", lambda: not networks(mixed.own), seconds=SOON)


def test_join_waits_for_felix_and_the_first_packet_passes(hosts: Mixed) -> None:
    hosts.network("net1")
    before = len(hosts.beside.plugin.log.read_text())
    hosts.beside.workload("workload-A", "net1")
    for _ in range(5):
        target = hosts.beside.ipv4("workload-A", "net1")
        hosts.beside.docker("run", "--rm", "--net", "net1", "busybox", "ping", "-c", "1", "-W", "1", target)
    calls = hosts.beside.plugin.log.read_text()[before:].splitlines()
    assert not [line for line in calls if "not programmed yet" in line]
    assert len([line for line in calls if "NetworkDriver.Join" in line]) == 6


def test_felix_says_of_an_endpoint_what_we_have_written(hosts: Mixed) -> None:
    hosts.network("net1")
    hosts.beside.workload("workload-A", "net1")
    endpoint = hosts.beside.endpoint("workload-A", "net1")
    name = f"libnetwork libnetwork%2Flibnetwork {endpoint['EndpointID']}"
    file = hosts.beside.machine.root / "run/calico/endpoint-status" / name
    wait_for("the status file", file.exists)
    assert json.loads(file.read_text()) == {
        "ifaceName": f"cali{endpoint['EndpointID'][:11]}",
        "mac": endpoint["MacAddress"],
        "ipv4Nets": [f"{endpoint['IPAddress']}/32"],
        "ipv6Nets": [f"{endpoint['GlobalIPv6Address']}/128"],
    }
    hosts.beside.docker("rm", "--force", "workload-A")
    wait_for("the file to go", lambda: not file.exists(), seconds=SOON)
    assert f"cali{endpoint['EndpointID'][:11]}" not in hosts.beside.machine.run("ip", "route")


def test_members_of_a_network_reach_each_other_whoever_programs_their_hosts(hosts: Mixed) -> None:
    hosts.network("net1", "net2")
    beside, own = hosts.traffic
    beside.workload("one-A", "net1")
    beside.workload("two-D", "net2")
    own.workload("one-B", "net1")
    own.workload("two-E", "net2")
    hosts.expect(lambda flow: flow.source[:3] == flow.destination[:3])
    node = hosts.etcd.control("get", NODE + hosts.beside.name)
    assert "calico-libnetwork" not in node


def test_calicoctls_profiles_and_ours_hold_on_both_hosts(hosts: Mixed) -> None:
    hosts.network("database", "frontend")
    beside, own = hosts.traffic
    beside.workload("database-1", "database")
    own.workload("database-2", "database")
    beside.workload("frontend-1", "frontend")
    own.workload("frontend-2", "frontend")
    hosts.calico.calicoctl("apply", "-f", "-", text=PROFILES.rstrip().removesuffix("---"))
    hosts.expect(by_role)
    closed = profile("database", "{role: database}") + profile("frontend", "{role: frontend}")
    hosts.own.calico("apply", "-f", "-", text=closed)
    hosts.expect(nothing)


def nothing(_: Flow) -> bool:
    return False


def test_calicoctl_prints_what_we_print(hosts: Mixed) -> None:
    hosts.network("net1")
    hosts.beside.workload("workload-A", "net1")
    hosts.own.workload("workload-B", "net1")
    for kind in KINDS:
        scope = ("-A",) if kind in NAMESPACED else ()
        for output in ("ps", "wide", "yaml", "json"):
            words = ("get", kind, *scope, "-o", output)
            assert hosts.calico.calicoctl(*words) == hosts.own.calico(*words), words
    address = hosts.own.ipv4("workload-B", "net1")
    assert f"IP {address} is in use" in hosts.calico.calicoctl("ipam", "show", f"--ip={address}")
    assert "found 0 problems" in hosts.own.calico("ipam", "check")


def test_calicoctl_takes_back_what_it_printed_of_ours(hosts: Mixed) -> None:
    hosts.network("net1")
    hosts.beside.workload("workload-A", "net1")
    for kind in ("nodes", "ippools", "felixconfigurations", "bgpconfigurations", "tiers", "workloadendpoints"):
        scope = ("-A",) if kind in NAMESPACED else ()
        printed = hosts.calico.calicoctl("get", kind, *scope, "-o", "yaml")
        assert "Successfully" in hosts.calico.calicoctl("replace", "-f", "-", text=printed), kind


def test_what_felix_has_written_holds_without_it_and_docker_does_not_wait(hosts: Mixed) -> None:
    hosts.network("net1")
    for name in ("workload-A", "workload-B"):
        hosts.beside.workload(name, "net1")
    with pinging((hosts.beside, "workload-A", hosts.beside.ipv4("workload-B", "net1"))):
        hosts.calico.kill_felix()
        started = time.monotonic()
        hosts.beside.workload("workload-C", "net1")
        assert time.monotonic() - started < 6
        target = hosts.beside.ipv4("workload-C", "net1")
        assert not hosts.beside.pings("workload-A", target)
        wait_for("it to be said", lambda: "Felix does not run" in status(hosts.beside))
        hosts.calico.start_felix()
        wait_for("the new one to be reached", lambda: hosts.beside.pings("workload-A", target), seconds=30)
    wait_for("it to be said", lambda: "Felix programs this host" in status(hosts.beside))


def test_our_agent_and_felix_take_the_host_from_each_other(hosts: Mixed) -> None:
    hosts.network("net1")
    for name in ("workload-A", "workload-B"):
        hosts.beside.workload(name, "net1")
    pair = (hosts.beside, "workload-A", hosts.beside.ipv4("workload-B", "net1"))
    with pinging(pair, allow=0.5):  # a host that had no table of ours is closed until the datastore has been read
        hosts.calico.kill_felix()
        hosts.beside.plugin.restart()
        wait_for("the agent at work", lambda: "2 endpoints in force" in status(hosts.beside))
        assert "of a Felix that does not run" in status(hosts.beside)
        for family in ("ip", "ip6"):
            hosts.beside.machine.run("nft", "delete", "table", family, "calico")
        hosts.beside.workload("workload-C", "net1")
        assert hosts.beside.pings("workload-A", hosts.beside.ipv4("workload-C", "net1"))
    with pinging(pair):
        hosts.calico.start_felix()
        wait_for("the hand-over", lambda: "Felix programs this host" in status(hosts.beside), seconds=30)
        assert "calico-libnetwork" not in hosts.beside.machine.run("nft", "list", "tables")
        time.sleep(1)

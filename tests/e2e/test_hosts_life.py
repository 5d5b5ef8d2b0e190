"""What happens to hosts on one subnet while their containers talk: every gap is measured, and most must not exist."""

from __future__ import annotations

import re
import signal
import time

from tests.e2e.lab import Host, dockers
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import (
    SOON,
    Cluster,
    both_addresses,
    networks,
    partitioned,
    pinging,
    reaches,
    routes,
)

ADDRESS_CHANGE = 2.0
"""Seconds that a host's new address may take to be known everywhere."""


Pair = tuple[Host, str, str]


def pairs(cluster: Cluster) -> list[Pair]:
    """From the first host's container to those of the others, in both families."""
    cluster.network("net1", "--ipv6")
    for number, host in enumerate(cluster.hosts):
        host.workload(f"workload-{number}", "net1", "--restart", "always")
    first = cluster.hosts[0]
    found: list[Pair] = []
    for number, host in enumerate(cluster.hosts[1:], start=1):
        targets = both_addresses(host, f"workload-{number}", "net1")
        wait_for(f"workload-{number}", reaches(first, "workload-0", *targets), seconds=SOON)
        found += [(first, "workload-0", target) for target in targets]
    return found


def test_no_ping_is_lost_when_plugins_stop_die_and_start(cluster: Cluster) -> None:
    with pinging(*pairs(cluster)):
        for host in cluster.hosts:
            host.plugin.restart(signal.SIGKILL)
        for host in cluster.hosts:
            host.plugin.stop()
        time.sleep(1)
        for host in cluster.hosts:
            host.plugin.start()
        cluster.everywhere("the agent", lambda host: "endpoints in force" in host.calico("status"))


def test_no_ping_is_lost_when_etcd_restarts_and_all_follow_afterwards(cluster: Cluster) -> None:
    first, second, _ = cluster.hosts
    with pinging(*pairs(cluster)):
        cluster.etcd.stop(kill=True)
        time.sleep(2)
        cluster.etcd.start()
        wait_for("a container", lambda: second.workload("latecomer", "net1"))
        wait_for("the latecomer", reaches(first, "workload-0", second.ipv4("latecomer", "net1")), seconds=10)


def test_no_ping_is_lost_when_hosts_join(cluster: Cluster) -> None:
    first = cluster.hosts[0]
    with pinging(*pairs(cluster)):
        newcomer = cluster.join(dockers()[-1])
        wait_for("net1", lambda: "net1" in networks(newcomer), seconds=SOON)
        newcomer.workload("workload-N", "net1")
        targets = both_addresses(newcomer, "workload-N", "net1")
        wait_for("the newcomer", reaches(first, "workload-0", *targets), seconds=SOON)
    forget(cluster, newcomer)


def forget(cluster: Cluster, host: Host) -> None:
    """The host is no more, and an operator says so."""
    cluster.leave(host)
    cluster.hosts[0].calico("node", "delete", host.name, "--yes")


def test_a_dead_host_holds_nothing_once_it_is_deleted_and_may_come_back(cluster: Cluster) -> None:
    first = cluster.hosts[0]
    dead = cluster.join(dockers()[-1])
    known = pairs(cluster)
    target = known[-1][2]
    blocks = re.findall(rf"^(\S+) via {dead.address} ", routes(first), re.MULTILINE)
    others = [pair for pair in known if dead not in pair and pair[2] not in both_addresses(dead, "workload-3", "net1")]
    with pinging(*others):
        name = dead.name
        forget(cluster, dead)
        cluster.everywhere("no route", lambda host: not any(block in routes(host) for block in blocks))
        assert [key for key in cluster.etcd.keys("/calico") if name in key] == []
        assert blocks
        assert not first.pings("workload-0", target)

        back = cluster.join(dockers()[-1], NODENAME=name)
        wait_for("net1", lambda: "net1" in networks(back), seconds=SOON)
        back.workload("workload-3", "net1")
        targets = both_addresses(back, "workload-3", "net1")
        wait_for("the host that came back", reaches(first, "workload-0", *targets), seconds=SOON)
    cluster.leave(back)
    first.calico("node", "delete", name, "--yes")


def test_a_host_that_changes_its_address_is_followed(cluster: Cluster) -> None:
    second = cluster.hosts[1]
    known = pairs(cluster)
    second.machine.run("sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1")
    old, new = second.address, "172.30.0.42"
    moved = [pair for pair in known if pair[2] == second.ipv4("workload-1", "net1")]
    with pinging(*(pair for pair in known if pair not in moved)), pinging(*moved, allow=ADDRESS_CHANGE):
        for before, after in ((old, new), (new, old)):
            second.machine.run("ip", "address", "add", f"{after}/24", "dev", "eth0")
            second.machine.run("ip", "address", "del", f"{before}/24", "dev", "eth0")
            second.machine.try_run("ip", "route", "add", "default", "via", "172.30.0.1")
            wait_for("the new way", lambda after=after: f"via {after} " in routes(cluster.hosts[0]), seconds=60)  # type: ignore[misc]


def test_a_partition_costs_what_it_lasts_and_what_happened_meanwhile_is_caught_up(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    known = pairs(cluster)
    cut = [pair for pair in known if pair[2] in both_addresses(second, "workload-1", "net1")]
    with pinging(*(pair for pair in known if pair not in cut)), pinging(*cut, allow=8):
        second.workload("neighbour", "net1")
        within = (second, "workload-1", second.ipv4("neighbour", "net1"))
        with pinging(within), partitioned(cluster, second):
            wait_for("the cut", lambda: not first.pings(*cut[0][1:]))
            third.workload("latecomer", "net1")
        started = time.monotonic()
        wait_for("healing", reaches(*cut[0]), seconds=SOON)
        assert time.monotonic() - started < 2
        wait_for("the latecomer", reaches(second, "workload-1", third.ipv4("latecomer", "net1")), seconds=SOON)


def test_a_restart_of_docker_costs_that_hosts_containers_alone(cluster: Cluster) -> None:
    second = cluster.hosts[1]
    known = pairs(cluster)
    hit = both_addresses(second, "workload-1", "net1")
    with pinging(*(pair for pair in known if pair[2] not in hit)):
        second.dockerd.stop()
        second.dockerd.start()
        targets = wait_for_addresses(second)
        wait_for("workload-1", reaches(cluster.hosts[0], "workload-0", *targets), seconds=SOON)


def wait_for_addresses(host: Host) -> tuple[str, str]:
    wait_for("workload-1 to run", lambda: host.inspect("workload-1", "{{.State.Running}}") == "true")
    return both_addresses(host, "workload-1", "net1")

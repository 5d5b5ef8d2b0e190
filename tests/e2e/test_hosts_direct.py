"""Three hosts on one subnet, of two Docker releases, whose agents route to each other directly."""

from __future__ import annotations

import json

from tests.e2e.lab import Host
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import SOON, Cluster, both_addresses, pool, reaches, routes


def test_containers_of_three_hosts_reach_each_other_in_both_families(cluster: Cluster) -> None:
    cluster.network("net1", "--ipv6")
    for number, host in enumerate(cluster.hosts):
        host.workload(f"workload-{number}", "net1")
    addresses = [both_addresses(host, f"workload-{number}", "net1") for number, host in enumerate(cluster.hosts)]

    for number, host in enumerate(cluster.hosts):
        others = [address for other, pair in enumerate(addresses) if other != number for address in pair]
        wait_for(f"{host.name} to reach {others}", reaches(host, f"workload-{number}", *others), seconds=SOON)
        assert mode(host) == "direct"


def test_profiles_keep_networks_apart_across_hosts(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    for name in ("net1", "net2", "net3"):
        cluster.network(name, "--ipv6")
    first.workload("workload-A", "net1")
    first.workload("workload-B", "net2")
    second.workload("workload-D", "net3")
    second.workload("workload-E", "net1")
    third.workload("workload-F", "net2")

    friend = both_addresses(second, "workload-E", "net1")
    wait_for("A to reach E", reaches(first, "workload-A", *friend), seconds=SOON)
    wait_for("B to reach F", reaches(first, "workload-B", *both_addresses(third, "workload-F", "net2")), seconds=SOON)
    strangers = [*both_addresses(second, "workload-D", "net3"), *both_addresses(third, "workload-F", "net2")]
    assert [address for address in strangers if first.pings("workload-A", address)] == []
    assert [address for address in friend if third.pings("workload-F", address)] == []

    first.docker("network", "connect", "net2", "workload-A")
    both = [*friend, *both_addresses(third, "workload-F", "net2")]
    wait_for("A to reach the members of both its networks", reaches(first, "workload-A", *both), seconds=SOON)
    own = both_addresses(first, "workload-A", "net2")
    wait_for("F to reach A", reaches(third, "workload-F", *own), seconds=SOON)
    assert [address for address in friend if third.pings("workload-F", address)] == []


def test_networks_on_one_ipv6_pool_keep_apart_across_hosts(cluster: Cluster) -> None:
    first, second, _ = cluster.hosts
    prefix = cluster.get("ippool", "default-ipv6-ippool")["spec"]["cidr"]  # type: ignore[index]
    for name in ("net10", "net11", "net12"):
        cluster.network(name, "--ipv6", "--subnet", str(prefix))
    for name, host, network in (
        ("workload-V", first, "net10"),
        ("workload-W", first, "net11"),
        ("workload-X", first, "net10"),
        ("workload-Y", second, "net10"),
        ("workload-Z", second, "net12"),
    ):
        host.workload(name, network)
    wait_for("V to reach Y", reaches(first, "workload-V", second.ipv6("workload-Y", "net10")), seconds=SOON)
    assert first.pings("workload-V", first.ipv6("workload-X", "net10"))
    assert not first.pings("workload-V", first.ipv6("workload-W", "net11"))
    assert not first.pings("workload-V", second.ipv6("workload-Z", "net12"))


def test_borrowed_addresses_are_reached_where_they_are(cluster: Cluster) -> None:
    """A pool of two blocks of four addresses, and three hosts: somebody borrows."""
    cluster.apply(pool("10.77.0.0/29", "tiny", blockSize=30), pool("fd77::/125", "tiny6", blockSize=126))
    cluster.network("net1", "--ipv6", "--subnet", "10.77.0.0/29", "--subnet", "fd77::/125")
    workloads = [(cluster.hosts[number % 3], f"workload-{number}") for number in range(6)]
    for host, name in workloads:
        host.workload(name, "net1")

    targets = [address for host, name in workloads for address in both_addresses(host, name, "net1")]
    first, name = workloads[0]
    wait_for("all to be reached", reaches(first, name, *targets), seconds=SOON)
    for host, name in workloads[1:3]:
        wait_for("all to be reached", reaches(host, name, *targets), seconds=SOON)
    assert any("10.77.0." in line and "/" not in line for line in routes(first).splitlines() if " via " in line)
    cluster.clear()
    first.calico("delete", "ippool", "tiny", "tiny6")


def test_a_container_that_moves_with_its_address_is_found_again(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    cluster.network("net1", "--subnet", "192.168.0.0/16")
    first.workload("workload-A", "net1")
    second.workload("workload-E", "net1", "--ip", "192.168.77.7")
    wait_for("E on the second host", reaches(first, "workload-A", "192.168.77.7"), seconds=SOON)
    second.docker("rm", "--force", "workload-E")
    third.workload("workload-E", "net1", "--ip", "192.168.77.7")
    wait_for("E on the third host", reaches(first, "workload-A", "192.168.77.7"), seconds=SOON)


def mode(host: Host) -> str:
    answer = json.loads(host.calico("node", "status", "--output", "json"))
    return str(answer["routing"]["mode"])

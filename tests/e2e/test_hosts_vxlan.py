"""Pools that are encapsulated, on hosts of two subnets: VXLAN always and across subnets, masquerading, and IPIP."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.lab import OUTSIDE, OUTSIDE6, Host, Lab, dockers
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import (
    SOON,
    Cluster,
    a_cluster,
    both_addresses,
    pinging,
    pool,
    reaches,
    release,
    routes,
)
from tests.e2e.traffic import arrivals

VXLAN = "udp dport 4789"


@pytest.fixture(scope="module")
def whole_cluster(lab: Lab) -> Iterator[Cluster]:
    with a_cluster(lab, with_router=True) as cluster:
        cluster.join(dockers()[-1])
        cluster.join(release("26."))
        cluster.join_behind(dockers()[-1])
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    yield whole_cluster
    whole_cluster.clear()
    for name in ("tunnelled", "tunnelled6"):
        whole_cluster.hosts[0].calico("delete", "ippool", name, "--skip-not-exists")


def tunnelled(cluster: Cluster, **modes: str) -> None:
    """A network of both families on pools with these modes."""
    pools = (pool("10.88.0.0/16", "tunnelled", **modes), pool("fd88::/48", "tunnelled6", **modes))
    cluster.apply(*pools)
    cluster.network("net1", "--ipv6", "--subnet", "10.88.0.0/16", "--subnet", "fd88::/48")


def three_workloads(cluster: Cluster) -> list[tuple[str, str]]:
    for number, host in enumerate(cluster.hosts):
        host.workload(f"workload-{number}", "net1")
    return [both_addresses(host, f"workload-{number}", "net1") for number, host in enumerate(cluster.hosts)]


def test_everything_goes_through_the_tunnel_with_vxlan_always(cluster: Cluster) -> None:
    tunnelled(cluster, vxlanMode="Always")
    cluster.everywhere("the tunnels", lambda host: {"vxlan.calico", "vxlan-v6.calico"} <= host.machine.interfaces())
    addresses = three_workloads(cluster)
    everyone_reaches_everyone(cluster, addresses)
    first, second, third = cluster.hosts
    with arrivals(second.machine, VXLAN) as on_subnet, arrivals(third.machine, VXLAN) as behind:
        for target in (*addresses[1], *addresses[2]):
            assert first.pings("workload-0", target)
        assert on_subnet() >= 2
        assert behind() >= 2


def everyone_reaches_everyone(cluster: Cluster, addresses: list[tuple[str, str]]) -> None:
    for number, host in enumerate(cluster.hosts):
        others = [address for other, pair in enumerate(addresses) if other != number for address in pair]
        wait_for(f"{host.name} to reach {others}", reaches(host, f"workload-{number}", *others), seconds=SOON)


def test_containers_have_the_mtu_that_fits_the_tunnel(cluster: Cluster) -> None:
    """1500 less 70 where IPv6 is tunnelled, less 50 where only IPv4 is; a ping of that size passes unfragmented."""
    first, _, third = cluster.hosts
    cluster.apply(pool("10.88.0.0/16", "tunnelled", vxlanMode="Always"))
    cluster.network("net1", "--subnet", "10.88.0.0/16")
    cluster.everywhere("the tunnel", lambda host: "vxlan.calico" in host.machine.interfaces())
    first.workload("workload-A", "net1")
    third.workload("workload-C", "net1")
    target = third.ipv4("workload-C", "net1")
    wait_for("C", reaches(first, "workload-A", target), seconds=SOON)
    assert " mtu 1450 " in first.execute("workload-A", "ip", "link", "show", "cali0")
    assert unfragmented(first, "workload-A", target, 1450)
    assert not unfragmented(first, "workload-A", target, 1451)


def unfragmented(host: Host, container: str, target: str, size: int) -> bool:
    pid = host.inspect(container, "{{.State.Pid}}")
    command = ["nsenter", "-t", pid, "-n", "ping", "-M", "do", "-c", "1", "-W", "1", "-s", str(size - 28), target]
    return host.machine.try_run(*command).returncode == 0


def test_only_the_other_subnet_is_tunnelled_to_with_cross_subnet(cluster: Cluster) -> None:
    tunnelled(cluster, vxlanMode="CrossSubnet")
    addresses = three_workloads(cluster)
    everyone_reaches_everyone(cluster, addresses)
    first, second, third = cluster.hosts
    with arrivals(second.machine, VXLAN) as on_subnet, arrivals(third.machine, VXLAN) as behind:
        for target in (*addresses[1], *addresses[2]):
            assert first.pings("workload-0", target)
        assert on_subnet() == 0
        assert behind() >= 2


def test_a_pool_changes_its_encapsulation_under_running_traffic(cluster: Cluster) -> None:
    """From CrossSubnet to Always and back; each host changes at once, the other one a moment later, both receive."""
    tunnelled(cluster, vxlanMode="CrossSubnet")
    addresses = three_workloads(cluster)
    everyone_reaches_everyone(cluster, addresses)
    first, second, _ = cluster.hosts
    with pinging(*((first, "workload-0", target) for target in (*addresses[1], *addresses[2]))):
        for mode in ("Always", "CrossSubnet"):
            cluster.apply(
                pool("10.88.0.0/16", "tunnelled", vxlanMode=mode), pool("fd88::/48", "tunnelled6", vxlanMode=mode)
            )
            way = re.compile(
                rf"^10\.88\.\S+ via \S+ dev {'vxlan.calico' if mode == 'Always' else 'eth0'}", re.MULTILINE
            )
            for host in (first, second):
                wait_for("the way", lambda host=host, way=way: way.search(routes(host)))  # type: ignore[misc]


def test_what_leaves_the_pools_is_masqueraded_and_what_stays_is_not(cluster: Cluster) -> None:
    first, _, third = cluster.hosts
    tunnelled(cluster, vxlanMode="Always")
    cluster.network("net2", "--ipv6", "--subnet", "10.88.0.0/16", "--subnet", "fd88::/48")
    first.workload("workload-A", "net1")
    third.workload("workload-C", "net1")
    a, a6 = both_addresses(first, "workload-A", "net1")
    c, c6 = both_addresses(third, "workload-C", "net1")
    wait_for("C", reaches(first, "workload-A", c, c6), seconds=SOON)
    assert not first.pings("workload-A", OUTSIDE)
    assert not first.pings("workload-A", OUTSIDE6, "-6")

    masqueraded = {"vxlanMode": "Always", "natOutgoing": True}
    cluster.apply(pool("10.88.0.0/16", "tunnelled", **masqueraded), pool("fd88::/48", "tunnelled6", **masqueraded))
    wait_for("outside to be reached", reaches(first, "workload-A", OUTSIDE, OUTSIDE6), seconds=SOON)
    inside = ["nsenter", "-t", third.inspect("workload-C", "{{.State.Pid}}"), "-n"]
    own = (f"ip saddr {a} icmp type echo-request", f"ip6 saddr {a6} icmpv6 type echo-request")
    with arrivals(third.machine, *own, inside=inside) as count:
        assert reaches(first, "workload-A", c, c6)()
        assert count() == 2


def test_a_pool_that_needs_ipip_is_named_once_and_leaks_nothing(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    cluster.apply(pool("10.88.0.0/16", "tunnelled", ipipMode="Always"))
    cluster.network("net1", "--subnet", "10.88.0.0/16")
    for number, host in enumerate(cluster.hosts):
        host.workload(f"workload-{number}", "net1")
    leak = "iifname eth0 ip saddr 10.88.0.0/16"
    with arrivals(second.machine, leak) as on_subnet, arrivals(third.machine, leak) as behind:
        wait_for("the routes", lambda: "unreachable 10.88" in routes(first), seconds=SOON)
        assert not first.pings("workload-0", second.ipv4("workload-1", "net1"))
        assert not first.pings("workload-0", third.ipv4("workload-2", "net1"))
        assert on_subnet() == behind() == 0
    said = [line for line in first.calico("status").splitlines() if "IPPool(tunnelled)" in line]
    assert len(said) == 1
    assert "vxlanMode CrossSubnet" in said[0]

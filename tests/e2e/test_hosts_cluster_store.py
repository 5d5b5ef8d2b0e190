"""Docker 20.10 with etcd as its cluster store: networks are created once for all hosts, and Docker knows all names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import SOON, Cluster, a_cluster, both_addresses, networks, reaches, release


@pytest.fixture(scope="module")
def whole_cluster(lab: Lab) -> Iterator[Cluster]:
    with a_cluster(lab, options=("--enable-v2",)) as cluster:
        for _ in range(2):
            cluster.join(release("20."), store=True)
        yield cluster


def test_the_tutorial_of_two_hosts_and_three_networks(cluster: Cluster) -> None:
    first, second = cluster.hosts
    for name in ("net1", "net2", "net3"):
        first.network(name)
    wait_for("the networks", lambda: sorted(networks(second)) == ["net1", "net2", "net3"], seconds=SOON)
    for host, name, network in (
        (first, "workload-A", "net1"),
        (first, "workload-B", "net2"),
        (first, "workload-C", "net1"),
        (second, "workload-D", "net3"),
        (second, "workload-E", "net1"),
    ):
        host.workload(name, network)

    wait_for("the other host's name", reaches(first, "workload-A", "workload-E.net1"), seconds=SOON)
    for name in ("workload-C.net1", "workload-E.net1"):
        assert " 0% packet loss" in first.execute("workload-A", "ping", "-c", "4", name)
    assert not first.pings("workload-A", first.ipv4("workload-B", "net2"))
    assert not first.pings("workload-A", second.ipv4("workload-D", "net3"))
    (profile,) = first.stored("/calico/resources/v3/projectcalico.org/profiles/net1")
    assert profile.endswith("/net1")


def test_names_of_the_other_host_work_in_both_families(cluster: Cluster) -> None:
    first, second = cluster.hosts
    second.network("my_net", "--ipv6")
    wait_for("my_net", lambda: networks(first) == ["my_net"], seconds=SOON)
    first.workload("workload-A", "my_net")
    second.workload("workload-B", "my_net")
    wait_for("B", reaches(first, "workload-A", *both_addresses(second, "workload-B", "my_net")), seconds=SOON)
    for family in ("-4", "-6"):
        wait_for("the name", lambda family=family: first.pings("workload-A", "workload-B.my_net", family), seconds=SOON)  # type: ignore[misc]

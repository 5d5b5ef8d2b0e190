"""What Calico's tutorials for Docker promise, with their commands and their expectations, on one host."""

from __future__ import annotations

from tests.e2e.conftest import MakeHost
from tests.e2e.lab import OUTSIDE, Host


def test_containers_of_one_network_reach_each_other_by_name_and_nobody_else_does(host: Host) -> None:
    for network in ("net1", "net2", "net3"):
        host.network(network)
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net2")
    host.workload("workload-C", "net1")

    assert " 0% packet loss" in host.execute("workload-A", "ping", "-c", "4", "workload-C.net1")
    assert not host.pings("workload-A", host.ipv4("workload-B", "net2"))
    assert not host.pings("workload-B", host.ipv4("workload-A", "net1"))
    assert {"net1", "net2", "net3"} <= set(host.docker("network", "ls", "--format", "{{.Name}}").split())


def test_an_address_asked_for_is_the_address_given(make_host: MakeHost) -> None:
    host = make_host(CALICO_IPV4POOL_CIDR="192.0.2.0/24")
    host.network("my_net", "--subnet=192.0.2.0/24")
    host.workload("my_workload", "my_net", "--ip", "192.0.2.100")

    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    assert host.inspect("my_workload", template) == "192.0.2.100"
    assert "Error" in host.docker_refuses("run", "--net", "my_net", "--ip", "192.0.2.100", "busybox", "true")


def test_one_pool_serves_several_networks_of_both_families(make_host: MakeHost) -> None:
    host = make_host(CALICO_IPV6POOL_CIDR="fd80:24e2:f998:72d6::/64")
    for network in ("net10", "net11"):
        host.network(network, "--subnet", "fd80:24e2:f998:72d6::/64", "--ipv6")
    host.workload("workload-V", "net10")
    host.workload("workload-W", "net11")
    host.workload("workload-X", "net10")

    assert host.pings("workload-V", host.ipv6("workload-X", "net10"), "-6")
    assert not host.pings("workload-V", host.ipv6("workload-W", "net11"), "-6")


def test_both_families_answer_by_name(host: Host) -> None:
    host.network("my_net", "--ipv6")
    host.workload("workload-A", "my_net")
    host.workload("workload-B", "my_net")

    assert host.pings("workload-A", "workload-B.my_net", "-4")
    assert host.pings("workload-A", "workload-B.my_net", "-6")


def test_a_container_reaches_the_outside_under_its_hosts_address(host: Host) -> None:
    host.network("net1")
    host.workload("workload-A", "net1")

    assert host.pings("workload-A", OUTSIDE)


def test_the_host_reaches_its_containers(host: Host) -> None:
    host.network("net1", "--ipv6")
    host.workload("workload-A", "net1")

    host.machine.run("ping", "-c", "1", "-W", "1", host.ipv4("workload-A", "net1"))
    host.machine.run("ping", "-c", "1", "-W", "1", host.ipv6("workload-A", "net1"))


def test_a_network_in_use_is_not_removed(host: Host) -> None:
    host.network("net1")
    host.workload("workload-A", "net1")

    assert "active endpoints" in host.docker_refuses("network", "rm", "net1")
    assert len(host.endpoints()) == 1

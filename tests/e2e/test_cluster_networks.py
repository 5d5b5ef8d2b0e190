"""Three hosts of three Docker releases and one etcd: a network made on one is there on all, and names work across."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.e2e.etcd import etcd_in
from tests.e2e.lab import Host, Lab, dockers
from tests.e2e.machine import wait_for
from tests.etcd_server import EtcdServer

SOON = 2.0
"""Seconds within which a network, or a name, has to be there."""
PRIVATE = "/calico-libnetwork/v1/"


@dataclass
class Cluster:
    hosts: list[Host]
    etcd: EtcdServer

    def keys(self, prefix: str) -> list[str]:
        return self.etcd.control("get", "--prefix", "--keys-only", prefix).split()

    def everywhere(self, condition: Callable[[Host], bool], what: str, *, seconds: float = SOON) -> None:
        for host in self.hosts:
            wait_for(f"{what} on {host.name}", partial(condition, host), seconds=seconds)


def networks(host: Host) -> list[str]:
    return host.docker("network", "ls", "--filter", "type=custom", "--format", "{{.Name}}").split()


def has(name: str) -> Callable[[Host], bool]:
    return lambda host: networks(host) == [name]


def is_empty(host: Host) -> bool:
    return networks(host) == []


def told(host: Host) -> dict[str, Any]:
    """What the plugin says of the cluster's networks."""
    return dict(json.loads(host.calico("status", "--output", "json"))["cluster networks"])


def problem(host: Host) -> str:
    return "; ".join(told(host)["problems"])


def addresses(host: Host, container: str, name: str) -> set[str]:
    """What the container's resolver finds, in both families; empty if nothing."""
    found = set()
    for family in ("-4", "-6"):
        result = host.machine.try_run("docker", "exec", container, "ping", family, "-c", "1", "-W", "1", name)
        found |= set(re.findall(r"^PING \S+ \(([^)]+)\)", result.stdout))
    return found


def resolves(host: Host, container: str, name: str, expected: set[str]) -> None:
    wait_for(f"{name} to be {expected}", lambda: addresses(host, container, name) == expected, seconds=SOON)


def is_one(cluster: Cluster, name: str) -> bool:
    """Whether the records of all hosts say that they have the same network."""
    stored = cluster.etcd.control("get", "--prefix", "--print-value-only", f"{PRIVATE}hosts/")
    uids = re.findall(rf'"uid":"([^"]+)","name":"{name}"', stored)
    return len(uids) == len(cluster.hosts) and len(set(uids)) == 1


@pytest.fixture(scope="module")
def whole_cluster(lab: Lab) -> Iterator[Cluster]:
    with etcd_in(lab) as etcd:
        hosts = [lab.host(docker) for docker in (dockers()[-1], dockers()[1], dockers()[0])]
        for host in hosts:
            host.plugin.start(ETCD_ENDPOINTS=etcd.endpoint)
        yield Cluster(hosts, etcd)
        for host in hosts:
            lab.remove(host)


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    yield whole_cluster
    for host in whole_cluster.hosts:
        if not host.dockerd.running:
            host.dockerd.start()
        if not host.plugin.running:
            host.plugin.start()
    for host in whole_cluster.hosts:
        containers = host.docker("ps", "--all", "--quiet").split()
        if containers:
            host.docker("rm", "--force", *containers)
    for host in whole_cluster.hosts:
        for name in networks(host):
            host.machine.try_run("docker", "network", "rm", name)
    whole_cluster.everywhere(is_empty, "no network", seconds=15)
    wait_for("no record of a network", lambda: not whole_cluster.keys(PRIVATE), seconds=15)
    profiles = whole_cluster.keys("/calico/resources/v3/projectcalico.org/profiles/")
    assert [key for key in profiles if "default-allow" not in key] == []


def test_a_network_is_created_and_removed_on_all_hosts(cluster: Cluster) -> None:
    first, _second, third = cluster.hosts
    first.network("net1", "--ipv6", "--label", "team=blue", "--attachable", "--subnet", "192.168.0.0/16")
    cluster.everywhere(has("net1"), "net1")

    template = '{{.EnableIPv6}} {{.Attachable}} {{(index .IPAM.Config 0).Subnet}} {{index .Labels "team"}} {{.Driver}}'
    shown = {host.docker("network", "inspect", "--format", template, "net1") for host in cluster.hosts}
    assert shown == {"true true 192.168.0.0/16 blue calico"}

    third.docker("network", "rm", "net1")
    cluster.everywhere(is_empty, "no network")


def test_names_of_other_hosts_resolve_in_the_network_and_nowhere_else(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    first.network("net1", "--ipv6")
    first.network("net3")
    cluster.everywhere(lambda host: len(networks(host)) == 2, "both networks")
    first.workload("workload-A", "net1")
    first.workload("workload-B", "net3")
    second.workload("workload-E", "net1")
    expected = {second.ipv4("workload-E", "net1"), second.ipv6("workload-E", "net1")}
    resolves(first, "workload-A", "workload-E.net1", expected)
    resolves(first, "workload-A", "workload-E", expected)
    third.workload("workload-F", "net1")
    resolves(third, "workload-F", "workload-E", expected)
    assert addresses(third, "workload-F", "workload-A") == {
        first.ipv4("workload-A", "net1"),
        first.ipv6("workload-A", "net1"),
    }
    assert addresses(first, "workload-B", "workload-E") == set()
    assert addresses(first, "workload-B", "workload-E.net1") == set()

    second.docker("rename", "workload-E", "workload-G")
    resolves(first, "workload-A", "workload-G.net1", expected)
    assert addresses(first, "workload-A", "workload-E") == set()
    second.docker("rm", "--force", "workload-G")
    resolves(first, "workload-A", "workload-G", set())
    assert addresses(first, "workload-A", "workload-F.net1")


def lines(host: Host, container: str, name: str) -> list[str]:
    """The addresses that the container's hosts file has for a name."""
    file = host.docker("exec", container, "cat", "/etc/hosts").splitlines()
    return sorted(line.split()[0] for line in file if name in line.partition("#")[0].split()[1:])


def has_lines(host: Host, container: str, name: str, expected: list[str]) -> bool:
    return lines(host, container, name) == expected


def test_aliases_and_short_ids_resolve_on_every_host(cluster: Cluster) -> None:
    """As Docker has it on one host: an alias may be that of several containers, and is then all their addresses."""
    first, _second, third = cluster.hosts
    first.network("net1")
    cluster.everywhere(has("net1"), "net1")
    first.workload("workload-A", "net1", "--network-alias", "api", "--hostname", "frontend")
    third.workload("workload-E", "net1", "--network-alias", "web", "--network-alias", "db")
    for name in ("web.net1", "web", "db", third.docker("inspect", "--format", "{{.Id}}", "workload-E")[:12]):
        resolves(first, "workload-A", name, {third.ipv4("workload-E", "net1")})
    for name in ("api", "frontend"):
        resolves(third, "workload-E", name, {first.ipv4("workload-A", "net1")})

    first.workload("workload-B", "net1", "--network-alias", "web")
    both = sorted([first.ipv4("workload-B", "net1"), third.ipv4("workload-E", "net1")])
    for host, container in ((first, "workload-A"), (third, "workload-E")):
        wait_for("both", partial(has_lines, host, container, "web", both), seconds=SOON)
    third.docker("rm", "--force", "workload-E")
    wait_for("Docker's own answer", lambda: lines(first, "workload-A", "web") == [], seconds=SOON)
    assert addresses(first, "workload-A", "web") == {first.ipv4("workload-B", "net1")}

    first.docker("network", "disconnect", "net1", "workload-B")
    first.docker("network", "connect", "--alias", "late", "net1", "workload-B")
    third.workload("workload-F", "net1")
    resolves(third, "workload-F", "late", {first.ipv4("workload-B", "net1")})


def test_an_alias_elsewhere_does_not_hide_dockers_answer_in_another_network(cluster: Cluster) -> None:
    first, second, _third = cluster.hosts
    first.network("net1")
    cluster.everywhere(has("net1"), "net1")
    first.docker("network", "create", "shop")
    first.workload("workload-A", "net1")
    first.docker("network", "connect", "shop", "workload-A")
    first.workload("workload-B", "shop", "--network-alias", "db")
    local = first.ipv4("workload-B", "shop")
    second.workload("workload-E", "net1", "--network-alias", "db")
    resolves(first, "workload-A", "db.net1", {second.ipv4("workload-E", "net1")})
    assert addresses(first, "workload-A", "db") == {local}


def test_containers_of_one_network_reach_each_other_by_name_across_hosts(cluster: Cluster) -> None:
    first, second, _ = cluster.hosts
    first.network("net1", "--ipv6")
    cluster.everywhere(has("net1"), "net1")
    first.workload("workload-A", "net1")
    second.workload("workload-E", "net1")
    wait_for("workload-E.net1", lambda: addresses(first, "workload-A", "workload-E.net1"), seconds=SOON)

    assert " 0% packet loss" in first.execute("workload-A", "ping", "-c", "4", "workload-E.net1")
    assert first.pings("workload-A", "workload-E", "-4")
    assert first.pings("workload-A", "workload-E", "-6")
    assert second.pings("workload-E", "workload-A.net1")


def test_all_hosts_give_a_network_one_profile(cluster: Cluster) -> None:
    first, _second, _third = cluster.hosts
    first.network("My_Net")
    cluster.everywhere(has("My_Net"), "My_Net")
    for number, host in enumerate(cluster.hosts):
        host.workload(f"workload-{number}", "My_Net")

    stored = json.loads(first.calico("get", "workloadendpoints", "--all-namespaces", "--output", "json"))["items"]
    assert len({tuple(item["spec"]["profiles"]) for item in stored}) == 1


def test_a_network_in_use_stays_where_it_is_used_until_its_last_container_goes(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    first.network("net1")
    cluster.everywhere(has("net1"), "net1")
    second.workload("workload-E", "net1")
    third.workload("workload-F", "net1")
    first.docker("network", "rm", "net1")
    wait_for("the hosts to say so", lambda: "stays here" in problem(second), seconds=SOON)

    assert networks(second) == networks(third) == ["net1"]
    assert second.ipv4("workload-E", "net1") in addresses(third, "workload-F", "workload-E.net1")
    second.docker("stop", "--time", "0", "workload-E")
    wait_for("net1 to go", lambda: is_empty(second), seconds=SOON)
    assert networks(third) == ["net1"]


def test_a_host_that_was_down_catches_up(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    first.network("net1")
    first.network("net2")
    cluster.everywhere(lambda host: len(networks(host)) == 2, "both networks")
    third.dockerd.stop()
    first.docker("network", "rm", "net1")
    second.network("net3")
    wait_for("net3", lambda: sorted(networks(first)) == ["net2", "net3"], seconds=SOON)

    third.dockerd.start()
    wait_for("the right networks", lambda: sorted(networks(third)) == ["net2", "net3"], seconds=SOON)


def test_what_happened_while_the_plugin_was_down_is_told_apart(cluster: Cluster) -> None:
    first, second, _third = cluster.hosts
    first.network("net1")
    first.network("net2")
    cluster.everywhere(lambda host: len(networks(host)) == 2, "both networks")
    second.plugin.stop()
    first.docker("network", "rm", "net1")
    second.docker("network", "rm", "net2", seconds=120)
    second.plugin.start()

    cluster.everywhere(is_empty, "no network", seconds=5)


def test_two_hosts_that_create_a_network_at_once_have_one(cluster: Cluster) -> None:
    for attempt in range(5):
        name = f"race{attempt}"
        create = ("docker", "network", "create", "--driver", "calico", "--ipam-driver", "calico-ipam", name)
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(host.machine.try_run, *create) for host in cluster.hosts]
        assert 0 in {each.result().returncode for each in running}
        cluster.everywhere(has(name), name)
        wait_for("one network", partial(is_one, cluster, name), seconds=SOON)
        cluster.hosts[0].docker("network", "rm", name)
        cluster.everywhere(is_empty, "no network")


def test_two_hosts_that_create_different_networks_of_one_name_are_told(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    second.plugin.stop()
    first.network("net1")
    wait_for("net1", lambda: networks(third) == ["net1"], seconds=SOON)
    second.plugin.start(ETCD_ENDPOINTS=cluster.etcd.endpoint, CALICO_LIBNETWORK_CLUSTER_NETWORKS="false")
    second.network("net1", "--ipv6")
    second.plugin.stop()
    second.plugin.environment = {"ETCD_ENDPOINTS": cluster.etcd.endpoint}
    second.plugin.start()

    wait_for("a clear word", lambda: "IPv6: True here, False there" in problem(second), seconds=5)
    second.docker("network", "rm", "net1")
    wait_for("the cluster's net1", lambda: networks(second) == ["net1"], seconds=SOON)
    assert second.docker("network", "inspect", "--format", "{{.EnableIPv6}}", "net1") == "false"


def test_pruning_a_host_takes_no_network_from_the_others(cluster: Cluster) -> None:
    first, second, _third = cluster.hosts
    first.network("used")
    first.network("unused")
    cluster.everywhere(lambda host: len(networks(host)) == 2, "both networks")
    first.workload("workload-A", "used")
    second.docker("network", "prune", "--force")

    cluster.everywhere(has("used"), "the network in use")
    second.workload("workload-E", "used")
    wait_for("names", lambda: addresses(second, "workload-E", "workload-A"), seconds=SOON)


def test_docker_and_the_plugin_restart_without_losing_names(cluster: Cluster) -> None:
    first, second, _ = cluster.hosts
    first.network("net1")
    cluster.everywhere(has("net1"), "net1")
    first.workload("workload-A", "net1")
    second.workload("workload-E", "net1")
    wait_for("the name", lambda: addresses(first, "workload-A", "workload-E"), seconds=SOON)
    first.plugin.stop()
    second.docker("restart", "--time", "0", "workload-E")
    first.docker("network", "create", "other")
    first.docker("network", "connect", "other", "workload-A")
    first.plugin.start()

    expected = {second.ipv4("workload-E", "net1")}
    resolves(first, "workload-A", "workload-E", expected)
    first.docker("network", "disconnect", "other", "workload-A")
    first.docker("network", "rm", "other")
    first.docker("restart", "--time", "0", "workload-A")
    resolves(first, "workload-A", "workload-E", expected)
    first.docker("network", "disconnect", "net1", "workload-A")
    wait_for(
        "no name", lambda: "calico-libnetwork" not in first.execute("workload-A", "cat", "/etc/hosts"), seconds=SOON
    )


def test_what_was_removed_while_etcd_was_away_goes_when_it_is_back(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    first.network("net1")
    first.network("net2")
    cluster.everywhere(lambda host: len(networks(host)) == 2, "both networks")
    first.workload("workload-A", "net2")
    third.workload("workload-E", "net2")
    resolves(first, "workload-A", "workload-E", {third.ipv4("workload-E", "net2")})
    cluster.etcd.stop()
    second.docker("network", "rm", "net1", seconds=120)
    assert first.pings("workload-A", "workload-E.net2")

    cluster.etcd.start()
    cluster.everywhere(has("net2"), "net2 alone", seconds=15)
    second.plugin.restart()  # its record of the network goes when Docker's networks are listed anew


def test_a_cluster_store_is_left_to_docker(lab: Lab) -> None:
    with ExitStack() as stack:
        etcd = stack.enter_context(etcd_in(lab, "--enable-v2"))
        first, second = (lab.host(dockers()[0]) for _ in range(2))
        for host in (first, second):
            stack.callback(lab.remove, host)
            host.dockerd.stop()
            store = ("--cluster-store", etcd.endpoint.replace("http", "etcd"))
            host.dockerd.start(*store, "--cluster-advertise", f"{host.address}:2376")
            host.plugin.start(ETCD_ENDPOINTS=etcd.endpoint)
        first.network("net1")
        wait_for("net1", lambda: networks(second) == ["net1"], seconds=SOON)
        assert told(first)["state"] == "left to Docker's swarm or cluster store"
        assert etcd.control("get", "--prefix", "--keys-only", f"{PRIVATE}cluster-networks/") == ""

        first.workload("workload-A", "net1")
        second.workload("workload-E", "net1")
        wait_for("Docker to know the name", lambda: first.pings("workload-A", "workload-E.net1"), seconds=10)
        assert "calico-libnetwork" not in first.execute("workload-A", "cat", "/etc/hosts")
        second.docker("rm", "--force", "workload-E")
        first.docker("rm", "--force", "workload-A")
        first.docker("network", "rm", "net1")

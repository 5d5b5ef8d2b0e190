"""The operator's commands against what containers and the kernel really do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.e2e.conftest import MakeHost
from tests.e2e.lab import Host, Lab, dockers
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import SOON, a_cluster, reaches
from tests.e2e.traffic import FAMILIES, Flow, Resources, Traffic

ONE_DOCKER = pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")

POLICIES = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: database}
spec:
  order: 10
  selector: role == 'database'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == 'frontend'}, destination: {ports: [3306]}}
  - {action: Allow, protocol: UDP, source: {selector: role == 'frontend'}, destination: {ports: ['3300:3310']}}
  - {action: Allow, protocol: ICMPv6, source: {selector: "!has(role)"}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: frontend}
spec:
  order: 20
  selector: role == 'frontend'
  types: [Egress]
  egress:
  - {action: Deny, protocol: ICMP}
  - {action: Allow}
"""


@pytest.fixture
def labelled(make_host: MakeHost) -> Iterator[Traffic]:
    """A host that copies container labels."""
    traffic = Traffic(make_host(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true"))
    yield traffic
    traffic.close()


def explained(host: Host, source: str, destination: str, service: str) -> dict[Flow, bool]:
    """Of both families."""
    protocol, _, port = service.partition(" ")
    words = [source, destination, "--protocol", protocol, *(["--port", port] if port else [])]
    result = host.calico_result("explain", *words)
    answers = re.findall(r"^(ALLOWED|DENIED): ", result.stdout, re.MULTILINE)
    assert result.returncode == (1 if "DENIED" in answers else 0), result.stderr
    return {
        Flow(source, destination, service, family): answer == "ALLOWED"
        for family, answer in zip(FAMILIES, answers, strict=True)
    }


@ONE_DOCKER
def test_explain_says_what_packets_do(labelled: Traffic) -> None:
    host = labelled.host
    host.network("net1", "--ipv6")
    label = "org.projectcalico.label.role"
    labelled.workload("frontend", "net1", "--label", f"{label}=frontend")
    labelled.workload("database", "net1", "--label", f"{label}=database")
    labelled.workload("stranger", "net1")
    Resources(host).apply(POLICIES)

    answers: dict[Flow, bool] = {}
    for question in sorted({flow[:-1] for flow in labelled.flows()}):
        answers |= explained(host, *question)
    labelled.expect(answers.__getitem__)
    for protocol in ("tcp", "udp", "icmp"):
        for family in FAMILIES:
            seen = {answers[flow] for flow in answers if flow.service.startswith(protocol) and flow.family == family}
            assert seen == {True, False}, f"{protocol} over {family} was not both allowed and denied"


@ONE_DOCKER
def test_explain_knows_the_host_and_what_is_outside(host: Host) -> None:
    host.network("net1")
    host.workload("web", "net1")
    short_id = host.inspect("web", "{{.Id}}")[:12]

    assert "ALLOWED" in host.calico("explain", host.name, "web")
    assert "ALLOWED" in host.calico("explain", short_id, "203.0.113.1")
    denied = host.calico_result("explain", "203.0.113.1", "net1/web", "--port", "80")
    assert (denied.returncode, "no rule of the endpoint's profiles matched" in denied.stdout) == (1, True)
    unknown = host.calico_result("explain", "web", "wbe")
    assert (unknown.returncode, unknown.stderr.startswith("Error: nothing is called wbe")) == (2, True)


@ONE_DOCKER
def test_explain_knows_every_address_of_its_own_host(host: Host) -> None:
    host.network("net1")
    host.workload("web", "net1")
    for action, reached in (("Drop", False), ("Return", True)):  # a first start has set the latter
        spec = f"metadata: {{name: node.{host.name}}}\nspec: {{defaultEndpointToHostAction: {action}}}\n"
        host.calico("apply", "-f", "-", text=f"apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\n{spec}")
        for address in (host.address, "172.17.0.1"):
            wait_for(f"{action} to be in force", partial(pings_or_not, host, address, reached=reached), seconds=5)
            assert host.calico_result("explain", "web", address).returncode == (0 if reached else 1)


def pings_or_not(host: Host, address: str, *, reached: bool) -> bool:
    return host.pings("web", address) == reached


TRACES = "nft list ruleset; iptables-save; ip6tables-save; ip route; ip -6 route; ls /var/lib /run /run/docker/plugins"


def traces(host: Host) -> list[str]:
    lines = host.machine.run("sh", "-c", TRACES).splitlines()
    return [line for line in lines if "calico" in line or "proto 80" in line or "cali" in line]


def test_uninstall_leaves_nothing_and_goes_only_when_nothing_needs_it(make_host: MakeHost) -> None:
    host = make_host()
    host.network("net1", "--ipv6")
    host.workload("web", "net1")
    assert "calico-libnetwork runs here" in host.calico_result("uninstall", "--yes").stderr
    host.plugin.stop()
    assert "Docker has Calico networks (net1)" in host.calico_result("uninstall", "--yes").stderr

    host.plugin.start()
    host.clear()
    host.plugin.stop()
    assert traces(host)
    assert host.calico("uninstall", "--yes").endswith("IP forwarding stays as it is")
    assert traces(host) == []

    host.plugin.start()
    host.network("net1")
    host.workload("web", "net1")
    host.machine.run("ping", "-c", "1", "-W", "1", host.ipv4("web", "net1"))


@ONE_DOCKER
def test_the_node_has_the_address_that_its_method_finds(make_host: MakeHost) -> None:
    host = make_host(IP_AUTODETECTION_METHOD="skip-interface=^eth0$")
    assert "ipv4Address" not in host.calico("get", "node", host.name, "--output", "yaml")
    host.machine.run("ip", "link", "add", "second", "type", "bridge")
    host.machine.run("ip", "address", "add", "10.9.9.9/24", "dev", "second")
    host.machine.run("ip", "link", "set", "second", "up")
    wait_for("the address", lambda: "ipv4Address: 10.9.9.9/24" in host.calico("get", "node", host.name, "-o", "yaml"))


@ONE_DOCKER
def test_status_shows_pools_and_networks_of_a_working_host(host: Host) -> None:
    host.network("net1")
    host.workload("web", "net1")
    lines = [line.split(maxsplit=1) for line in host.calico("status").splitlines()]
    shown = {words[0]: words[-1] for words in lines}
    assert shown["ready"].startswith(f"node {host.name}, version")
    assert shown["docker"].startswith("answers")
    assert shown["routing"].startswith("direct")
    assert shown["networks"] == "net1  1 endpoint on 1 node"
    assert shown["findings"] == "none"
    assert f"| {host.name} " in host.calico("node", "status")


def test_a_host_that_died_is_deleted_with_all_it_held(lab: Lab) -> None:
    with a_cluster(lab) as cluster:
        first, second = (cluster.join(dockers()[-1]) for _ in range(2))
        cluster.network("net1")
        first.workload("web", "net1")
        second.workload("db", "net1")
        gone, gateway = second.ipv4("db", "net1"), second.address
        wait_for("web to reach db", reaches(first, "web", gone), seconds=SOON)
        status = first.calico("node", "status")
        assert f"| {gateway} " in status
        assert f"| {second.name} " in status
        assert "db" in first.calico("explain", "web", f"{second.name}/db")

        cluster.leave(second)
        assert "workload endpoints: 1 (db)" in first.calico("node", "delete", second.name, "--yes")
        assert [key for key in cluster.etcd.keys("/") if second.name in key] == []
        wait_for("the route to go", lambda: gateway not in first.machine.run("ip", "route"), seconds=SOON)
        assert "found 0 problems" in first.calico("ipam", "check")
        assert first.calico_result("explain", "web", gone).returncode == 0  # it is nobody's, as any outside
        first.machine.run("ping", "-c", "1", "-W", "1", first.ipv4("web", "net1"))


def test_a_host_that_speaks_bgp_is_shown_and_not_deleted(lab: Lab) -> None:
    with a_cluster(lab, CALICO_LIBNETWORK_ROUTES="bird") as cluster:
        first, second = (cluster.join(dockers()[-1]) for _ in range(2))
        peer = second.address
        wait_for("BGP", lambda: "Established" in first.calico("node", "status"), seconds=60)
        rows = [line.split("|")[1:-1] for line in first.calico("node", "status").splitlines() if line.startswith("|")]
        (row,) = [row for row in rows if row[0].strip() == peer]
        assert [cell.strip() for cell in row[1:4]] == ["node-to-node mesh", second.name, "up"]
        refused = first.calico_result("node", "delete", second.name, "--yes")
        assert (refused.returncode, "it speaks BGP with this host" in refused.stderr) == (1, True)
        own = first.calico_result("node", "delete", first.name, "--yes")
        assert (own.returncode, "is this host" in own.stderr) == (1, True)
        assert "BGP peers established" in first.calico("status")


@ONE_DOCKER
def test_commands_and_a_starting_plugin_hand_the_datastore_to_each_other(host: Host) -> None:
    """Some have its file before the plugin does, some wait for the plugin's answer; none is told that it is in use."""
    for _ in range(2):
        host.plugin.stop()
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(host.calico_result, "get", "nodes") for _ in range(2)]
            host.plugin.launch()
            asked += [pool.submit(host.calico_result, "get", "nodes") for _ in range(3)]
        assert [answer.result().stderr for answer in asked] == [""] * 5
        assert {answer.result().returncode for answer in asked} == {0}
        wait_for("the plugin to answer", host.plugin.ready)

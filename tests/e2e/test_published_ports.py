"""``docker run -p``: who reaches a container by its host's address, for how long, and which ports are refused."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.e2e.lab import IMAGE, Host
from tests.e2e.machine import wait_for
from tests.e2e.traffic import PROBE, Resources

_PORTS = ("-p", "8080:80", "-p", "5353:5300/udp")
_SERVICES = ("tcp 8080", "udp 5353")
YES, NO = [True] * 4, [False] * 4
"""In both families, of both services."""
_SERVER = (
    "import socket, time; s = socket.create_server(('0.0.0.0', 8085)); print('ready', flush=True); time.sleep(900)"
)
_SENDER = """
import contextlib, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.settimeout(0.1)
    sender.connect((sys.argv[1], 5353))
    print("sending", flush=True)
    while True:
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            sender.send(b"?")
            if sender.recv(16) == b"?":
                break
print("answered", flush=True)
"""
_ADMITTED = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: published-ports}
spec:
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [published]}}
  - {action: Allow, protocol: UDP, destination: {ports: [published]}}
  - {action: Pass}
"""


def run(host: Host, name: str, network: str, *options: str) -> None:
    command = ("sh", "-c", "httpd -p 80; exec sleep 1000")
    host.docker("run", "-d", "--stop-timeout=0", "--net", network, "--name", name, *options, IMAGE, *command)


@contextmanager
def serving_udp(host: Host, name: str) -> Iterator[None]:
    log = host.machine.directory / "published.udp.log"
    log.unlink(missing_ok=True)
    pid = host.inspect(name, "{{.State.Pid}}")
    server = host.machine.start("nsenter", "-t", pid, "-n", sys.executable, PROBE, "serve", "5300", log=log)
    wait_for(f"{name} to serve UDP", lambda: log.exists() and log.read_text() == "ready\n")
    yield
    server.stop(signal.SIGKILL)


def answers(host: Host, source: str, services: Sequence[str] = _SERVICES) -> list[bool]:
    """By the host's IPv4 address and then its IPv6 address. ``source``: a container, "host" or "outside"."""
    machine = host.fabric if source == "outside" else host.machine
    inside: tuple[str, ...] = ()
    if source not in ("outside", "host"):
        inside = ("nsenter", "-t", host.inspect(source, "{{.State.Pid}}"), "-n")
    questions = [[service, address] for address in (host.address, ipv6(host)) for service in services]
    return list(json.loads(machine.run(*inside, sys.executable, PROBE, "ask", text=json.dumps(questions))))


def ipv6(host: Host) -> str:
    return host.address.replace("172.30.0.", "fd00:30::")


def published(host: Host, name: str) -> list[tuple[int, int]]:
    """Ports of the host and of the container, as recorded."""
    documents = json.loads(host.calico("get", "workloadendpoints", "--all-namespaces", "-o", "json"))
    named = "org.projectcalico.libnetwork/container-name"
    specs = [each["spec"] for each in documents["items"] if each["metadata"]["annotations"].get(named) == name]
    return [(port["hostPort"], port["port"]) for spec in specs for port in spec.get("ports", ())]


def answered(host: Host, source: str, expected: list[bool]) -> None:
    """Soon, since a change of policy takes a moment."""
    wait_for(
        f"{expected} from {source}",
        lambda: answers(host, source) == expected,
        seconds=5,
        found=lambda: answers(host, source),
    )


def test_a_published_port_leads_to_the_container_as_policy_allows_while_it_runs(
    host: Host, resources: Resources
) -> None:
    host.network("net1", "--ipv6")
    host.network("net2", "--ipv6")
    run(host, "web", "net1", *_PORTS)
    host.workload("neighbour", "net1")
    host.workload("stranger", "net2")
    with serving_udp(host, "web"):
        for source in ("host", "neighbour", "web"):
            assert answers(host, source) == YES, source
        for source in ("outside", "stranger"):
            assert answers(host, source) == NO, source
        resources.apply(_ADMITTED)
        for source in ("outside", "stranger"):
            answered(host, source, YES)
        host.plugin.restart(signal.SIGKILL)
        assert answers(host, "outside") == YES
        assert "8080:80/tcp, 5353:5300/udp" in host.calico("status")
        resources.delete(_ADMITTED)
        answered(host, "outside", NO)
        assert answers(host, "host") == YES
    host.docker("stop", "web")
    assert answers(host, "host") == NO
    log = host.machine.directory / "sender.log"
    log.unlink(missing_ok=True)
    sender = host.machine.start(sys.executable, "-c", _SENDER, host.address, log=log)
    wait_for("datagrams to be on their way", lambda: log.exists() and "sending" in log.read_text())
    host.docker("start", "web")
    assert answers(host, "host", ["tcp 8080"]) == [True, True]
    with serving_udp(host, "web"):
        wait_for("the sender of before to be answered", lambda: "answered" in log.read_text(), seconds=5)
    assert sender.entered.wait(5) == 0
    host.docker("rm", "--force", "web")
    assert answers(host, "host") == NO


def test_it_is_published_again_after_a_restart_of_docker(host: Host) -> None:
    host.network("net1", "--ipv6")
    run(host, "web", "net1", "--restart", "always", "-p", "8080:80")
    for number in (signal.SIGTERM, signal.SIGKILL):
        host.dockerd.stop(number)
        host.dockerd.start()
        wait_for("web to run again", lambda: host.inspect("web", "{{.State.Running}}") == "true")
        wait_for("its port", lambda: answers(host, "host", ["tcp 8080"]) == [True, True], seconds=10)


def test_a_port_that_somebody_has_is_refused_with_who_it_is(host: Host) -> None:
    host.network("net1")
    run(host, "web", "net1", "-p", "8080:80")
    said = host.docker_refuses("run", "--net", "net1", "--name", "second", "-p", "8080:80", "-d", IMAGE, "sleep", "9")
    assert f"port 8080/tcp of this host is published for container web on node {host.name}; choose another" in said
    host.docker("rm", "--force", "web")
    host.docker("start", "second")
    assert published(host, "second") == [(8080, 80)]

    assert host.docker_refuses("run", "--name", "bridged", "-p", "8080:80", "-d", IMAGE, "sleep", "9")
    host.docker("rm", "bridged")
    host.docker("run", "--name", "bridged", "-p", "8084:80", "-d", IMAGE, "sleep", "1000")
    said = host.docker_refuses("run", "--net", "net1", "-p", "8084:80", "-d", IMAGE, "sleep", "9")
    assert "port 8084/tcp of this host is in use by " in said

    log = host.machine.directory / "server.log"
    server = host.machine.start(sys.executable, "-c", _SERVER, log=log)
    wait_for("the server to listen", lambda: log.exists() and "ready" in log.read_text())
    said = host.docker_refuses("run", "--net", "net1", "-p", "8085:80", "-d", IMAGE, "sleep", "9")
    assert "port 8085/tcp of this host is in use by python" in said
    server.stop(signal.SIGKILL)
    assert "203.0.113.99 is no address of this host" in host.docker_refuses(
        "run", "--net", "net1", "-p", "203.0.113.99:8086:80", "-d", IMAGE, "sleep", "9"
    )


def test_docker_publishes_while_a_network_of_its_own_has_the_default_route(host: Host) -> None:
    host.network("net1")
    host.docker("network", "create", "first")
    run(host, "web", "net1", "-p", "8080:80")
    assert published(host, "web") == [(8080, 80)]
    host.docker("network", "connect", "first", "web")
    assert host.docker("port", "web", "80/tcp")
    assert published(host, "web") == []
    assert answers(host, "host", ["tcp 8080"])[0]
    host.docker("network", "disconnect", "first", "web")
    assert published(host, "web") == [(8080, 80)]
    wait_for("the port", lambda: answers(host, "host", ["tcp 8080"])[0], seconds=5)


@pytest.mark.parametrize("ports", [("-P", "--expose", "80"), ("-p", "80"), ("-p", "9000-9005:80")], ids=" ".join)
def test_where_any_port_will_do_status_says_which(host: Host, ports: tuple[str, ...]) -> None:
    host.network("net1")
    run(host, "web", "net1", *ports)
    ((number, _),) = published(host, "web")
    assert f"{number}:80/tcp" in host.calico("status")
    assert answers(host, "host", [f"tcp {number}"])[0]


def test_a_container_on_two_networks_publishes_once(host: Host) -> None:
    for name in ("net1", "net2"):
        host.network(name)
    run(host, "web", "net2", "-p", "8080:80", "-p", "81")
    host.docker("network", "connect", "net1", "web")
    assert [number for number, _ in published(host, "web")].count(8080) == 1
    assert len(published(host, "web")) == 2
    host.docker("stop", "web")
    host.docker("start", "web")
    assert len(published(host, "web")) == 2
    wait_for("the port", lambda: answers(host, "host", ["tcp 8080"])[0], seconds=5)

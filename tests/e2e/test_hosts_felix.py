"""Beside Calico's own node agent, played by a process of its name that does nothing, and a table in its place."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.etcd import a_host, etcd_in, on_etcd
from tests.e2e.lab import Host, Lab, dockers
from tests.e2e.machine import Process, wait_for
from tests.e2e.several_hosts import pinging
from tests.e2e.traffic import PROBE, UDP_PORT, Traffic
from tests.etcd_server import EtcdServer

NODE = "/calico/resources/v3/projectcalico.org/nodes/"
_NODE = """
apiVersion: projectcalico.org/v3
kind: Node
metadata: {{name: {name}}}
spec: {{bgp: {{ipv4Address: 172.30.0.99/24}}}}
"""
_AS_FELIX_WOULD = """
table ip calico {{
  chain forward {{
    type filter hook forward priority 0;
    ip saddr {source} ip daddr {destination} drop
  }}
}}
"""


@pytest.fixture(scope="module")
def etcd(lab: Lab) -> Iterator[EtcdServer]:
    with etcd_in(lab) as server:
        yield server


@contextmanager
def felix_on(host: Host) -> Iterator[Process]:
    program = host.machine.directory / "calico-felix"
    shutil.copy("/bin/sleep", program)
    process = host.machine.start(str(program), "infinity", log=host.machine.directory / "felix.log")
    wait_for("Felix", lambda: Path(f"/proc/{process.pid}/comm").read_text() == "calico-felix\n")
    try:
        yield process
    finally:
        process.stop()


def status_file(host: Host, endpoint: str) -> Path:
    directory = host.machine.root / "run/calico/endpoint-status"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"libnetwork libnetwork%2Flibnetwork {endpoint}"


def kernel(host: Host) -> str:
    """What an agent would write, without counters and what changes by itself."""
    settings = 'sysctl -ar "^net.ipv[46].(conf|ip_forward)" 2>/dev/null'
    command = f"nft list ruleset; iptables-save -t filter; ip route; ip -6 route; ip -o link; {settings}"
    lines = host.machine.run("sh", "-c", command).splitlines()
    return "\n".join(re.sub(r"\[\d+:\d+\]| expires \d+sec", "", line) for line in lines if not line.startswith("#"))


def test_where_felix_runs_nothing_but_the_veth_is_ours(lab: Lab, etcd: EtcdServer) -> None:
    with a_host(lab, dockers()[-1]) as host, felix_on(host):
        host.plugin.environment = {"ETCD_ENDPOINTS": etcd.endpoint}
        host.calico("apply", "-f", "-", text=_NODE.format(name=host.name))
        before, node = kernel(host), etcd.control("get", NODE + host.name)
        with on_etcd(host, etcd):
            wait_for("the plugin", lambda: "Felix programs this host" in host.calico("status"))
            host.network("net1")
            assert_joins_when_felix_says_so(host)
            changed = set(kernel(host).splitlines()) ^ set(before.splitlines())
            assert [line for line in changed if "cali" not in line and "docker" not in line] == []
            assert not re.search(r"table|proto 80|dev cali\w+ scope link", "\n".join(changed))
            host.machine.run("ip", "address", "add", "172.30.0.88/24", "dev", "eth0")
            host.docker("rm", "--force", "workload-A")
            assert etcd.control("get", NODE + host.name) == node


def assert_joins_when_felix_says_so(host: Host) -> None:
    """Join answers as soon as the file is there, and not before."""
    status_file(host, "another").touch()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(host.workload, "workload-A", "net1")
        wait_for("the endpoint", host.endpoints)
        time.sleep(0.5)
        assert not running.done()
        (name,) = host.endpoints()
        status_file(host, name.rpartition("-")[2]).touch()
        running.result(timeout=2)


def test_felix_takes_over_without_an_open_or_a_closed_moment(lab: Lab) -> None:
    with a_host(lab, dockers()[-1]) as host:
        host.plugin.start()
        host.network("net1")
        host.network("net2")
        traffic = Traffic(host)
        for name, network in (("workload-A", "net1"), ("workload-B", "net1"), ("workload-D", "net2")):
            traffic.workload(name, network)
        endpoints = [
            host.endpoint(f"workload-{name}", network)["EndpointID"]
            for name, network in (("A", "net1"), ("B", "net1"), ("D", "net2"))
        ]
        stranger = traffic.address("workload-D", "IPv4")
        log = host.machine.directory / "insist.log"
        python = str(Path(".venv/bin/python").absolute())
        insisting = host.machine.start(
            *traffic.inside("workload-A"), python, PROBE, "insist", stranger, UDP_PORT, "0.05", log=log
        )
        with pinging((host, "workload-A", traffic.address("workload-B", "IPv4"))), felix_on(host):
            wait_for("Felix to be seen", lambda: "Felix has appeared" in host.plugin.log.read_text())
            play_felix(host, traffic.address("workload-A", "IPv4"), stranger)
            time.sleep(1)
            assert "calico-libnetwork" in host.machine.run("nft", "list", "tables")
            routes = host.machine.run("ip", "route")
            for endpoint in endpoints:
                status_file(host, endpoint).touch()
            wait_for("the hand-over", lambda: "calico-libnetwork" not in host.machine.run("nft", "list", "tables"))
            assert host.machine.run("ip", "route") == routes
            time.sleep(0.5)
        insisting.stop()
        traffic.close()
        assert log.read_text().count("sent") > 20
        assert "answered" not in log.read_text()


def play_felix(host: Host, source: str, destination: str) -> None:
    """Its rules for one forbidden conversation, and its way past Docker's FORWARD chain."""
    host.machine.run("nft", "-f", "-", text=_AS_FELIX_WOULD.format(source=source, destination=destination))
    for option in ("-i", "-o"):
        host.machine.run("iptables", "-I", "FORWARD", option, "cali+", "-j", "ACCEPT")

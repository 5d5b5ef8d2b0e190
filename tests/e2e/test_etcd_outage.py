"""etcd hangs, dies, comes late or comes back with older data: containers do not notice, and users are told."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.e2e.etcd import on_etcd
from tests.e2e.lab import RESOURCES, Host, dockers, tail
from tests.e2e.machine import ask, wait_for
from tests.e2e.test_restart import pinging
from tests.etcd_server import EtcdServer

pytestmark = pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")

PATIENCE = 15
"""Seconds within which docker says what is wrong."""
SOON = 15
"""Seconds within which what an outage left behind is gone."""


@pytest.fixture
def host(host_on_etcd: Host) -> Host:
    return host_on_etcd


@contextmanager
def killed(etcd: EtcdServer) -> Iterator[None]:
    etcd.stop(kill=True)
    yield
    etcd.start()


def outage(etcd: EtcdServer, kind: str) -> AbstractContextManager[None]:
    return etcd.paused() if kind == "hanging" else killed(etcd)


@pytest.mark.parametrize("kind", ["hanging", "dead"])
def test_containers_do_not_notice_an_outage_and_docker_is_told(host: Host, etcd: EtcdServer, kind: str) -> None:
    host.network("net1", "--ipv6")
    host.network("net2")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")
    host.workload("stopped", "net1", "--stop-timeout", "0")
    host.workload("removed", "net1")
    host.workload("stranger", "net2")
    target = host.ipv4("workload-B", "net1")

    with pinging(host, "workload-A", target):
        with outage(etcd, kind):
            assert not host.pings("stranger", target)
            started = time.monotonic()
            refusal = host.docker_refuses("run", "--net", "net1", "--name", "late", "-d", "busybox", "sleep", "1")
            assert time.monotonic() - started < PATIENCE
            assert re.search(rf"RequestAddress: etcd \({etcd.endpoint}\) does not answer: .+", refusal), refusal
            for command in (("stop", "stopped"), ("rm", "--force", "removed")):
                started = time.monotonic()
                host.docker(*command)
                assert time.monotonic() - started < PATIENCE
            assert host.pings("workload-A", "workload-B.net1", "-6")
        wait_for("the next container", lambda: host.machine.try_run("docker", "start", "late").returncode == 0)
        assert not host.pings("stranger", target)
        host.docker("rm", "--force", "late")
        remain = {host.endpoint(name, "net1")["EndpointID"] for name in ("workload-A", "workload-B")}
        remain.add(host.endpoint("stranger", "net2")["EndpointID"])
        wait_for(
            "the endpoints of the stopped and the removed container to go",
            lambda: {name[-64:] for name in host.endpoints()} == remain,
            seconds=SOON,
            found=host.endpoints,
        )
    wait_for("their addresses", lambda: "5 addresses are assigned" in host.calico("ipam", "check"), seconds=5)
    assert host.machine.interfaces("cali") == {f"cali{endpoint[:11]}" for endpoint in remain}
    host.docker("start", "stopped")
    assert host.pings("workload-A", "stopped.net1")


def test_a_network_removed_during_an_outage_leaves_nothing(host: Host, etcd: EtcdServer) -> None:
    """Docker does not wait: container and network are gone for it before the datastore hears of either."""
    host.network("net1")
    host.network("net2")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net2")
    with etcd.paused():
        host.docker("rm", "--force", "workload-A", "workload-B")
        host.docker("network", "rm", "net1")
    host.docker("network", "rm", "net2")  # while the container's endpoint may still be there
    wait_for("everything to go", lambda: not host.traces(), seconds=SOON, found=host.traces)
    assert host.stored("/calico-libnetwork/v1/networks/") == []


def test_a_start_without_etcd_answers_and_goes_on_when_it_appears(bare_host: Host, etcd: EtcdServer) -> None:
    etcd.stop()
    log = bare_host.plugin.log
    start = log.stat().st_size if log.exists() else 0
    with on_etcd(bare_host, etcd) as host:
        for socket in host.plugin.sockets:
            assert "NetworkDriver" in ask(socket, "/Plugin.Activate")
            assert "global" in ask(socket, "/NetworkDriver.GetCapabilities")
        waiting = "waiting for the datastore"
        wait_for("the log to say so", lambda: waiting in tail(log, start=start), seconds=15)
        (line,) = [line for line in tail(log, start=start).splitlines() if waiting in line]
        assert f"etcd ({etcd.endpoint}) does not answer" in line
        started = time.monotonic()
        refusal = host.docker_refuses("network", "create", "-d", "calico", "--ipam-driver", "calico-ipam", "net1")
        assert "etcd" in refusal
        assert time.monotonic() - started < PATIENCE

        etcd.start()
        host.network("net1")
        host.workload("workload-A", "net1")
        host.workload("workload-B", "net1")
        assert host.pings("workload-A", "workload-B.net1")


def test_data_restored_from_before_lose_no_running_container(host: Host, etcd: EtcdServer) -> None:
    """What they do not know is recorded again with the addresses that it has; the others notice nothing."""
    host.network("net1", "--ipv6")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")
    snapshot = etcd.save()
    host.workload("forgotten", "net1", "--stop-timeout", "0")
    known = host.endpoints()
    stored = described(host)
    target = host.ipv4("workload-B", "net1")
    pid = host.plugin.pid
    with pinging(host, "workload-A", target):
        etcd.restore(snapshot)
        wait_for("the forgotten endpoint", lambda: host.endpoints() == known, seconds=20, found=host.endpoints)
        assert described(host) == stored
        wait_for("its traffic", lambda: host.pings("forgotten", target), seconds=5)
        assert host.pings("workload-A", host.ipv6("forgotten", "net1"), "-6")
        host.workload("workload-C", "net1")
        assert host.pings("workload-C", host.ipv4("forgotten", "net1"))
    assert host.plugin.pid == pid
    assert "8 addresses are assigned" in host.calico("ipam", "check")
    host.docker("restart", "forgotten")
    assert host.pings("forgotten", target)
    assert len(host.endpoints()) == 4


def test_an_endpoint_deleted_by_hand_comes_back(host: Host, etcd: EtcdServer) -> None:
    host.network("net1")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")
    before = described(host)
    for prefix in ("/calico/ipam/v2/handle/", "/calico/ipam/v2/assignment/", f"{RESOURCES}/workloadendpoints/"):
        etcd.control("del", "--prefix", prefix)
    wait_for("both endpoints", lambda: len(host.endpoints()) == 2, seconds=10)
    assert described(host) == before
    wait_for("their traffic", lambda: host.pings("workload-A", host.ipv4("workload-B", "net1")), seconds=5)
    assert "2 addresses are assigned" in host.calico("ipam", "check")


def described(host: Host) -> list[dict[str, Any]]:
    """All workload endpoints but for what tells one writing from another."""
    items = json.loads(host.calico("get", "workloadendpoints", "--all-namespaces", "--output", "json"))["items"]
    for item in items:
        for field in ("uid", "creationTimestamp", "resourceVersion"):
            del item["metadata"][field]
    return sorted(items, key=lambda item: str(item["metadata"]["name"]))

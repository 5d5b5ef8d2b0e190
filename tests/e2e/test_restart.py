"""Restarts and damage: of the plugin, by hand, and of the daemon, with containers running all along."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab import Host, dockers
from tests.e2e.machine import ask, wait_for

SIGNALS = [signal.SIGTERM, signal.SIGKILL]


@contextmanager
def pinging(host: Host, container: str, target: str) -> Iterator[None]:
    """Ten pings a second all along; fails if one was lost."""
    log = host.machine.directory / "ping.log"
    log.unlink(missing_ok=True)
    pid = host.inspect(container, "{{.State.Pid}}")
    ping = host.machine.start("nsenter", "-t", pid, "-n", "ping", "-i", "0.1", target, log=log)
    wait_for("the first ping", lambda: "time=" in log.read_text())
    yield
    before = _answered(log)
    wait_for("pings after the restart", lambda: _answered(log) > before + 3, found=log.read_text)
    ping.stop(signal.SIGINT)
    assert re.search(r" 0% packet loss", log.read_text()), log.read_text()[-2000:]


def _answered(log: Path) -> int:
    return log.read_text().count("time=")


def pair(host: Host) -> tuple[str, str]:
    """workload-A and workload-B on net1, both families; returns B's addresses. Their shell ignores SIGTERM."""
    host.network("net1", "--ipv6")
    host.workload("workload-A", "net1", "--stop-timeout", "0")
    host.workload("workload-B", "net1", "--stop-timeout", "0")
    return host.ipv4("workload-B", "net1"), host.ipv6("workload-B", "net1")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_restart_of_the_plugin_loses_no_packet(host: Host, number: signal.Signals) -> None:
    ipv4, ipv6 = pair(host)
    with pinging(host, "workload-A", ipv4):
        host.plugin.stop(number)
        assert host.pings("workload-A", ipv6, "-6")
        host.plugin.start()
    host.workload("workload-C", "net1")
    assert host.pings("workload-C", "workload-A.net1")
    host.docker("rm", "--force", "workload-A")
    assert len(host.endpoints()) == 2


@pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")
def test_containers_started_while_the_plugin_restarts_have_their_network(host: Host) -> None:
    """Docker 29 takes a container's network for good if its Join fails."""
    host.network("net1")
    names = [f"workload-{number}" for number in range(8)]
    start = host.plugin.log.stat().st_size
    with ThreadPoolExecutor() as pool:
        starts = [pool.submit(host.workload, name, "net1") for name in names]
        wait_for("the first start", lambda: "CreateEndpoint" in host.plugin.log.read_text()[start:])
        host.plugin.restart()
        for started in starts:
            started.result()

    assert len({host.ipv4(name, "net1") for name in names}) == 8
    for name in names[1:]:
        assert host.pings(names[0], f"{name}.net1")


def test_isolation_holds_while_the_plugin_is_down(host: Host) -> None:
    ipv4, _ = pair(host)
    host.network("net2")
    host.workload("stranger", "net2")
    host.plugin.stop(signal.SIGKILL)

    assert not host.pings("stranger", ipv4)
    host.plugin.start()
    assert not host.pings("stranger", ipv4)
    assert host.pings("workload-A", ipv4)


DAMAGE = {
    "IPv4 route": "ip route del {ipv4} dev {interface}",
    "IPv6 route": "ip -6 route del {ipv6} dev {interface}",
    "neighbour": "ip neighbour del {ipv4} dev {interface}",
    "map element": 'nft delete element inet calico-libnetwork to_wl "{{ "{interface}" }}"',
    "chain": "nft flush chain inet calico-libnetwork forward_ingress",
    "table": "nft delete table inet calico-libnetwork",
    "everything": "nft flush ruleset; ip link set {interface} down; ip link set {interface} up",
    "sysctl": "sysctl -q -w net.ipv4.conf.{interface}.proxy_arp=0 net.ipv4.conf.{interface}.forwarding=0",
}


def damage(host: Host, kind: str) -> None:
    endpoint = host.endpoint("workload-B", "net1")
    values = {"interface": f"cali{endpoint['EndpointID'][:11]}"}
    values |= {"ipv4": endpoint["IPAddress"], "ipv6": endpoint["GlobalIPv6Address"]}
    command = DAMAGE[kind].format(**values).replace('"{ ', "'{ ").replace(' }"', " }'")
    host.machine.run("sh", "-c", command)


def shown(host: Host) -> list[str]:
    """What the kernel holds of ours, in a form that compares."""
    commands = (
        "ip -o route; ip -o -6 route; ip -o neighbour show nud permanent; nft list table inet calico-libnetwork;"
        " sysctl net.ipv4.conf | grep -E 'cali.*(proxy_arp|forwarding)'"
    )
    lines = host.machine.try_run("sh", "-c", commands).stdout.splitlines()
    return sorted(re.sub(r"packets \d+ bytes \d+", "", line).strip() for line in lines)


def wait_for_repair(host: Host, before: list[str]) -> None:
    def difference() -> str:
        return "\n".join(["", *unified_diff(before, shown(host), "before", "now", n=0, lineterm="")])

    wait_for("the kernel as it was", lambda: shown(host) == before, seconds=15, found=difference)


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_by_hand_while_it_runs_comes_back(host: Host, kind: str) -> None:
    ipv4, ipv6 = pair(host)
    before = shown(host)
    damage(host, kind)

    wait_for_repair(host, before)
    assert host.pings("workload-A", ipv4)
    wait_for("IPv6 to answer", lambda: host.pings("workload-A", ipv6, "-6"), seconds=5)


def test_what_is_damaged_while_the_plugin_is_down_comes_back(host: Host) -> None:
    ipv4, ipv6 = pair(host)
    before = shown(host)
    host.plugin.stop()
    for kind in ("IPv4 route", "IPv6 route", "neighbour", "sysctl", "table"):
        damage(host, kind)
    host.plugin.start()

    wait_for_repair(host, before)
    assert host.pings("workload-A", ipv4)
    wait_for("IPv6 to answer", lambda: host.pings("workload-A", ipv6, "-6"), seconds=5)


@pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")  # all wait as long, one is enough
def test_containers_removed_while_the_plugin_was_down_leave_nothing(host: Host) -> None:
    """Docker gives up on each of its calls after 15 s and never repeats them."""
    pair(host)
    host.plugin.stop()
    host.docker("kill", "workload-B", seconds=100)
    wait_for("docker to give up", lambda: host.inspect("workload-B", "{{.State.Running}}") == "false", seconds=100)
    host.plugin.start()

    wait_for("one endpoint", lambda: len(host.endpoints()) == 1, seconds=30, found=host.endpoints)
    wait_for("two addresses", lambda: "2 addresses are assigned" in host.calico("ipam", "check"), seconds=30)


@pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")  # no daemon takes part
def test_a_release_that_comes_after_a_kill_leaves_the_addresses_next_owner_alone(host: Host) -> None:
    """The calls of a daemon that had an endpoint deleted, and repeats its release until a plugin answers."""
    network = host.network("net1")
    address = call(host, "IpamDriver.RequestAddress", PoolID="CalicoPoolIPv4")["Address"]
    last, following = "b" * 64, "c" * 64
    call(host, "NetworkDriver.CreateEndpoint", NetworkID=network, EndpointID=last, Interface={"Address": address})
    call(host, "NetworkDriver.DeleteEndpoint", NetworkID=network, EndpointID=last)
    host.plugin.restart(signal.SIGKILL)

    given = {"PoolID": "CalicoPoolIPv4", "Address": address.partition("/")[0]}
    assert call(host, "IpamDriver.RequestAddress", **given) == {"Address": address}
    call(host, "NetworkDriver.CreateEndpoint", NetworkID=network, EndpointID=following, Interface={"Address": address})
    call(host, "IpamDriver.ReleaseAddress", **given)
    assert host.endpoints() == {f"{host.name}-libnetwork-libnetwork-{following}"}
    assert len(host.stored("/calico/ipam/v2/handle/")) == 1

    call(host, "NetworkDriver.DeleteEndpoint", NetworkID=network, EndpointID=following)
    call(host, "IpamDriver.ReleaseAddress", **given)
    killed_over = f"cali{last[:11]}"  # its deletion may not have begun, then it goes after ten seconds as a stray
    wait_for("the interface to go", lambda: not any(killed_over in trace for trace in host.traces()), seconds=30)


def call(host: Host, method: str, **request: object) -> dict[str, Any]:
    """As Docker calls it."""
    answer = ask(host.plugin.sockets[0], f"/{method}", body=json.dumps(request), seconds=10)
    head, _, body = answer.partition("\r\n\r\n")
    assert " 200 " in head.splitlines()[0], answer
    return dict(json.loads(body))


def test_a_restart_of_the_daemon_stops_and_starts_containers(host: Host) -> None:
    pair(host)
    host.docker("update", "--restart=always", "workload-A")
    host.dockerd.stop()
    assert host.endpoints() == set()
    host.dockerd.start()

    wait_for("workload-A", lambda: host.inspect("workload-A", "{{.State.Running}}") == "true")
    assert len(host.endpoints()) == 1
    host.docker("start", "workload-B")
    assert host.pings("workload-A", "workload-B.net1")


def test_what_a_killed_daemon_left_is_cleared_away(host: Host) -> None:
    """Its containers die with it; at its next start it only releases their addresses."""
    pair(host)
    host.dockerd.stop(signal.SIGKILL)
    host.dockerd.start()

    wait_for("no endpoint", lambda: host.endpoints() == set(), seconds=45, found=host.endpoints)
    host.docker("start", "workload-A", "workload-B")
    assert host.pings("workload-A", "workload-B.net1")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_live_restore_keeps_containers_and_their_traffic(host: Host, number: signal.Signals) -> None:
    host.dockerd.stop()
    host.dockerd.start("--live-restore")
    ipv4, _ = pair(host)
    with pinging(host, "workload-A", ipv4):
        host.dockerd.stop(number)
        host.plugin.restart()
        host.dockerd.start("--live-restore")
    assert len(host.endpoints()) == 2
    host.docker("rm", "--force", "workload-B")
    wait_for("one endpoint", lambda: len(host.endpoints()) == 1, found=host.endpoints)
    host.workload("workload-C", "net1")
    assert host.pings("workload-A", "workload-C.net1")


def test_a_container_that_runs_without_its_network_is_a_finding_until_it_is_back(host: Host) -> None:
    """As Docker 29 leaves one whose start failed in its last step."""
    host.network("net1")
    host.workload("web", "net1")
    host.docker("network", "disconnect", "net1", "web")
    host.docker("restart", "--time", "0", "web")
    finding = "container web was started on network net1 and is on none now: docker network connect net1 web"
    wait_for("the finding", lambda: finding in host.calico("status"))
    host.plugin.restart()
    wait_for("the finding after a restart", lambda: host.plugin.ready() and finding in host.calico("status"))
    host.docker("network", "connect", "net1", "web")
    wait_for("its end", lambda: finding not in host.calico("status"))

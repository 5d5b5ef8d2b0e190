"""Users and damage at random on two hosts with one etcd; then everything is as Docker says, and nothing is left over.

``CHAOS_SECONDS`` and ``CHAOS_SEED`` make it longer, or as it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.e2e.chaos import NETWORKS, POLICY, Chaos
from tests.e2e.etcd import etcd_in
from tests.e2e.invariants import attachments, violations, wrong_packets
from tests.e2e.lab import Host, Lab
from tests.e2e.several_hosts import release
from tests.e2e.test_restart import shown

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
SETTLED = 120.0
"""Seconds within which everything left behind is found: what nothing accounts for has to last 45 first."""


@pytest.fixture
def chaos(lab: Lab) -> Iterator[Chaos]:
    seed = os.environ.get("CHAOS_SEED") or str(time.time_ns())
    with ExitStack() as stack:
        etcd = stack.enter_context(etcd_in(lab))
        hosts = []
        for version in ("28", "20.10"):
            host = lab.host(release(version))
            stack.callback(lab.remove, host)
            host.etcd = etcd
            host.plugin.start(ETCD_ENDPOINTS=etcd.endpoint)
            hosts.append(host)
        yield Chaos(hosts, etcd, seed)


@pytest.mark.timeout(SECONDS + 4 * SETTLED)
def test_whatever_happens_everything_ends_as_docker_says(chaos: Chaos) -> None:
    print(f"\nCHAOS_SEED={chaos.seed}")
    try:
        chaos.run(SECONDS)
        quiesce(chaos)
        until("nothing is wrong", lambda: violations(chaos.hosts))
        until("packets go where they may", lambda: wrong_packets(chaos.hosts), seconds=20)
        for host in chaos.hosts:
            check_table(host)
        clear(chaos.hosts)
        for host in chaos.hosts:
            until("nothing is left", host.traces)
    except BaseException:
        print("\n".join(chaos.journal))
        raise
    finally:
        print(f"{sum(chaos.counts.values())} operations: {dict(chaos.counts)}")


def quiesce(chaos: Chaos) -> None:
    """No policy is left, and who lost an interface by hand gets another by being started again."""
    for host in chaos.hosts:
        for each in attachments(host):
            if each.interface in chaos.lost:
                host.docker("restart", "--time", "0", each.container)
    documents = "---".join(POLICY.format(network=network, action="Allow") for network in NETWORKS)
    chaos.hosts[0].calico("delete", "--skip-not-exists", "-f", "-", text=documents)
    chaos.note("nothing disturbs any more")


def clear(hosts: Sequence[Host]) -> None:
    for host in hosts:
        containers = host.docker("ps", "--all", "--quiet").split()
        if containers:
            host.docker("rm", "--force", *containers)
    for host in hosts:
        for network in host.docker("network", "ls", "--filter", "driver=calico", "--quiet").split():
            host.machine.try_run("docker", "network", "rm", network)  # by now it may have gone with the other host's


def check_table(host: Host) -> None:
    """What a process finds that has nothing to go by is what it would have written itself."""
    before = shown(host)
    host.plugin.stop()
    host.machine.run("nft", "delete", "table", "inet", "calico-libnetwork")
    host.plugin.start()
    until("the table is as it was", lambda: sorted({*before} ^ {*shown(host)}), seconds=20)


def until(what: str, wrong: Callable[[], Sequence[str]], *, seconds: float = SETTLED) -> None:
    deadline = time.monotonic() + seconds
    while found := wrong():
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {seconds:g} s: {what}\n" + "\n".join(found))
        time.sleep(0.5)

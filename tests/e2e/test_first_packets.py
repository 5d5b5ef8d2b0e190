"""A container that a policy quarantines by its label sends from its first instruction on, and nothing arrives.

Its network lets everything out, so whoever opens an endpoint before its labels are known lets the first packets go.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.lab import IMAGE, OUTSIDE, OUTSIDE6, Host
from tests.e2e.machine import wait_for
from tests.e2e.traffic import Resources, Traffic, arrivals

STARTS = int(os.environ.get("CALICO_LAB_STARTS", "12"))
AT_ONCE = 4
QUARANTINED = "--label=org.projectcalico.label.quarantine=true"
POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: quarantine}
spec:
  selector: quarantine == 'true'
  types: [Egress]
  egress: [{action: Deny}]
"""
ECHO_REQUEST = "icmp type echo-request", "icmpv6 type echo-request"


@pytest.fixture
def quarantine(host: Host, traffic: Traffic, resources: Resources) -> None:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true")
    host.network("net1", "--ipv6")
    traffic.workload("target", "net1")
    resources.apply(POLICY)


def pinging(traffic: Traffic) -> Sequence[str]:
    """The command of a container that pings both families, next door and outside, as its first act and for a second."""
    targets = [traffic.address("target", family) for family in ("IPv4", "IPv6")] + [OUTSIDE, OUTSIDE6]
    pings = " & ".join(f"ping -q -c 5 -i 0.2 -W 1 {target}" for target in targets)
    return (IMAGE, "sh", "-c", f"{pings} & wait")


def start(host: Host, number: int, command: Sequence[str], *options: str) -> None:
    """Every second one was created before, as Compose does it."""
    arguments = ("--net", "net1", "--name", f"workload-{number}", *options, *command)
    if number % 2:
        host.docker("create", *arguments)
        host.docker("start", f"workload-{number}")
    else:
        host.docker("run", "--detach", *arguments)


def ended(host: Host, number: int) -> bool:
    return host.inspect(f"workload-{number}", "{{.State.Status}}") == "exited"


@pytest.mark.usefixtures("quarantine")
def test_not_one_packet_of_a_quarantined_container_arrives(host: Host, traffic: Traffic) -> None:
    command = pinging(traffic)

    def live(number: int) -> None:
        start(host, number, command, QUARANTINED)
        wait_for("the container to end", lambda: ended(host, number))
        host.docker("rm", f"workload-{number}")

    with (
        arrivals(host.machine, *ECHO_REQUEST, inside=traffic.inside("target")) as at_target,
        arrivals(host.fabric, *ECHO_REQUEST) as outside,
    ):
        start(host, 0, command)
        wait_for("all pings of a container at liberty", lambda: (at_target(), outside()) == (10, 10))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(live, range(1, STARTS + 1)))
        assert (at_target(), outside()) == (10, 10)


@pytest.mark.usefixtures("quarantine")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_none_arrives_when_the_daemon_starts_the_container(
    host: Host, traffic: Traffic, number: signal.Signals
) -> None:
    with arrivals(host.fabric, *ECHO_REQUEST) as outside:
        start(host, 1, pinging(traffic), QUARANTINED, "--restart=always", "--stop-timeout=0")
        host.dockerd.stop(number)
        host.plugin.restart()
        host.dockerd.start()

        wait_for("the container to have run", lambda: int(host.inspect("workload-1", "{{.RestartCount}}")) > 0)
        assert outside() == 0

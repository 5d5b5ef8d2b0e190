"""Policies come, change and go, and the plugin dies and comes back, with packets on their way all along.

What every state allows gets through at every moment, what every state forbids never does, and what has begun is
not cut.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.e2e.lab import Host
from tests.e2e.machine import wait_for
from tests.e2e.test_policy import one_docker
from tests.e2e.traffic import FAMILIES, Resources, Tally, Traffic, arrivals


def policy(name: str, selector: str, spec: str) -> str:
    head = f"apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\n"
    return f"{head}spec: {{selector: {json.dumps(selector)}, {spec}}}\n---\n"


FROM_CLIENT = "ingress: [{action: Allow, source: {selector: role == 'client'}}]"
FROM_CLIENT_IN_PARTS = """ingress: [
  {action: Deny, source: {selector: role == 'stranger'}},
  {action: Allow, protocol: UDP, source: {selector: "has(role) && role != 'stranger'"}, destination: {ports: [3306]}},
  {action: Allow, protocol: ICMP}, {action: Allow, protocol: ICMPv6}]"""
OUT = policy("out", "role != 'server'", "types: [Egress], egress: [{action: Allow}]")
SERVER = policy("server", "role == 'server'", FROM_CLIENT)
OTHER_SERVER = policy("other-server", "role == 'server'", f"order: 7, {FROM_CLIENT}")
TIER = """
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: early}
spec: {order: 10, defaultAction: Pass}
---
"""

Change = Callable[[Host, Resources], None]


def applied(documents: str) -> Change:
    return lambda _, resources: resources.apply(documents)


def deleted(documents: str) -> Change:
    return lambda _, resources: resources.delete(documents)


def replaced_while_killed(host: Host, resources: Resources) -> None:
    host.plugin.stop(signal.SIGKILL)
    resources.apply(SERVER)
    resources.delete(OTHER_SERVER)
    host.plugin.start()


def killed(host: Host, _: Resources) -> None:
    host.plugin.restart(signal.SIGKILL)


STRANGER = policy("stranger", "role == 'stranger'", "order: 1, types: [Egress], egress: [{action: Deny}]")
TIERED = policy("early.server", "role == 'server'", "tier: early, ingress: [{action: Log}, {action: Pass}]")
CHANGES: list[Change] = [
    applied(policy("first", "all()", "order: -1, ingress: [{action: Deny, source: {selector: role == 'nobody'}}]")),
    applied(policy("server", "role == 'server'", FROM_CLIENT_IN_PARTS)),
    killed,
    applied(policy("server", "has(role) && role in {'server', 'spare'}", FROM_CLIENT)),
    applied(OTHER_SERVER),
    deleted(SERVER),
    applied(TIER + TIERED),
    replaced_while_killed,
    applied(STRANGER),
    deleted(TIERED),
    killed,
]


@contextmanager
def lossless(traffic: Traffic, source: str, destination: str) -> Iterator[None]:
    """One conversation per family all along: twenty pings a second, none of which may be lost."""
    pings, logs = [], []
    for family in FAMILIES:
        log = traffic.host.machine.directory / f"{source}.{family}.ping.log"
        log.unlink(missing_ok=True)
        command = ("ping", "-n", "-i", "0.05", traffic.address(destination, family))
        pings.append(traffic.host.machine.start(*traffic.inside(source), *command, log=log))
        logs.append(log)
    wait_for("the first pings", lambda: all("time=" in log.read_text() for log in logs))
    yield
    for ping, log in zip(pings, logs, strict=True):
        ping.stop(signal.SIGINT)
        assert " 0% packet loss" in log.read_text(), log.read_text()[-1000:]


def more(*tallies: Tally) -> None:
    """Returns when each has seen another half second, and fails if one does not."""
    before = [tally.sent for tally in tallies]
    wait_for(
        "new flows", lambda: all(now.sent > then + 10 for now, then in zip(tallies, before, strict=True)), seconds=10
    )


@one_docker
def test_changes_open_nothing_that_is_forbidden_and_cut_nothing_that_is_allowed(
    host: Host, traffic: Traffic, resources: Resources
) -> None:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true", CALICO_LIBNETWORK_CREATE_PROFILES="false")
    host.network("net1", "--ipv6")
    for role in ("server", "client", "stranger"):
        traffic.workload(role, "net1", f"--label=org.projectcalico.label.role={role}")
    resources.apply(TIER + OUT + SERVER)
    traffic.expect(lambda flow: (flow.source, flow.destination) == ("client", "server"))
    strangers = [f"ip saddr {traffic.address('stranger', 'IPv4')}", f"ip6 saddr {traffic.address('stranger', 'IPv6')}"]

    with ExitStack() as stack:
        arrived = stack.enter_context(arrivals(host.machine, *strangers, inside=traffic.inside("server")))
        stack.enter_context(lossless(traffic, "client", "server"))
        denied = stack.enter_context(traffic.insisting("stranger", "server", patience=0.01))
        with traffic.insisting("client", "server", patience=1.5) as allowed:
            for change in CHANGES:
                change(host, resources)
                more(allowed, denied)
            assert allowed.unanswered <= 1
        resources.delete(SERVER)
        traffic.expect(lambda _: False)
        more(denied)
        assert arrived() == 0
        resources.apply(policy("server", "role == 'server'", "order: 0, ingress: [{action: Allow}]"))
        resources.delete(STRANGER)
        wait_for("the strangers' packets, now that they may", lambda: arrived() > 0)

"""Profiles alone: what a Docker network promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import AnyResource
from tests.policy_worlds import OUTSIDE, addresses, interface
from tests.system.conftest import Namespace, Workloads
from tests.system.packets import ICMP, ICMPV6, TCP, UDP, Packet
from tests.system.policy_lab import HOST_V4, HOST_V6, Lab, Rules, lab, resource, workload


@pytest.fixture
def host(namespace: Namespace, workloads: Workloads) -> Iterator[Lab]:
    with lab(namespace, workloads, 4) as made:
        yield made


def network_profile(name: str) -> tuple[ResourceKey, AnyResource]:
    label = f"network.projectcalico.org/{name}"
    spec: dict[str, Any] = {
        "labelsToApply": {label: ""},
        "ingress": [{"action": "Allow", "source": {"selector": f"has({label})"}}],
        "egress": [{"action": "Allow"}],
    }
    return resource("Profile", name, spec)


def probes(source: int, destination: int) -> list[Packet]:
    packets = []
    for version, echo in ((0, (ICMP, 8)), (1, (ICMPV6, 128))):
        from_, to = addresses(source)[version], addresses(destination)[version]
        packets += [Packet(from_, to, protocol, 1000, 80) for protocol in (TCP, UDP)]
        packets.append(Packet(from_, to, *echo))
    return packets


def test_workloads_of_one_network_reach_each_other_and_no_other(host: Lab) -> None:
    rules = Rules()
    rules.put(network_profile("red"), network_profile("blue"))
    rules.put(workload(1, profiles=["red"]), workload(2, profiles=["red"]))
    rules.put(workload(3, profiles=["blue"]), workload(4, profiles=["missing"]))
    host.load(rules.text())
    assert all(host.deliver(probes(1, 2)))
    for source, destination in ((1, 3), (3, 1), (1, 4), (4, 1), (4, 2)):
        assert not any(host.deliver(probes(source, destination))), (source, destination)


def test_interfaces_without_an_endpoint_are_dropped_and_one_more_endpoint_opens(host: Lab) -> None:
    rules = Rules()
    host.load(rules.text())
    assert not any(host.deliver(probes(1, 2)))
    rules.put(network_profile("red"), workload(1, profiles=["red"]))
    host.load(rules.text())
    assert not any(host.deliver(probes(1, 2)))
    assert not any(host.deliver(probes(2, 1)))
    rules.put(workload(2, profiles=["red"]))
    host.load(rules.text())
    assert all(host.deliver(probes(1, 2)))
    rules.delete(workload(1)[0])
    host.load(rules.text())
    assert not any(host.deliver(probes(2, 1)))


def test_the_outside_is_reached_and_does_not_reach_in(host: Lab) -> None:
    rules = Rules()
    rules.put(network_profile("red"), workload(1, profiles=["red"]))
    host.load(rules.text())
    for outside in OUTSIDE:
        own = addresses(1)[0 if outside.version == 4 else 1]
        assert host.delivered(Packet(own, outside, TCP, 1000, 443))
        assert not host.delivered(Packet(outside, own, TCP, 1000, 443))


def test_foreign_source_addresses_do_not_leave_a_workload(host: Lab) -> None:
    rules = Rules()
    rules.put(network_profile("red"), workload(1, profiles=["red"]), workload(2, profiles=["red"]))
    host.load(rules.text())
    to_v4, to_v6 = addresses(2)
    for own, other in ((addresses(1)[0], to_v4), (addresses(1)[1], to_v6)):
        assert host.deliver([Packet(own, other, UDP, 1000, 80)], via=interface(1)) == [True]
    for foreign, other in ((addresses(3)[0], to_v4), (OUTSIDE[0], to_v4), (addresses(3)[1], to_v6)):
        assert host.deliver([Packet(foreign, other, UDP, 1000, 80)], via=interface(1)) == [False]


@pytest.mark.parametrize(("action", "reached"), [(None, False), ("Drop", False), ("Return", True), ("Accept", True)])
def test_the_own_host_is_closed_unless_configured_otherwise(host: Lab, action: str | None, *, reached: bool) -> None:
    rules = Rules()
    rules.put(network_profile("red"), workload(1, profiles=["red"]))
    if action:
        rules.put(resource("FelixConfiguration", "default", {"defaultEndpointToHostAction": "Drop"}))
        rules.put(resource("FelixConfiguration", "node.n1", {"defaultEndpointToHostAction": action}))
    host.load(rules.text())
    v4, v6 = addresses(1)
    assert host.delivered(Packet(v4, HOST_V4, UDP, 1000, 53)) is reached
    assert host.delivered(Packet(v6, HOST_V6, TCP, 1000, 53)) is reached
    # an IPv6 router must hear its neighbours whatever policy says
    assert host.delivered(Packet(v6, HOST_V6, ICMPV6, 135, 0))
    assert host.delivered(Packet(OUTSIDE[0], HOST_V4, UDP, 1000, 53))

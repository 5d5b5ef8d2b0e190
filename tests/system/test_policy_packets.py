"""What the rules do besides letting packets through or not: conversations, marks, masquerading, tunnels, spoofing."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import msgspec
import pytest

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import CONTAINER_ID, AnyResource
from tests.policy_worlds import OUTSIDE, addresses, interface
from tests.system.conftest import Namespace, Workloads
from tests.system.packets import UDP, Packet
from tests.system.policy_lab import HOST_MAC, HOST_V4, Lab, Rules, inside, lab, resource, workload

_PORT = 8080
_PATIENCE = 0.3


@pytest.fixture
def host(namespace: Namespace, workloads: Workloads) -> Iterator[Lab]:
    with lab(namespace, workloads, 2) as made:
        yield made


@pytest.fixture
def rules() -> Rules:
    made = Rules()
    made.put(*(workload(number, profiles=["projectcalico-default-allow"]) for number in (1, 2)))
    return made


def _closed(**spec: object) -> tuple[ResourceKey, AnyResource]:
    return resource("GlobalNetworkPolicy", "closed", {"types": ["Ingress", "Egress"], **spec})


def _listener(namespace: Namespace) -> socket.socket:
    def make() -> socket.socket:
        made = socket.create_server(("0.0.0.0", _PORT))
        made.settimeout(5)
        return made

    return inside(namespace, make)


def _connect(namespace: Namespace, address: IPv4Address) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket()
        try:
            made.settimeout(_PATIENCE)
            made.connect((str(address), _PORT))
            made.settimeout(5)
        except BaseException:
            made.close()
            raise
        return made

    return inside(namespace, make)


def _datagram_socket(namespace: Namespace, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        made.settimeout(5)
        return made

    return inside(namespace, make)


def test_conversations_survive_a_policy_that_forbids_new_ones(host: Lab, rules: Rules) -> None:
    one, two = host.talk(1), host.talk(2)
    host.load(rules.text())
    with _listener(two) as listener, _connect(one, addresses(2)[0]) as client:
        server, _ = listener.accept()
        with server:
            rules.put(_closed())
            host.load(rules.text())
            client.sendall(b"still there?")
            assert server.recv(100) == b"still there?"
            server.sendall(b"yes")
            assert client.recv(100) == b"yes"
            with pytest.raises(TimeoutError):
                _connect(one, addresses(2)[0])


def test_conversations_end_when_the_endpoint_goes(host: Lab, rules: Rules) -> None:
    one, two = host.talk(1), host.talk(2)
    host.load(rules.text())
    with _listener(two) as listener, _connect(one, addresses(2)[0]) as client:
        server, _ = listener.accept()
        with server:
            rules.delete(workload(1)[0])
            host.load(rules.text())
            client.sendall(b"hello")
            server.settimeout(_PATIENCE)
            with pytest.raises(TimeoutError):
                server.recv(100)


@pytest.mark.parametrize("direction", ["Ingress", "Egress"])
def test_denied_packets_are_answered_where_the_configuration_says_reject(
    host: Lab, rules: Rules, direction: str
) -> None:
    one, two = host.talk(1), host.talk(2)
    rules.put(_closed(types=[direction], ingress=[{"action": "Deny"}]))
    rules.put(resource("FelixConfiguration", "default", {"nftablesFilterDenyAction": "Reject"}))
    host.load(rules.text())
    with _listener(two), pytest.raises(OSError, match=r".") as refused:
        _connect(one, addresses(2)[0])
    assert refused.value.errno == errno.ECONNREFUSED


def test_pools_hide_behind_the_host_towards_the_outside_only(host: Lab, rules: Rules) -> None:
    one, two, outside = host.talk(1), host.talk(2), host.talk_outside()
    rules.put(resource("IPPool", "pool", {"cidr": "10.65.0.0/16", "natOutgoing": True}))
    host.load(rules.text())
    with _datagram_socket(one) as client, _datagram_socket(two, 53) as inner, _datagram_socket(outside, 53) as outer:
        client.sendto(b"question", (str(OUTSIDE[0]), 53))
        _, origin = outer.recvfrom(100)
        assert origin[0] == str(HOST_V4)
        outer.sendto(b"answer", origin)
        assert client.recv(100) == b"answer"
        client.sendto(b"question", (str(addresses(2)[0]), 53))
        assert inner.recvfrom(100)[1][0] == str(addresses(1)[0])
        rules.put(resource("IPPool", "pool", {"cidr": "10.65.0.0/16"}))
        host.load(rules.text())
        host.forget_flows()
        client.sendto(b"question", (str(OUTSIDE[0]), 53))
        assert outer.recvfrom(100)[1][0] == str(addresses(1)[0])


_OBSERVER = """table inet observer {
    counter marked { }
    counter unmarked { }
    counter left { }
    chain forward { type filter hook forward priority 0;
        meta mark & 0x00010000 != 0 counter name marked
        meta mark & 0x00010000 == 0 counter name unmarked
    }
    chain postrouting { type filter hook postrouting priority 300;
        meta mark & 0x00030000 != 0 counter name left
    }
}
"""


def _counters(host: Lab) -> dict[str, int]:
    listing = host.host.run("nft", "reset", "counters", "table", "inet", "observer").replace("counter", "\ncounter")
    words = [line.split() for line in listing.splitlines() if "{" in line or "packets" in line]
    names = [line[1] for line in words if line[0] == "counter"]
    return dict(zip(names, (int(line[line.index("packets") + 1]) for line in words if "packets" in line), strict=True))


def test_accepted_packets_carry_the_mark_for_docker_unless_a_bridge_is_involved(
    host: Lab, rules: Rules, workloads: Workloads
) -> None:
    passing = _closed(ingress=[{"action": "Pass"}], egress=[{"action": "Pass"}])
    rules.put(passing, resource("Tier", "default", {}))
    host.load(rules.text() + _OBSERVER)
    bridged = workloads.namespace()
    commands = f"""link add docker9 type bridge
        link set docker9 address {HOST_MAC} up
        addr add 172.30.0.1/24 dev docker9
        neigh replace 172.30.0.2 lladdr 02:00:00:00:dd:01 dev docker9 nud permanent
        link add port9 type veth peer name inner9
        link set port9 master docker9 up
        link set inner9 netns {bridged.path}"""
    host.host.run("ip", "-batch", "-", stdin=commands)
    bridged.run("ip", "link", "set", "inner9", "up")
    own, other = addresses(1)[0], addresses(2)[0]
    assert all(host.deliver([Packet(own, other, UDP, 1, 2), Packet(own, OUTSIDE[0], UDP, 1, 2)]))
    assert _counters(host) == {"marked": 2, "unmarked": 0, "left": 0}
    host.send(Packet(own, IPv4Address("172.30.0.2"), UDP, 1, 2))
    host.arrived()
    assert _counters(host) == {"marked": 0, "unmarked": 1, "left": 0}


def test_tunnelled_packets_are_taken_from_nodes_alone(host: Lab, rules: Rules) -> None:
    node, stranger = OUTSIDE[0], OUTSIDE[1]
    packets = [Packet(source, HOST_V4, UDP, 1000, 4789) for source in (node, stranger)]
    rules.put(resource("Node", "n2", {"bgp": {"ipv4Address": f"{node}/24"}}))
    host.load(rules.text())
    assert host.deliver(packets) == [True, True]
    rules.put(resource("IPPool", "pool", {"cidr": "10.65.0.0/16", "vxlanMode": "Always"}))
    host.load(rules.text())
    assert host.deliver(packets) == [True, False]


def test_prefixes_that_may_be_spoofed_leave_the_workload_that_may(host: Lab, rules: Rules) -> None:
    foreign = IPv4Address("10.99.0.7")
    packet = Packet(foreign, addresses(2)[0], UDP, 1000, 80)
    rules.put(workload(1, profiles=["projectcalico-default-allow"], allowSpoofedSourcePrefixes=["10.99.0.0/24"]))
    host.load(rules.text())
    assert host.deliver([packet], via=interface(1)) == [False]
    rules.put(resource("FelixConfiguration", "default", {"workloadSourceSpoofing": "Any"}))
    host.load(rules.text())
    assert host.deliver([packet], via=interface(1)) == [True]
    assert host.deliver([Packet(foreign, addresses(1)[0], UDP, 1000, 80)], via=interface(2)) == [False]


def _members(*numbers: int, container: str) -> Iterator[tuple[ResourceKey, AnyResource]]:
    """Endpoints that are interfaces of one container."""
    for number in numbers:
        key, endpoint = workload(number, profiles=["projectcalico-default-allow"], labels={"number": str(number)})
        metadata = msgspec.structs.replace(endpoint.metadata, annotations={CONTAINER_ID: container})
        yield key, msgspec.structs.replace(endpoint, metadata=metadata)


def test_each_interface_of_a_container_may_carry_the_addresses_of_all(
    namespace: Namespace, workloads: Workloads
) -> None:
    rules = Rules()
    foreign = workload(3, profiles=["projectcalico-default-allow"])
    with lab(namespace, workloads, 3) as host:
        through_the_other = [Packet(addresses(2)[n], addresses(3)[n], UDP, 1000, 80) for n in (0, 1)]
        rules.put(foreign, *_members(1, container="a" * 64), *_members(2, container="b" * 64))
        host.load(rules.text())
        assert host.deliver(through_the_other, via=interface(1)) == [False, False]

        rules.put(*_members(1, 2, container="a" * 64))
        host.load(rules.text())
        assert host.deliver(through_the_other, via=interface(1)) == [True, True]
        assert host.deliver([Packet(addresses(1)[0], addresses(3)[0], UDP, 1000, 80)], via=interface(2)) == [True]
        strangers = [Packet(IPv4Address("10.99.0.7"), addresses(1)[0], UDP, 1000, 80)]
        strangers += [Packet(addresses(3)[n], addresses(2)[n], UDP, 1000, 80) for n in (0, 1)]
        assert host.deliver(strangers, via=interface(1)) == [False, False, False]
        assert host.deliver(through_the_other, via=interface(3)) == [False, False]

        rules.delete(*(key for key, _ in _members(2, container="a" * 64)))
        host.load(rules.text())
        assert host.deliver(through_the_other, via=interface(1)) == [False, False]


def test_a_packet_meets_the_egress_policy_of_the_endpoint_whose_address_it_bears(
    namespace: Namespace, workloads: Workloads
) -> None:
    rules = Rules()
    spec = {"selector": "number == '2'", "types": ["Egress"]}
    with lab(namespace, workloads, 3) as host:
        rules.put(workload(3, profiles=["projectcalico-default-allow"]), *_members(1, 2, container="a" * 64))
        rules.put(resource("GlobalNetworkPolicy", "silent", spec))
        host.load(rules.text())
        packets = [Packet(addresses(number)[0], addresses(3)[0], UDP, 1000, 80) for number in (1, 2)]
        assert host.deliver(packets, via=interface(1)) == [True, False]
        assert host.deliver(packets, via=interface(2)) == [True, False]
        rules.delete(ResourceKey("GlobalNetworkPolicy", "silent"))
        host.load(rules.text())
        assert host.deliver(packets, via=interface(1)) == [True, True]

"""Connections to published ports of the host, in the kernel: who is reached, who is seen, who is let through."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from calico_libnetwork.model.kinds import ResourceKey
from tests.policy_worlds import OUTSIDE, addresses
from tests.system.conftest import Namespace, Workloads
from tests.system.policy_lab import HOST_V4, HOST_V6, Lab, Rules, inside, lab, resource, workload

Address = IPv4Address | IPv6Address

_PATIENCE = 0.3
_ALLOWED = "projectcalico-default-allow"


def published(host_port: int, port: int = 80, *, protocol: str = "TCP", at: str = "") -> dict[str, Any]:
    return {"name": "published", "protocol": protocol, "port": port, "hostPort": host_port, "hostIP": at}


@pytest.fixture
def host(namespace: Namespace, workloads: Workloads) -> Iterator[Lab]:
    with lab(namespace, workloads, 2) as made:
        yield made


@pytest.fixture
def rules(host: Lab) -> Rules:
    made = Rules()
    ports = [published(8080), published(5353, 53, protocol="UDP"), published(8081, at=str(HOST_V4))]
    made.put(resource("FelixConfiguration", "default", {"defaultEndpointToHostAction": "Accept"}))
    made.put(workload(1, profiles=[_ALLOWED], ports=ports), workload(2, profiles=[_ALLOWED]))
    host.load(made.text())
    return made


@contextmanager
def serving(namespace: Namespace, port: int = 80) -> Iterator[socket.socket]:
    """In both families."""
    listener = inside(
        namespace, lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    listener.settimeout(5)
    with listener:
        yield listener


def client_seen(listener: socket.socket, source: Namespace, address: Address, port: int) -> Address:
    """Who the server takes the client for, once the two have talked. Raises ``OSError``."""

    def connect() -> socket.socket:
        return socket.create_connection((str(address), port), timeout=_PATIENCE)

    with ExitStack() as stack:
        client = stack.enter_context(inside(source, connect))
        server, origin = listener.accept()
        stack.enter_context(server)
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        server.sendall(b"yes")
        assert client.recv(100) == b"yes"
        assert client.getpeername()[:2] == (str(address), port)
        found = IPv6Address(origin[0])
        return found.ipv4_mapped or found


@pytest.mark.usefixtures("rules")
def test_the_container_sees_who_connects_from_the_outside_its_neighbours_and_its_host(host: Lab) -> None:
    one, two, outside = host.talk(1), host.talk(2), host.talk_outside()
    with serving(one) as listener:
        assert client_seen(listener, outside, HOST_V4, 8080) == OUTSIDE[0]
        assert client_seen(listener, two, HOST_V4, 8080) == addresses(2)[0]
        assert client_seen(listener, two, HOST_V6, 8080) == addresses(2)[1]
        assert client_seen(listener, host.host, HOST_V4, 8080) == HOST_V4
        assert client_seen(listener, host.host, HOST_V6, 8080) == HOST_V6


@pytest.mark.usefixtures("rules")
def test_a_container_reaches_itself_through_its_host(host: Lab) -> None:
    one = host.talk(1)
    with serving(one) as listener:
        assert client_seen(listener, one, HOST_V4, 8080) == HOST_V4
        assert client_seen(listener, one, HOST_V6, 8080) == HOST_V6


@pytest.mark.usefixtures("rules")
def test_a_port_at_one_address_is_none_at_another(host: Lab) -> None:
    one, two = host.talk(1), host.talk(2)
    with serving(one) as listener:
        assert client_seen(listener, two, HOST_V4, 8081) == addresses(2)[0]
        host.host.run("ip", "address", "add", "192.0.2.77/32", "dev", "lo")
        for address in (HOST_V6, IPv4Address("192.0.2.77")):
            with pytest.raises(ConnectionRefusedError):
                client_seen(listener, two, address, 8081)


@pytest.mark.usefixtures("rules")
def test_datagrams_get_there_and_back(host: Lab) -> None:
    def bound(port: int = 0) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", port))
        made.settimeout(5)
        return made

    one, outside = host.talk(1), host.talk_outside()
    with inside(one, lambda: bound(53)) as server, inside(outside, bound) as client:
        client.sendto(b"question", (str(HOST_V4), 5353))
        _, origin = server.recvfrom(100)
        assert origin[0] == str(OUTSIDE[0])
        server.sendto(b"answer", origin)
        assert client.recvfrom(100) == (b"answer", (str(HOST_V4), 5353))


def test_policy_decides_by_the_client_and_the_containers_own_port(host: Lab, rules: Rules) -> None:
    one, two, outside = host.talk(1), host.talk(2), host.talk_outside()
    rule = {"action": "Allow", "protocol": "TCP", "source": {"nets": [f"{OUTSIDE[0]}/32"]}}
    rule["destination"] = {"ports": [80]}
    rules.put(resource("GlobalNetworkPolicy", "outside", {"types": ["Ingress"], "ingress": [rule]}))
    host.load(rules.text())
    with serving(one) as listener:
        assert client_seen(listener, outside, HOST_V4, 8080) == OUTSIDE[0]
        with pytest.raises(TimeoutError):
            client_seen(listener, two, HOST_V4, 8080)
        rule["destination"] = {"ports": [8080]}
        rules.put(resource("GlobalNetworkPolicy", "outside", {"types": ["Ingress"], "ingress": [rule]}))
        host.load(rules.text())
        with pytest.raises(TimeoutError):
            client_seen(listener, outside, HOST_V4, 8080)
        assert client_seen(listener, host.host, HOST_V4, 8080) == HOST_V4


def test_a_policy_can_name_what_is_published(host: Lab, rules: Rules) -> None:
    one, two = host.talk(1), host.talk(2)
    rule = {"action": "Allow", "protocol": "TCP", "destination": {"ports": ["published"]}}
    rules.put(resource("GlobalNetworkPolicy", "published", {"types": ["Ingress"], "ingress": [rule]}))
    host.load(rules.text())
    with serving(one) as listener, serving(one, 81) as other:
        assert client_seen(listener, two, HOST_V4, 8080) == addresses(2)[0]
        with pytest.raises(TimeoutError):
            client_seen(other, two, addresses(1)[0], 81)


def test_a_port_that_nobody_publishes_any_more_is_the_hosts_again(host: Lab, rules: Rules) -> None:
    two = host.talk(2)
    rules.put(workload(1, profiles=[_ALLOWED]))
    host.load(rules.text())
    with serving(host.host, 8080) as listener:
        assert client_seen(listener, two, HOST_V4, 8080) == addresses(2)[0]


@pytest.mark.usefixtures("rules")
def test_what_the_host_has_on_its_loopback_stays_there(host: Lab) -> None:
    with serving(host.host, 8080) as listener:
        for address in (IPv4Address("127.0.0.1"), IPv6Address("::1")):
            assert client_seen(listener, host.host, address, 8080) == address


@pytest.mark.usefixtures("rules")
def test_where_docker_publishes_the_same_port_dockers_container_has_it(host: Lab) -> None:
    two, outside = host.talk(2), host.talk_outside()
    host.load(
        "table ip nat { chain PREROUTING { type nat hook prerouting priority -100;\n"
        f"fib daddr type local tcp dport 8080 dnat to {addresses(2)[0]}:90\n}}\n}}\n"
    )
    with serving(two, 90) as listener:
        assert client_seen(listener, outside, HOST_V4, 8080) == OUTSIDE[0]


def test_a_closed_endpoint_publishes_nothing(host: Lab, rules: Rules) -> None:
    one, two = host.talk(1), host.talk(2)
    rules.delete(ResourceKey("Profile", "x"), workload(1)[0])
    host.load(rules.text())
    with serving(one) as listener, pytest.raises(ConnectionRefusedError):
        client_seen(listener, two, HOST_V4, 8080)

"""Ports held by the kernel's own means, in a network namespace of the test's own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address

import pytest

from calico_libnetwork.docker.host_ports import HostPorts, bind
from calico_libnetwork.docker.published_ports import AskedPort, HostPort
from calico_libnetwork.errors import PortInUse, Refused
from calico_libnetwork.model.ipam_keys import Address
from tests.system.conftest import Namespace

BOTH = (4, 6)
ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def ports(namespace: Namespace) -> Iterator[HostPorts]:
    namespace.run("ip", "link", "set", "lo", "up")
    made = HostPorts(is_here=lambda _: True, owner=lambda endpoint_id: f"endpoint {endpoint_id[:1]}", hold=bind)
    yield made
    made.close()


def asked(number: int, *, last: int = 0, protocol: str = "tcp", address: Address | None = None) -> AskedPort:
    return AskedPort(protocol, 80, address, number, last or number)


def refused(family: int, kind: int, address: str, port: int) -> bool:
    """Whether a server that does as servers do does not get the port."""
    with socket.socket(family, kind) as server:
        try:
            if kind == socket.SOCK_STREAM:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            if kind == socket.SOCK_STREAM:
                server.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
async def test_a_held_port_is_no_other_servers_until_it_is_given_back(
    ports: HostPorts, protocol: str, kind: int
) -> None:
    await ports.take(ONE, [asked(8080, protocol=protocol)], BOTH)
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")):
        assert refused(family, kind, address, 8080)
    with pytest.raises(PortInUse, match=f"port 8080/{protocol} of this host is published for endpoint 1") as error:
        await ports.take(TWO, [asked(8080, protocol=protocol)], BOTH)
    assert error.value.holder == ONE
    ports.release(ONE)
    assert not refused(socket.AF_INET, kind, "0.0.0.0", 8080)
    await ports.take(TWO, [asked(8080, protocol=protocol)], BOTH)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_who_has_a_port_is_named(ports: HostPorts, protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as server:
        server.bind(("127.0.0.1", 8080))
        if protocol == "tcp":
            server.listen()
        with pytest.raises(PortInUse, match=rf"in use by \S+ \(process {os.getpid()}\); choose another") as error:
            await ports.take(ONE, [asked(8081, protocol=protocol), asked(8080, protocol=protocol)], BOTH)
        assert error.value.holder == ""
    assert ports.of(ONE) == ()
    await ports.take(ONE, [asked(8080, protocol=protocol)], BOTH)


@pytest.mark.parametrize(
    ("versions", "elsewhere"), [((4,), (socket.AF_INET6, "::1")), ((6,), (socket.AF_INET, "127.0.0.1"))]
)
async def test_a_port_is_held_in_the_containers_families(
    ports: HostPorts, versions: tuple[int, ...], elsewhere: tuple[int, str]
) -> None:
    await ports.take(ONE, [asked(8080)], versions)
    assert not refused(elsewhere[0], socket.SOCK_STREAM, elsewhere[1], 8080)


async def test_a_server_that_has_just_ended_leaves_its_port_free(ports: HostPorts) -> None:
    with closing(socket.create_server(("127.0.0.1", 8080))) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    await ports.take(ONE, [asked(8080)], BOTH)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_any_port_is_a_free_one_that_is_then_held(ports: HostPorts, protocol: str) -> None:
    (first, second) = await ports.take(ONE, [asked(0, protocol=protocol), asked(0, protocol=protocol)], BOTH)
    assert first.host_port != second.host_port
    assert 32768 <= first.host_port <= 60999
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    assert refused(socket.AF_INET, kind, "0.0.0.0", first.host_port)


async def test_of_a_range_what_is_free_is_taken(ports: HostPorts) -> None:
    with closing(socket.create_server(("", 8000))):
        assert await ports.take(ONE, [asked(8000, last=8001)], BOTH) == (HostPort("tcp", 80, 8001, None),)
        with pytest.raises(PortInUse, match="ports 8000 to 8001 of this host are all in use"):
            await ports.take(TWO, [asked(8000, last=8001)], BOTH)


async def test_an_address_of_another_host_is_refused(ports: HostPorts) -> None:
    with pytest.raises(Refused, match="is no address of this host"):
        await ports.take(ONE, [asked(8080, address=IPv4Address("203.0.113.9"))], BOTH)
    assert ports.of(ONE) == ()


async def test_after_a_restart_ports_are_held_as_far_as_they_are_free(ports: HostPorts) -> None:
    mine = (HostPort("tcp", 80, 8080, None), HostPort("tcp", 81, 8081, None))
    with closing(socket.create_server(("", 8081))):
        assert list(ports.keep(ONE, mine, BOTH)) == ["port 8081/tcp of this host: Address already in use"]
    assert refused(socket.AF_INET, socket.SOCK_STREAM, "", 8080)
    with pytest.raises(PortInUse, match="published for endpoint 1"):
        await ports.take(TWO, [asked(8081)], BOTH)

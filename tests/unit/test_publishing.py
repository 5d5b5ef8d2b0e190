"""``docker run -p``: which ports of the host an endpoint gets, when it is refused, which of a container's has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from calico_libnetwork.cli.status import ports_of
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.containers import Container
from calico_libnetwork.docker.endpoints import with_ports
from calico_libnetwork.docker.published_ports import AskedPort, HostPort, asked_ports
from calico_libnetwork.errors import DatastoreUnavailable, PortInUse, Refused
from calico_libnetwork.model.validation.documents import validate
from tests.unit.docker_fakes import NODE, FakeVeths, Host, running_host

NET = "1" * 64
ONE, TWO = "a1" * 32, "b2" * 32
BOX, OTHER_BOX = "/var/run/docker/netns/c575657a5fd2", "/var/run/docker/netns/999999999999"


def asked(host: int, port: int = 80, *, last: int = 0, protocol: int = 6, at: str = "") -> dict[str, Any]:
    """As Docker sends it."""
    return {"Proto": protocol, "IP": "", "Port": port, "HostIP": at, "HostPort": host, "HostPortEnd": last or host}


def options(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"com.docker.network.portmap": list(ports)}


def endpoint(endpoint_id: str, *ports: dict[str, Any], v4: str = "", v6: str = "") -> messages.CreateEndpoint:
    address = v4 or f"10.65.0.{int(endpoint_id[:2], 16)}/32"
    interface = messages.EndpointInterface(address=address, address_ipv6=v6)
    return messages.CreateEndpoint(
        network_id=NET, endpoint_id=endpoint_id, interface=interface, options=options(*ports)
    )


def of(endpoint_id: str) -> messages.EndpointRequest:
    return messages.EndpointRequest(network_id=NET, endpoint_id=endpoint_id)


def joining(endpoint_id: str, sandbox: str) -> messages.Join:
    return messages.Join(network_id=NET, endpoint_id=endpoint_id, sandbox_key=sandbox, options={})


def connecting(endpoint_id: str, *ports: dict[str, Any]) -> messages.Connectivity:
    return messages.Connectivity(network_id=NET, endpoint_id=endpoint_id, options=options(*ports))


async def recorded(host: Host) -> dict[str, list[Any]]:
    """By endpoint, as far as they have any."""
    specs = [each["spec"] for each in await host.endpoints()]
    return {spec["endpoint"]: spec["ports"] for spec in specs if "ports" in spec}


async def published(host: Host) -> dict[str, list[int]]:
    return {endpoint_id: [port["hostPort"] for port in ports] for endpoint_id, ports in (await recorded(host)).items()}


async def test_the_endpoint_records_its_ports_as_calico_knows_them(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        ports = (asked(0, 79, protocol=132), asked(8080), asked(5353, 82, protocol=17, at="192.0.2.1"))
        with capture_logs() as lines:
            await host.drivers.network.create_endpoint(endpoint(ONE, *ports))
        (stored,) = await host.endpoints()
        held = [str(port) for port in host.ports.held]
    assert stored["spec"]["ports"] == [
        {"name": "published", "protocol": "TCP", "port": 80, "hostPort": 8080, "hostIP": ""},
        {"name": "published", "protocol": "UDP", "port": 82, "hostPort": 5353, "hostIP": "192.0.2.1"},
        {"name": "published", "protocol": "SCTP", "port": 79, "hostPort": 32769, "hostIP": ""},
    ]
    assert validate(stored).document["spec"] == stored["spec"]
    assert held == ["8080:80/tcp", "192.0.2.1:5353:82/udp", "32769:79/sctp"]
    assert [line["ports"] for line in lines if line["event"] == "ports are published"] == [", ".join(held)]


async def test_of_a_range_the_first_free_port_is_taken(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.ports.busy = {8000, 8001}
        driver = host.drivers.network
        await driver.create_endpoint(endpoint(ONE, asked(8000, last=8002)))
        assert await published(host) == {ONE: [8002]}
        with pytest.raises(PortInUse, match="ports 8000 to 8001 of this host are all in use; choose others"):
            await driver.create_endpoint(endpoint(TWO, asked(8000, last=8001)))


async def test_a_port_of_another_program_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.ports.busy = {8080}
        with pytest.raises(PortInUse, match=r"port 8080/tcp of this host is in use by .+; choose another"):
            await host.drivers.network.create_endpoint(endpoint(ONE, asked(8081), asked(8080)))
        assert (await host.endpoints(), host.veths.present, host.ports.held) == ([], {}, [])


async def test_a_port_at_an_address_that_the_host_does_not_have_is_refused(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.ports.elsewhere = {"203.0.113.9"}
        with pytest.raises(Refused, match=r"203\.0\.113\.9 is no address of this host; correct the option -p"):
            await host.drivers.network.create_endpoint(endpoint(ONE, asked(8080, at="203.0.113.9")))


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (asked(8080, at="127.0.0.1"), "the host's loopback leads to no container; use an address of the host"),
        (asked(8080, at="2001:db8::1"), "the container has no IPv6 address"),
        (asked(8080, protocol=33), "its protocol has no ports"),
    ],
)
async def test_what_cannot_be_published_is_said_and_the_container_starts(
    tmp_path: Path, wish: dict[str, Any], reason: str
) -> None:
    async with running_host(tmp_path) as host:
        with capture_logs() as lines:
            await host.drivers.network.create_endpoint(endpoint(ONE, wish, asked(8081)))
        assert await published(host) == {ONE: [8081]}
    assert [line["reason"] for line in lines if line["event"] == "a port is not published"] == [reason]


async def test_beside_felix_no_port_is_published_and_the_log_says_so(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.status.publishes_ports = False
        wishes = (asked(8081), asked(8082, 82, protocol=17, at="127.0.0.1"), asked(0, 83, protocol=132, at="::1"))
        with capture_logs() as lines:
            await host.drivers.network.create_endpoint(endpoint(ONE, *wishes))
            await host.drivers.network.program_external_connectivity(connecting(ONE, *wishes))
        assert (await recorded(host), host.ports.held) == ({}, [])
    said = [line["ports"] for line in lines if "published" in line["event"]]
    assert said == ["8081:80/tcp, 127.0.0.1:8082:82/udp, [::1]:83/sctp"]


async def test_another_containers_port_is_refused_at_once_where_docker_says_who_asks(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.table.put(Container(id="c1", name="web"))
        host.table.put(Container(id="c2", name="shop"))
        await start_named(host, ONE, "web")
        with pytest.raises(PortInUse, match="port 8080/tcp of this host is published for container web on node"):
            await start_named(host, TWO, "shop")
        assert await published(host) == {ONE: [8080]}
        await start_named(host, TWO, "web")
        assert await published(host) == {ONE: [8080]}


async def start_named(host: Host, endpoint_id: str, name: str) -> None:
    """As Docker 29 does, with the container's name beside the wish for an address."""
    wish = {"com.docker.network.endpoint.name": name}
    pool = messages.RequestAddress(pool_id="CalicoPoolIPv4", options=wish)
    address = (await host.drivers.ipam.request_address(pool)).address
    await host.drivers.network.create_endpoint(endpoint(endpoint_id, asked(8080), v4=address))


async def test_where_docker_does_not_say_who_asks_join_finds_out(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        driver = host.drivers.network
        await driver.create_endpoint(endpoint(ONE, asked(8080)))
        await driver.join(joining(ONE, BOX))
        await driver.create_endpoint(endpoint(TWO, asked(8080)))
        with pytest.raises(PortInUse, match="port 8080/tcp of this host is published for endpoint a1a1a1a1a1a1 on"):
            await driver.join(joining(TWO, OTHER_BOX))
        await driver.delete_endpoint(of(TWO))
        await driver.create_endpoint(endpoint(TWO, asked(8080)))
        await driver.join(joining(TWO, BOX))
        assert await published(host) == {ONE: [8080]}


async def test_of_a_containers_endpoints_the_one_with_its_default_route_publishes(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        driver = host.drivers.network
        for endpoint_id in (ONE, TWO):
            await driver.create_endpoint(endpoint(endpoint_id, asked(8080), asked(0, 81)))
            await driver.join(joining(endpoint_id, BOX))
        await driver.program_external_connectivity(connecting(ONE, asked(8080), asked(0, 81)))
        assert await published(host) == {ONE: [8080, 32769]}
        await driver.revoke_external_connectivity(of(ONE))
        assert (await recorded(host), host.ports.held) == ({}, [])
        await driver.program_external_connectivity(connecting(TWO, asked(8080), asked(0, 81)))
        assert list(await published(host)) == [TWO]
        assert len(host.ports.held) == 2


async def test_a_second_endpoint_gets_no_second_port_where_any_would_do(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        driver = host.drivers.network
        for endpoint_id in (ONE, TWO):
            await driver.create_endpoint(endpoint(endpoint_id, asked(0)))
            await driver.join(joining(endpoint_id, BOX))
        assert list(await published(host)) == [ONE]
        assert len(host.ports.held) == 1


async def test_a_port_taken_before_the_default_route_moves_here_stops_nothing(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        host.ports.busy = {8080}
        await host.drivers.network.create_endpoint(endpoint(ONE))
        with capture_logs() as lines:
            await host.drivers.network.program_external_connectivity(connecting(ONE, asked(8080)))
        assert await recorded(host) == {}
    (reason,) = (line["reason"] for line in lines if line["event"] == "no port is published")
    assert reason.startswith("port 8080/tcp of this host is in use by ")


async def test_a_deleted_endpoint_gives_its_ports_back_even_without_a_datastore(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint(ONE, asked(8080)))
        host.datastore.down = True
        with pytest.raises(DatastoreUnavailable):
            await host.drivers.network.delete_endpoint(of(ONE))
        assert host.ports.held == []


async def test_ports_are_held_again_after_a_restart_and_what_a_crash_left_holds_none(tmp_path: Path) -> None:
    veths = FakeVeths()
    async with running_host(tmp_path, veths=veths) as host:
        await host.drivers.network.create_endpoint(endpoint(ONE, asked(8080), asked(8081)))
    assert host.ports.held == []
    async with running_host(tmp_path, veths=veths, datastore=host.datastore) as host:
        assert [port.host_port for port in host.ports.held] == [8080, 8081]
        veths.present.clear()
        await host.drivers.network.create_endpoint(endpoint(TWO, asked(8080)))
        assert [port.host_port for port in host.ports.held] == [8080]


async def test_status_lists_what_this_node_publishes(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint(ONE, asked(8080), asked(53, protocol=17, at="192.0.2.1")))
        await host.drivers.network.create_endpoint(endpoint(TWO))
        values = {item.key: item.value for item in (await host.datastore.list(["/"])).items}
    assert ports_of(values, NODE) == ["a1a1a1a1a1a1  8080:80/tcp, 192.0.2.1:53:80/udp"]
    assert ports_of(values, "host-2") == []


async def test_without_ports_neither_connectivity_call_costs_a_transaction(tmp_path: Path) -> None:
    async with running_host(tmp_path) as host:
        await host.drivers.network.create_endpoint(endpoint(ONE))
        host.transactions()
        await host.drivers.network.program_external_connectivity(connecting(ONE))
        await host.drivers.network.revoke_external_connectivity(of(ONE))
        assert host.transactions() == 0


def test_ports_that_others_wrote_without_one_of_the_host_stay_when_ours_go() -> None:
    named = {"name": "http", "protocol": "TCP", "port": 80}
    before = {"spec": {"node": "n", "ports": [named], "allowSpoofedSourcePrefixes": ["10.0.0.0/8"]}}
    document = with_ports(before, [HostPort("tcp", 80, 8080, None)])
    assert list(document["spec"]) == ["node", "ports", "allowSpoofedSourcePrefixes"]
    assert [port["name"] for port in document["spec"]["ports"]] == ["http", "published"]
    assert with_ports(document, ()) == before


def test_what_docker_has_never_sent_is_refused() -> None:
    assert asked_ports(None) == asked_ports({"com.docker.network.portmap": None}) == ()
    assert asked_ports(options(asked(80))) == (AskedPort("tcp", 80, None, 80, 80),)
    for wrong in ("80", {"Proto": 6}, asked(80, at="localhost"), {"Proto": 6, "Port": "http"}):
        with pytest.raises(Refused, match="which is no port; correct the option -p"):
            asked_ports({"com.docker.network.portmap": [wrong]})


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("", "", True),
        ("", "192.0.2.1", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("0.0.0.0", "::", False),
        ("::", "2001:db8::1", True),
    ],
)
def test_ports_overlap_where_their_addresses_do(one: str, other: str, *, overlap: bool) -> None:
    mine, theirs = (
        HostPort("tcp", 80, 8080, asked_ports(options(asked(8080, at=address)))[0].host_address)
        for address in (one, other)
    )
    assert mine.overlaps(theirs) is theirs.overlaps(mine) is overlap
    assert not mine.overlaps(HostPort("udp", 80, 8080, None))

"""What a container gets: interface, routes, addresses, MAC, MTU, profile; and what it gets when asked otherwise."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import MakeHost
from tests.e2e.lab import OUTSIDE, Docker, Host, dockers

NFTABLES_BACKEND = "--firewall-backend=nftables"
ROUTES = ["default via 169.254.1.1 dev cali0", "169.254.1.1 dev cali0 scope link"]


def routes(host: Host, container: str, *options: str) -> list[str]:
    return [line.strip() for line in host.execute(container, "ip", *options, "route").splitlines()]


def spec(host: Host, kind: str, *arguments: str) -> dict[str, object]:
    answer = json.loads(host.calico("get", kind, *arguments, "--output", "json"))
    item = answer["items"][0] if "items" in answer else answer
    return dict(item["spec"])


def test_the_host_end_is_named_after_the_endpoint_and_the_routes_are_exactly_two(host: Host) -> None:
    host.network("net1")
    host.workload("workload-A", "net1")

    endpoint = host.endpoint("workload-A", "net1")["EndpointID"]
    assert host.machine.interfaces("cali") == {f"cali{endpoint[:11]}"}
    assert routes(host, "workload-A") == ROUTES
    assert "inet6" not in host.execute("workload-A", "ip", "address", "show", "dev", "cali0")


def test_ipv6_comes_with_its_own_default_route(host: Host) -> None:
    host.network("net1", "--ipv6")
    host.workload("workload-A", "net1")

    defaults = [line for line in routes(host, "workload-A", "-6") if line.startswith("default")]
    assert len(defaults) == 1
    assert defaults[0].startswith("default via fe80::")
    assert "dev cali0" in defaults[0]
    assert routes(host, "workload-A") == ROUTES


def test_the_workload_endpoint_is_the_one_calico_expects(host: Host) -> None:
    host.network("net1", "--ipv6")
    host.workload("workload-A", "net1")

    docker = host.endpoint("workload-A", "net1")
    node, endpoint = host.name, docker["EndpointID"]
    assert host.endpoints() == {f"{node}-libnetwork-libnetwork-{endpoint}"}
    stored = spec(host, "workloadendpoints", "--all-namespaces")
    assert stored["node"] == node
    assert stored["orchestrator"] == "libnetwork"
    assert stored["workload"] == "libnetwork"
    assert stored["endpoint"] == endpoint
    assert stored["interfaceName"] == f"cali{endpoint[:11]}"
    assert stored["ipNetworks"] == [f"{docker['IPAddress']}/32", f"{docker['GlobalIPv6Address']}/128"]
    assert stored["mac"] == docker["MacAddress"]
    assert stored["profiles"] == ["net1"]


def test_the_profile_lets_its_members_in_and_everything_out(host: Host) -> None:
    host.network("net1")
    host.workload("workload-A", "net1")

    profile = spec(host, "profiles", "net1")
    label = "network.projectcalico.org/net1"
    assert list(profile["labelsToApply"]) == [label]  # type: ignore[call-overload]
    assert profile["ingress"] == [
        {"action": "Allow", "source": {"selector": f"has({label})"}, "destination": {}},
    ]
    assert profile["egress"] == [{"action": "Allow", "source": {}, "destination": {}}]


def test_a_mac_asked_for_is_kept_and_any_other_is_shown(host: Host) -> None:
    host.network("net1")
    host.workload("asked", "net1", "--mac-address", "02:42:c0:a8:00:99")
    host.workload("other", "net1")

    for container in ("asked", "other"):
        shown = host.endpoint(container, "net1")["MacAddress"]
        assert host.execute(container, "cat", "/sys/class/net/cali0/address") == shown
    assert host.endpoint("asked", "net1")["MacAddress"] == "02:42:c0:a8:00:99"


def test_interface_prefix_and_mtu_follow_the_environment(host: Host) -> None:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_IFPREFIX="eth", CALICO_LIBNETWORK_VETH_MTU="1400")
    host.network("net1")
    host.workload("workload-A", "net1")

    assert "mtu 1400" in host.execute("workload-A", "ip", "link", "show", "dev", "eth0")
    assert routes(host, "workload-A")[0] == "default via 169.254.1.1 dev eth0"
    (interface,) = host.machine.interfaces("cali")
    assert "mtu 1400" in host.machine.run("ip", "link", "show", "dev", interface)


def test_without_profiles_nothing_passes(host: Host) -> None:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_CREATE_PROFILES="false")
    host.network("net1")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")

    assert "profiles" not in spec(host, "workloadendpoints", "--all-namespaces")
    assert not host.pings("workload-A", host.ipv4("workload-B", "net1"))


def test_labels_are_copied_only_when_asked_for_and_without_their_prefix(host: Host) -> None:
    labels = [f"--label=org.projectcalico.label.{label}" for label in ("foo=bar", "baz=quux")]
    options = [*labels, "--label=not=expected"]
    host.network("net1")
    host.workload("unlabelled", "net1", *options)
    assert "foo" not in host.calico("get", "workloadendpoints", "--all-namespaces", "--output", "yaml")
    host.docker("rm", "--force", "unlabelled")

    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true")
    host.workload("labelled", "net1", *options)
    items = json.loads(host.calico("get", "workloadendpoints", "--all-namespaces", "--output", "json"))["items"]
    (stored,) = [item["metadata"]["labels"] for item in items]
    assert {name: value for name, value in stored.items() if not name.startswith("projectcalico.org/")} == {
        "foo": "bar",
        "baz": "quux",
    }


@pytest.mark.parametrize("name", ["Net_1", "a.b-c", "x" * 200])
def test_any_network_name_docker_takes_isolates(host: Host, name: str) -> None:
    host.network(name)
    host.network("other")
    host.workload("workload-A", name)
    host.workload("workload-B", name)
    host.workload("workload-C", "other")

    assert host.pings("workload-A", host.ipv4("workload-B", name))
    assert not host.pings("workload-C", host.ipv4("workload-B", name))


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_the_first_ping_of_a_container_is_answered(host: Host, family: str) -> None:
    host.network("net1", "--ipv6")
    host.workload("target", "net1")
    address = host.ipv4("target", "net1") if family == "-4" else host.ipv6("target", "net1")

    for _ in range(5):
        host.docker("run", "--rm", "--net", "net1", "busybox", "ping", family, "-c", "1", "-W", "1", address)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_the_first_ping_to_a_container_is_answered(host: Host, family: str) -> None:
    host.network("net1", "--ipv6")
    host.workload("source", "net1")

    for number in range(5):
        host.workload(f"target-{number}", "net1")
        assert host.pings("source", f"target-{number}.net1", family)


def test_of_two_calico_networks_one_has_the_gateway_and_the_other_takes_over(host: Host) -> None:
    host.network("net1", "--ipv6")
    host.network("net2", "--ipv6")
    host.workload("in-1", "net1")
    host.workload("in-2", "net2")
    host.workload("workload-A", "net1")
    host.docker("network", "connect", "net2", "workload-A")

    assert host.pings("in-1", host.ipv4("workload-A", "net1"))
    assert host.pings("in-1", host.ipv6("workload-A", "net1"), "-6")
    assert host.pings("workload-A", "in-1.net1", "-4")
    assert not host.pings("in-1", host.ipv4("in-2", "net2"))
    assert host.execute("workload-A", "ip", "address", "show", "dev", "cali1").count("scope global") == 2

    host.docker("network", "disconnect", "net1", "workload-A")
    assert host.pings("in-2", host.ipv4("workload-A", "net2"))
    assert host.pings("in-2", host.ipv6("workload-A", "net2"), "-6")
    assert host.pings("workload-A", "in-2.net2", "-4")
    assert len(host.endpoints()) == 3


def test_connect_and_disconnect_of_a_running_container(host: Host) -> None:
    host.network("net1")
    host.workload("workload-A", "net1")
    host.docker("run", "--name", "workload-B", "-tid", "busybox")
    host.docker("network", "connect", "net1", "workload-B")
    address = host.ipv4("workload-B", "net1")
    assert host.pings("workload-A", address)

    host.docker("network", "disconnect", "net1", "workload-B")

    assert not host.pings("workload-A", address)
    assert len(host.endpoints()) == 1


def test_ipv6_alone_where_docker_can(host: Host, docker: Docker) -> None:
    if docker.release < (28,):
        assert "unknown flag" in host.docker_refuses("network", "create", "--ipv4=false", "--ipv6", "net6")
        return
    host.network("net6", "--ipv4=false", "--ipv6")
    host.workload("workload-A", "net6")
    host.workload("workload-B", "net6")

    assert host.pings("workload-A", "workload-B.net6", "-6")
    assert routes(host, "workload-A") == []
    assert host.ipv4("workload-A", "net6") == ""


def test_a_chosen_interface_name_is_given_where_docker_can(host: Host, docker: Docker) -> None:
    host.network("net1")
    chosen = "name=net1,driver-opt=com.docker.network.endpoint.ifname="
    host.docker("run", "--network", f"{chosen}wan0", "--name", "workload-A", "-tid", "busybox")
    name = "wan0" if docker.release >= (29, 8) else "cali0"
    assert f" {name}@" in host.execute("workload-A", "ip", "link")

    assert "interface name" in host.docker_refuses(
        "run", "--network", f"{chosen}a/b", "--name", "workload-B", "busybox"
    )
    assert "net1" in host.inspect("workload-B", "{{json .NetworkSettings.Networks}}")


def test_twenty_containers_started_at_once_get_twenty_addresses(host: Host) -> None:
    host.network("net1", "--ipv6")
    names = [f"workload-{number}" for number in range(20)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda name: host.workload(name, "net1"), names))

    assert len({host.ipv4(name, "net1") for name in names}) == 20
    assert len({host.ipv6(name, "net1") for name in names}) == 20
    assert host.pings("workload-0", "workload-19.net1")

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda name: host.docker("rm", "--force", name), names))
    assert host.endpoints() == set()


def test_stop_start_and_restart_keep_an_address_asked_for(host: Host) -> None:
    host.network("net1", "--subnet=192.168.0.0/16")
    host.workload("peer", "net1")
    host.workload("workload-A", "net1", "--ip", "192.168.77.7")

    host.docker("stop", "--time", "0", "workload-A")
    assert len(host.endpoints()) == 1
    host.docker("start", "workload-A")
    assert host.pings("peer", "192.168.77.7")
    host.docker("restart", "--time", "0", "workload-A")
    assert host.pings("peer", "192.168.77.7")
    assert host.ipv4("workload-A", "net1") == "192.168.77.7"


def test_forwarding_passes_dockers_drop_policy(make_host: MakeHost) -> None:
    host = make_host()
    host.dockerd.stop()
    host.plugin.stop()
    host.machine.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    host.machine.run("nft", "flush", "ruleset")
    host.dockerd.start()
    host.plugin.start()
    host.docker("network", "create", "--ipv6", "--subnet", "fd00:99::/64", "bridged")
    assert "policy DROP" in host.machine.run("iptables", "-L", "FORWARD")

    host.network("net1", "--ipv6")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")

    assert host.pings("workload-A", "workload-B.net1", "-4")
    assert host.pings("workload-A", "workload-B.net1", "-6")


@pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")
def test_networks_work_beside_dockers_nftables_backend(make_host: MakeHost, docker: Docker) -> None:
    host = make_host()
    if docker.release < (29,):
        assert "unknown flag" in host.machine.try_run("dockerd", "--validate", NFTABLES_BACKEND).stderr
        return
    host.dockerd.stop()
    host.machine.run("nft", "flush", "ruleset")
    host.dockerd.start(NFTABLES_BACKEND)
    host.network("net1", "--ipv6")
    host.network("net2")
    host.docker("network", "create", "bridged")
    host.workload("workload-A", "net1")
    host.workload("workload-B", "net1")
    host.workload("stranger", "net2")
    host.workload("neighbour", "bridged")

    assert "ip filter" not in host.machine.run("nft", "list", "tables")
    assert host.pings("workload-A", "workload-B.net1", "-4")
    assert host.pings("workload-A", "workload-B.net1", "-6")
    assert host.pings("workload-A", OUTSIDE)
    assert host.pings("neighbour", OUTSIDE)
    assert not host.pings("stranger", host.ipv4("workload-A", "net1"))
    host.docker("network", "connect", "bridged", "workload-A")
    assert host.pings("workload-A", "neighbour", "-4")
    assert host.pings("workload-A", "workload-B.net1", "-4")

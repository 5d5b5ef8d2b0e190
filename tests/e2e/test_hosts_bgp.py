"""BGP between hosts on two subnets: two on the first, one behind a router that hears the nodes' routes by BGP itself.

The nodes are in a full mesh. The router is a peer of another AS, as a rack's router is: it learns every block and
tells nothing, so that hosts of one subnet go on speaking to each other directly.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.lab import COMMAND, Host, Lab, dockers
from tests.e2e.machine import Process, wait_for
from tests.e2e.several_hosts import (
    BEHIND,
    BEHIND6,
    ROUTER,
    ROUTER6,
    SOON,
    Cluster,
    a_cluster,
    both_addresses,
    partitioned,
    pinging,
    reaches,
    release,
    routes,
)

ROUTER_AS = 64513
_BGP = 'protocol bgp from_{name} from node {{ neighbor range {network} as 64512; dynamic name "{name}_"; {channel} }}'
_CHANNEL = "ipv{family} {{ import all; export none; }};"
_BIRD = f"""
log stderr all;
router id {ROUTER};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel kernel4 {{ ipv4 {{ export where source = RTS_BGP; }}; }}
protocol kernel kernel6 {{ ipv6 {{ export where source = RTS_BGP; }}; }}
template bgp node {{ local as {ROUTER_AS}; passive on; graceful restart on; multihop; }}
"""


def peer(name: str, address: str) -> dict[str, object]:
    spec = {"peerIP": address, "asNumber": ROUTER_AS, "nodeSelector": f"subnet == '{name[0]}'"}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BGPPeer",
        "metadata": {"name": f"router-{name}"},
        "spec": spec,
    }


FROM_THE_ROUTER = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "GlobalNetworkPolicy",
    "metadata": {"name": "from-the-router"},
    "spec": {"ingress": [{"action": "Allow", "source": {"nets": [f"{ROUTER}/32", f"{BEHIND}.1/32"]}}]},
}
PEERS = (peer("a4", ROUTER), peer("a6", ROUTER6), peer("b4", f"{BEHIND}.1"), peer("b6", f"{BEHIND6}:1"))


@pytest.fixture(scope="module")
def whole_cluster(lab: Lab) -> Iterator[Cluster]:
    with a_cluster(lab, with_router=True, CALICO_LIBNETWORK_ROUTES="bird") as cluster:
        router_bird(cluster)
        cluster.join(dockers()[-1])
        cluster.join(release("26."))
        cluster.join_behind(dockers()[-1])
        for host, subnet in zip(cluster.hosts, "aab", strict=True):
            label(cluster, host.name, subnet)
        cluster.apply(*PEERS)
        cluster.everywhere("the sessions", lambda host: established(host) == 6, seconds=30)
        yield cluster


def router_bird(cluster: Cluster) -> Process:
    assert cluster.router is not None
    text = _BIRD
    for name, network, family in (
        ("first4", f"{ROUTER}/24", 4),
        ("first6", "fd00:30::/64", 6),
        ("behind4", f"{BEHIND}.0/24", 4),
        ("behind6", f"{BEHIND6}:/64", 6),
    ):
        network = network.replace(f"{ROUTER}/24", "172.30.0.0/24")
        text += _BGP.format(name=name, network=network, channel=_CHANNEL.format(family=family)) + "\n"
    configuration = cluster.router.directory / "bird.conf"
    configuration.write_text(text)
    control = str(cluster.router.directory / "bird.ctl")
    log = cluster.router.directory / "bird.log"
    return cluster.router.start("bird", "-f", "-c", str(configuration), "-s", control, log=log)


def label(cluster: Cluster, node: str, subnet: str) -> None:
    document = cluster.get("node", node)
    document["metadata"]["labels"] = {"subnet": subnet}  # type: ignore[index]
    cluster.apply(document)


def status(host: Host) -> dict[str, Any]:
    """It ends with an error where a session is down, which is no news here."""
    answer = host.machine.try_run(
        "env",
        f"ETCD_ENDPOINTS={host.plugin.environment['ETCD_ENDPOINTS']}",
        str(COMMAND),
        *["node", "status", "-o", "json"],
    )
    return dict(json.loads(answer.stdout)["routing"])


def peers(host: Host) -> list[dict[str, Any]]:
    return list(status(host)["peers"])


def established(host: Host) -> int:
    return sum(each["info"].startswith("Established") for each in peers(host))


def recovered(host: Host) -> bool:
    """Sessions are up and a graceful restart, which can be one at a time, is over."""
    control = "/run/calico-libnetwork/bird/bird.ctl"
    said = host.machine.try_run("birdc", "-s", control, "show", "status").stdout
    return established(host) == 6 and "up and running" in said and "recovery in progress" not in said


def test_containers_reach_each_other_through_the_router(cluster: Cluster) -> None:
    cluster.network("net1", "--ipv6")
    for number, host in enumerate(cluster.hosts):
        host.workload(f"workload-{number}", "net1")
    addresses = [both_addresses(host, f"workload-{number}", "net1") for number, host in enumerate(cluster.hosts)]
    for number, host in enumerate(cluster.hosts):
        others = [address for other, pair in enumerate(addresses) if other != number for address in pair]
        wait_for(f"{host.name} to reach {others}", reaches(host, f"workload-{number}", *others), seconds=SOON)
    first, second, third = cluster.hosts
    assert f"via {second.address} dev eth0 proto bird" in routes(first)
    assert f"via {ROUTER} dev eth0 proto bird" in routes(first)
    assert f"via {BEHIND}.1 dev eth0 proto bird" in routes(third)


def test_profiles_keep_networks_apart_across_subnets(cluster: Cluster) -> None:
    first, _, third = cluster.hosts
    cluster.network("net1", "--ipv6")
    cluster.network("net2", "--ipv6")
    first.workload("workload-A", "net1")
    third.workload("workload-D", "net2")
    third.workload("workload-E", "net1")
    wait_for("E", reaches(first, "workload-A", *both_addresses(third, "workload-E", "net1")), seconds=SOON)
    assert [
        address for address in both_addresses(third, "workload-D", "net2") if first.pings("workload-A", address)
    ] == []


def test_the_fabric_reaches_the_containers_that_policy_opens_to_it(cluster: Cluster) -> None:
    """By their own addresses, without NAT or a published port."""
    cluster.network("net1")
    first, _second, third = cluster.hosts
    first.workload("workload-A", "net1")
    third.workload("workload-E", "net1")
    targets = [first.ipv4("workload-A", "net1"), third.ipv4("workload-E", "net1")]
    wait_for("the router's routes", lambda: all(has_route(cluster, target) for target in targets), seconds=SOON)
    assert not any(reached(cluster, target) for target in targets)
    cluster.apply(FROM_THE_ROUTER)
    wait_for("the containers", lambda: all(reached(cluster, target) for target in targets), seconds=SOON)
    first.calico("delete", "globalnetworkpolicy", "from-the-router")


def has_route(cluster: Cluster, target: str) -> bool:
    assert cluster.router is not None
    return "proto bird" in cluster.router.run("ip", "route", "get", target, "fibmatch")


def reached(cluster: Cluster, target: str) -> bool:
    assert cluster.router is not None
    return cluster.router.try_run("ping", "-c", "1", "-W", "1", target).returncode == 0


def test_no_ping_is_lost_when_bird_is_killed_or_the_plugin_is(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    cluster.network("net1", "--ipv6")
    first.workload("workload-A", "net1")
    second.workload("workload-B", "net1")
    third.workload("workload-C", "net1")
    b, b6 = both_addresses(second, "workload-B", "net1")
    c, c6 = both_addresses(third, "workload-C", "net1")
    wait_for("all", reaches(first, "workload-A", b, b6, c, c6), seconds=SOON)
    pairs = [(first, "workload-A", address) for address in (b, b6, c, c6)]
    with pinging(*pairs):
        bird = first.machine.root / "run/calico-libnetwork/bird/bird.pid"
        first.machine.run("kill", "-9", bird.read_text().strip())
        wait_for("BIRD to be back", lambda: status(first)["bird"]["restarts"] == 1 and recovered(first), seconds=30)
        for host in (first, third):
            host.plugin.restart(signal.SIGKILL)
            cluster.everywhere("the sessions", recovered, seconds=30)


def test_a_short_partition_costs_no_more_than_itself(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    cluster.network("net1", "--ipv6")
    first.workload("workload-A", "net1")
    second.workload("workload-B", "net1")
    third.workload("workload-C", "net1")
    b, c = second.ipv4("workload-B", "net1"), third.ipv4("workload-C", "net1")
    wait_for("all", reaches(first, "workload-A", b, c), seconds=SOON)
    with pinging((first, "workload-A", c)), pinging((first, "workload-A", b), allow=4) as cut:
        with partitioned(cluster, second):
            wait_for("the cut", lambda: not first.pings("workload-A", b))
        wait_for("healing", reaches(first, "workload-A", b), seconds=2)
    assert cut[0].gap() > 0.5


def test_a_node_that_leaves_keeps_its_routes_and_a_dead_one_loses_them_when_deleted(cluster: Cluster) -> None:
    first, second, _ = cluster.hosts
    cluster.network("net1", "--ipv6")
    newcomer = cluster.join(dockers()[-1], NODENAME="newcomer")
    first.workload("workload-A", "net1")
    wait_for("net1", lambda: "net1" in newcomer.docker("network", "ls", "--format", "{{.Name}}"), seconds=SOON)
    newcomer.workload("workload-N", "net1")
    target = newcomer.ipv4("workload-N", "net1")
    wait_for("the newcomer", reaches(first, "workload-A", target), seconds=SOON)
    with pinging((first, "workload-A", target)):
        newcomer.plugin.stop()
        wait_for("the session to end", lambda: established(first) < 8)
        second.calico("get", "nodes")
        newcomer.plugin.start()
        wait_for("the session", lambda: established(first) == 8, seconds=30)

    newcomer.plugin.stop(signal.SIGKILL)
    blocks = re.findall(rf"^(\S+) via {newcomer.address} ", routes(first), re.MULTILINE)
    cluster.leave(newcomer)
    assert blocks
    first.calico("node", "delete", "newcomer", "--yes", "--force")
    cluster.everywhere("no route to it", lambda host: not any(block in routes(host) for block in blocks))
    assert "newcomer" not in " ".join(cluster.etcd.keys("/calico/"))

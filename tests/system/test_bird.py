"""BIRD as the agent runs it: three hosts on one LAN, both families, one BIRD each.

For Debian 12's BIRD 2.0 and Debian 13's BIRD 3, and for another one that ``BIRD`` is the path of.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from calico_libnetwork.errors import DataplaneError
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.bird_control import Protocol
from tests.system.conftest import Namespace, Workloads
from tests.system.routing_lab import Host, Lab, lab_in, until
from tests.unit.routing_objects import node, pool, resource, tell

ADDRESSES = {name: (f"10.0.0.{number}/24", f"fd00::{number}/64") for number, name in enumerate("abc", 1)}
POOLS = (pool("pool4", "10.66.0.0/16"), pool("pool6", "fd66::/48"))


CACHE = Path(os.environ.get("CALICO_LAB_CACHE", "/var/cache/calico-libnetwork"))
BIRDS = [os.environ["BIRD"]] if "BIRD" in os.environ else ["bird", str(CACHE / "bird3/bird")]


@pytest.fixture(params=BIRDS, ids=lambda path: Path(path).parent.name or "bird2")
async def lab(
    namespace: Namespace, workloads: Workloads, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Lab]:
    async with lab_in(namespace, workloads, tmp_path, bird=request.param) as made:
        made.lan("lan", "10.0.0.254/24")
        yield made


async def mesh(lab: Lab, names: str = "abc", **resources: Any) -> list[Host]:
    lab.tell(*POOLS, *(node(name, *ADDRESSES[name], **resources.get(name, {})) for name in names))
    for name in names:
        await lab.host(name, *ADDRESSES[name], setting="bird")
    await lab.sync()
    return list(lab.hosts.values())


def session_names(*numbers: int) -> list[str]:
    return [name for number in numbers for name in (f"Mesh_10_0_0_{number}", f"Mesh_fd00__{number}")]


async def test_new_and_withdrawn_blocks_travel_within_milliseconds(lab: Lab) -> None:
    a, b, _ = await mesh(lab)
    await a.established(*session_names(2, 3))
    await b.established(*session_names(1, 3))
    new, gone = [], []
    for block in [f"10.66.{number}.0/26" for number in range(10)] + [f"fd66::{number:x}00/122" for number in range(10)]:
        a.claim(block)
        new.append(await b.routed(block, "via", "proto bird", "metric 32"))
    for block in ("10.66.0.0/26", "10.66.1.0/26", "fd66::100/122"):
        a.namespace.run("ip", *(("-6",) if ":" in block else ()), "route", "del", "blackhole", block, "proto", "80")
        gone.append(await b.unrouted(block))
    print(f"new block: p50 {statistics.median(new) * 1e3:.1f} ms, worst {max(new) * 1e3:.1f} ms")
    print(f"withdrawn block: p50 {statistics.median(gone) * 1e3:.1f} ms, worst {max(gone) * 1e3:.1f} ms")
    assert statistics.median(new) < 0.1
    assert statistics.median(gone) < 0.1


async def test_only_routes_of_protocol_80_inside_the_pools_are_told(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    lab.workload(a, "10.66.0.5/32")  # protocol 3: inside a local block
    a.namespace.run("ip", "route", "add", "10.66.7.7", "dev", "cali2", "proto", "80", "metric", "1024")
    a.namespace.run("ip", "route", "add", "blackhole", "10.99.0.0/26", "proto", "80")
    a.namespace.run("ip", "route", "add", "unreachable", "10.66.9.0/26", "proto", "80")
    a.namespace.run("ip", "route", "add", "10.66.8.0/26", "via", "10.0.0.254", "proto", "80")
    a.namespace.run("ip", "route", "add", "10.66.10.0/26", "via", "10.0.0.254")
    a.claim("10.66.0.0/26")
    await b.routed("10.66.0.0/26", "via 10.0.0.1")
    await b.routed("10.66.7.7", "via 10.0.0.1")
    for destination in ("10.66.0.5", "10.99.0.0/26", "10.66.9.0/26", "10.66.8.0/26", "10.66.10.0/26"):
        assert b.route(destination) == ""


async def test_workloads_of_two_hosts_reach_each_other(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    lab.claim("a", "10.66.0.0/26", "fd66::/122")
    lab.claim("b", "10.66.0.64/26", "fd66::40/122")
    await lab.sync()
    one = lab.workload(a, "10.66.0.1/32", "fd66::1/128")
    lab.workload(b, "10.66.0.65/32", "fd66::41/128")
    await a.routed("10.66.0.64/26", "via 10.0.0.2")
    await a.routed("fd66::40/122", "via fd00::2")
    await b.routed("fd66::/122", "via fd00::1")
    one.run("ping", "-c1", "-W2", "10.66.0.65")
    one.run("ping", "-c1", "-W2", "fd66::41")


async def test_a_killed_bird_keeps_its_routes_on_all_hosts_and_comes_back(lab: Lab) -> None:
    a, b, _ = await mesh(lab)
    await a.established(*session_names(2, 3))
    lab.claim("a", "10.66.0.0/26")
    lab.claim("b", "10.66.1.0/26")
    await lab.sync()
    await b.routed("10.66.0.0/26", "via 10.0.0.1")
    await a.routed("10.66.1.0/26", "via 10.0.0.2")
    first = a.bird.pid
    assert first is not None
    with b.namespace_monitor() as on_b, a.namespace_monitor() as on_a:
        os.kill(first, signal.SIGKILL)
        await until(lambda: a.bird.pid not in (None, first))
        begin = time.monotonic()
        await a.established(*session_names(2, 3))
        print(f"sessions back {time.monotonic() - begin:.2f} s after the new BIRD was there")
        print(f"recovered {await recovered(a):.2f} s later")
        await asyncio.sleep(0.2)
    assert a.bird.restarts == 1
    assert [line for line in on_b.lines if "10.66.0.0/26" in line and "Deleted" in line] == []
    assert [line for line in on_a.lines if "10.66.1.0/26" in line and "Deleted" in line] == []


async def test_traffic_does_not_notice_bird_being_killed_reconfigured_or_stopped(lab: Lab) -> None:
    """BIRD 3 takes its routes away and puts them back, at its first scan after a recovery."""
    a, b = await mesh(lab, "ab")
    status = await a.bird.status()
    bearable = 0.5 if status is not None and status.version.startswith("3") else 0.0  # seconds, on a busy machine
    lab.claim("a", "10.66.0.0/26", "fd66::/122")
    lab.claim("b", "10.66.0.64/26", "fd66::40/122")
    await lab.sync()
    one = lab.workload(a, "10.66.0.1/32", "fd66::1/128")
    lab.workload(b, "10.66.0.65/32", "fd66::41/128")
    for host, other in ((a, ("10.66.0.64/26", "fd66::40/122")), (b, ("10.66.0.0/26", "fd66::/122"))):
        for block in other:
            await host.routed(block, "via")
    pings = [one.start("ping", "-q", "-i", "0.02", target) for target in ("10.66.0.65", "fd66::41")]
    first = a.bird.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: a.bird.pid not in (None, first))
    await a.established(*session_names(2))
    await recovered(a)
    lab.tell(pool("pool4b", "10.67.0.0/16"))
    await lab.sync()
    await b.bird.__aexit__(None, None, None)
    again = await lab.stack.enter_async_context(lab.bird("b", b.namespace, b.kernel))
    b.bird = again
    await b.sync()
    await b.established(*session_names(1))
    await recovered(b)
    for ping in pings:
        ping.send_signal(signal.SIGINT)
        assert ping.stdout is not None
        summary = ping.stdout.read()
        print(" ".join(summary.splitlines()[-2:]))
        sent, received = (int(number) for number in re.findall(r"(\d+) (?:packets transmitted|received)", summary))
        assert (sent - received) * 0.02 <= bearable


async def recovered(host: Host) -> float:
    async def done() -> bool:
        status = await host.bird.status()
        return status is not None and not status.recovering

    return await until(done)


async def test_a_dead_peer_does_not_hold_back_routes_on_a_first_start(lab: Lab) -> None:
    """b has a Node and never answers."""
    lab.tell(*POOLS, *(node(name, *ADDRESSES[name]) for name in "abc"))
    for name in "ac":
        await lab.host(name, *ADDRESSES[name], setting="bird")
    await lab.sync()
    a, c = lab.hosts["a"], lab.hosts["c"]
    a.claim("10.66.0.0/26")
    assert await c.routed("10.66.0.0/26", "via 10.0.0.1") < 5


def beginning(session: Protocol) -> float:
    """In seconds of the day."""
    hours, minutes, seconds = session.since.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def unchanged(before: Any) -> Any:
    """BIRD works a beginning out anew for each answer, from two clocks, and may be a millisecond off."""
    return pytest.approx(before, abs=0.01)


async def test_reconfiguration_leaves_unrelated_sessions_alone(lab: Lab) -> None:
    a, _, _ = await mesh(lab)
    await a.established(*session_names(2, 3))
    before = {name: beginning(session) for name, session in (await a.sessions()).items()}
    lab.tell(
        node("d", "10.0.0.4/24"),
        pool("pool4b", "10.67.0.0/16"),
        resource("BGPPeer", "tor", {"peerIP": "10.0.0.200", "asNumber": 65000, "filters": ["f"]}),
        resource("BGPFilter", "f", {"importV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.67.1.0/24"}]}),
        resource(
            "BGPConfiguration", "default", {"prefixAdvertisements": [{"cidr": "10.66.0.0/16", "communities": ["1:2"]}]}
        ),
    )
    begin = time.monotonic()
    await a.sync()
    print(f"reconfigured in {(time.monotonic() - begin) * 1e3:.1f} ms")
    after = await a.sessions()
    assert {"Mesh_10_0_0_4", "Global_10_0_0_200"} <= after.keys()
    assert {name: beginning(after[name]) for name in before} == unchanged(before)
    lab.forget(node("d", "10.0.0.4/24"))
    await a.sync()
    after = await a.sessions()
    assert "Mesh_10_0_0_4" not in after
    assert {name: beginning(after[name]) for name in before} == unchanged(before)


async def test_a_pool_that_stops_being_exported_is_withdrawn_without_losing_a_session(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    await a.established(*session_names(2))
    a.claim("10.66.0.0/26")
    await b.routed("10.66.0.0/26", "via")
    since = beginning((await a.sessions())["Mesh_10_0_0_2"])
    lab.tell(pool("pool4", "10.66.0.0/16", disableBGPExport=True))
    await a.sync()
    await b.unrouted("10.66.0.0/26")
    assert beginning((await a.sessions())["Mesh_10_0_0_2"]) == unchanged(since)


async def test_passwords_must_agree(lab: Lab) -> None:
    lab.tell(resource("BGPConfiguration", "default", {"nodeMeshPassword": {"secretKeyRef": {"name": "s", "key": "k"}}}))
    lab.tell(*POOLS, *(node(name, ADDRESSES[name][0]) for name in "abc"))
    for name, password in (("a", "right"), ("b", "right"), ("c", "wrong")):
        host = await lab.host(name, ADDRESSES[name][0], setting="bird")
        host.router.set_passwords({("s", "k"): password})
    await lab.sync()
    a = lab.hosts["a"]
    await a.established("Mesh_10_0_0_2")
    assert not (await a.sessions())["Mesh_10_0_0_3"].established
    assert oct((lab.directory / "a" / "bird.conf").stat().st_mode)[-3:] == "600"


async def test_external_peer_with_filters_hears_and_says_what_they_allow(lab: Lab) -> None:
    """b is in another AS and has no mesh; what it announces and hears passes a's filters."""
    rules = {
        "exportV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.66.1.0/24"}],
        "importV4": [{"action": "Reject", "matchOperator": "Equal", "cidr": "10.66.200.0/26"}],
    }
    lab.tell(
        *POOLS,
        node("a", ADDRESSES["a"][0]),
        node("b", ADDRESSES["b"][0], asNumber=65000),
        resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}),
        resource("BGPPeer", "p", {"node": "a", "peerIP": "10.0.0.2", "asNumber": 65000, "filters": ["f"]}),
        resource("BGPFilter", "f", rules),
    )
    for name in "ab":
        await lab.host(name, ADDRESSES[name][0], setting="bird")
    a, b = lab.hosts["a"], lab.hosts["b"]
    for host in (a, b):
        tell(host.router, resource("BGPFilter", "f", rules if host is a else {}))
        await host.sync()
    a.claim("10.66.0.0/26")
    a.claim("10.66.1.0/26")
    b.claim("10.66.200.0/26")
    b.claim("10.66.201.0/26")
    await b.routed("10.66.0.0/26", "via 10.0.0.1")
    await a.routed("10.66.201.0/26", "via 10.0.0.2")
    assert b.route("10.66.1.0/26") == ""
    assert a.route("10.66.200.0/26") == ""
    assert (await a.sessions()).keys() == {"Node_10_0_0_2"}


async def test_a_priority_is_told_inside_the_cluster_and_can_be_matched(lab: Lab) -> None:
    """a sets priorities for what it tells b; b keeps out one of them, and the rest of the mesh hears of none."""
    told: list[dict[str, Any]] = [
        {"matchOperator": "Equal", "cidr": "10.66.1.0/26", "operations": [{"setPriority": {"value": 512}}]},
        {"matchOperator": "Equal", "cidr": "10.66.2.0/26", "operations": [{"setPriority": {"value": 2048}}]},
        {"priority": 1024, "operations": [{"addCommunity": {"value": "7:8"}}]},
    ]
    lab.tell(
        resource(
            "BGPPeer", "to-b", {"node": "a", "peerIP": "10.0.0.2", "asNumber": 64512, "filters": ["tell", "hear"]}
        ),
        resource("BGPFilter", "tell", {"exportV4": [{"action": "Accept", **rule} for rule in told]}),
        resource("BGPFilter", "hear", {"importV4": [{"action": "Reject", "priority": 2048}]}),
    )
    a, b, c = await mesh(lab)
    for number in range(3):
        a.claim(f"10.66.{number}.0/26")
        await c.routed(f"10.66.{number}.0/26", "via 10.0.0.1")
    for number in range(2):
        await b.routed(f"10.66.{number}.0/26", "via 10.0.0.1")
    assert b.route("10.66.2.0/26") == ""
    assert re.search(r"(?i)bgp.local_pref: 2147483135", shown(lab, "b", "10.66.1.0/26"))
    # a block of its own has the normal priority
    assert re.search(r"(?i)bgp.community: \(7,8\)", shown(lab, "b", "10.66.0.0/26"))
    assert "2147483135" not in shown(lab, "c", "10.66.1.0/26")


def shown(lab: Lab, host: str, destination: str) -> str:
    control = str(lab.directory / host / "bird.ctl")
    return lab.hosts[host].namespace.run("birdc", "-s", control, f"show route all {destination}")


async def test_of_two_routes_to_one_prefix_that_of_the_lower_priority_is_taken(lab: Lab) -> None:
    rule = {"action": "Accept", "operations": [{"setPriority": {"value": 512}}]}
    lab.tell(
        resource("BGPPeer", "c", {"node": "a", "peerIP": "10.0.0.3", "asNumber": 64512, "filters": ["preferred"]}),
        resource("BGPFilter", "preferred", {"importV4": [rule]}),
    )
    a, b, c = await mesh(lab)
    await a.established("Node_10_0_0_3", "Mesh_10_0_0_2")
    b.claim("10.66.1.0/26")
    await a.routed("10.66.1.0/26", "via 10.0.0.2")
    c.claim("10.66.1.0/26")
    await a.routed("10.66.1.0/26", "via 10.0.0.3")
    assert "10.0.0.2" not in a.route("10.66.1.0/26")
    c.namespace.run("ip", "route", "del", "blackhole", "10.66.1.0/26", "proto", "80")
    await a.routed("10.66.1.0/26", "via 10.0.0.2")


async def test_a_route_reflector_joins_its_clients(lab: Lab) -> None:
    lab.tell(
        resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}),
        resource("BGPPeer", "r", {"nodeSelector": "!has(reflector)", "peerSelector": "has(reflector)"}),
    )
    a, b, c = await mesh(lab, c={"routeReflectorClusterID": "1.0.0.1", "labels": {"reflector": "yes"}})
    await c.established("Node_10_0_0_1", "Node_10_0_0_2", "Node_fd00__1", "Node_fd00__2")
    assert (await a.sessions()).keys() == {"Node_10_0_0_3", "Node_fd00__3"}
    a.claim("10.66.0.0/26")
    a.claim("fd66::/122")
    await b.routed("10.66.0.0/26", "via 10.0.0.1")  # reflected with its own next hop
    await b.routed("fd66::/122", "via fd00::1")


async def test_nodes_of_different_as_numbers_mesh(lab: Lab) -> None:
    a, b = await mesh(lab, "ab", b={"asNumber": 65001})
    await a.established(*session_names(2))
    b.claim("10.66.0.0/26")
    await a.routed("10.66.0.0/26", "via 10.0.0.2")


async def test_communities_reach_the_peer(lab: Lab) -> None:
    lab.tell(
        resource(
            "BGPConfiguration", "default", {"prefixAdvertisements": [{"cidr": "10.66.0.0/16", "communities": ["7:8"]}]}
        )
    )
    a, b = await mesh(lab, "ab")
    a.claim("10.66.0.0/26")
    await b.routed("10.66.0.0/26", "via")
    assert re.search(r"(?i)bgp.community: \(7,8\)", shown(lab, "b", "10.66.0.0/26"))


async def test_stopping_leaves_routes_everywhere_and_the_next_start_takes_over(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    await a.established(*session_names(2))
    lab.claim("a", "10.66.0.0/26")
    lab.claim("b", "10.66.1.0/26")
    await lab.sync()
    await b.routed("10.66.0.0/26", "via")
    await a.routed("10.66.1.0/26", "via")
    with b.namespace_monitor() as on_b, a.namespace_monitor() as on_a:
        await a.bird.__aexit__(None, None, None)
        assert a.bird.pid is None
        assert a.route("10.66.1.0/26")
        again = lab.bird("a", a.namespace, a.kernel)
        async with again:
            a.bird = again
            await a.sync()
            await a.established(*session_names(2))
            print(f"recovered after {await recovered(a):.2f} s")
            await asyncio.sleep(0.2)
            on_a.end()
            on_b.end()
    assert not [line for line in [*on_a.lines, *on_b.lines] if "Deleted" in line and "10.66." in line]


async def test_a_bird_left_by_a_killed_process_is_replaced(lab: Lab) -> None:
    a, _ = await mesh(lab, "ab")
    left = a.bird.pid
    assert left is not None
    again = lab.bird("a", a.namespace, a.kernel)
    supervision = a.bird._supervision
    assert supervision is not None
    supervision.cancel()
    async with again:
        await again.configure(a.router.desired().bird)
        assert again.pid != left
        assert not a.namespace.succeeds("kill", "-0", str(left))
        a.bird, abandoned = again, a.bird
        await a.established(*session_names(2))
    await abandoned._reap()


async def test_not_wanted_any_more_takes_the_routes_back(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    a.claim("10.66.0.0/26")
    b.claim("10.66.1.0/26")
    await a.routed("10.66.1.0/26", "via")
    await b.routed("10.66.0.0/26", "via")
    await a.bird.configure(None)
    assert a.bird.pid is None
    assert a.route("10.66.1.0/26") == ""
    await b.unrouted("10.66.0.0/26")
    assert "blackhole" in a.route("10.66.0.0/26")
    assert await a.bird.status() is None


async def test_a_refused_configuration_leaves_the_running_one(lab: Lab) -> None:
    a, _ = await mesh(lab, "ab")
    await a.established(*session_names(2))
    since = beginning((await a.sessions())["Mesh_10_0_0_2"])
    with pytest.raises(DataplaneError, match="syntax error"):
        await a.bird.configure("this is no configuration;")
    assert beginning((await a.sessions())["Mesh_10_0_0_2"]) == unchanged(since)
    await a.sync()


async def test_a_first_configuration_that_is_refused_starts_nothing(lab: Lab) -> None:
    a = await lab.host("a", *ADDRESSES["a"])
    with pytest.raises(DataplaneError, match="syntax error"):
        await a.bird.configure("this is no configuration;")
    assert a.bird.pid is None
    missing = Bird(lab.directory / "x", a.kernel, command=("bird-that-is-not-installed",))
    async with missing:
        with pytest.raises(DataplaneError, match="install bird2"):
            await missing.configure("router id 1.1.1.1;")


async def test_whoever_holds_port_179_is_named_and_its_end_noticed(lab: Lab) -> None:
    lab.tell(*POOLS, *(node(name, ADDRESSES[name][0]) for name in "ab"))
    a = await lab.host("a", ADDRESSES["a"][0], setting="bird")
    await lab.host("b", ADDRESSES["b"][0], setting="bird")
    other = a.namespace.start(
        "python3", "-c", "import socket;s=socket.create_server(('',179));print(1,flush=True);s.accept()"
    )
    assert other.stdout is not None
    other.stdout.readline()
    await lab.sync()
    await a.bird.check()
    assert re.fullmatch(
        rf"TCP port 179 is held by python3 \(pid {other.pid}\), so BIRD cannot listen for its peers; stop it,"
        r" or set listenPort in BGPConfiguration\(default\)",
        a.bird.problem,
    )
    other.kill()
    other.wait()
    await a.bird.check()
    await a.bird.check()
    assert a.bird.problem == ""
    await a.established("Mesh_10_0_0_2")


async def test_a_distribution_bird_is_named_with_the_command_to_stop_it(lab: Lab) -> None:
    """Debian starts one with the package; its kernel protocol would delete our routes, and ours its."""
    lab.tell(*POOLS, *(node(name, ADDRESSES[name][0]) for name in "ab"))
    a = await lab.host("a", ADDRESSES["a"][0], setting="bird")
    other = lab.bird("distribution", a.namespace, a.kernel)
    async with other:
        await other.configure("log stderr all; router id 1.1.1.1; protocol device {}\n")
        with pytest.raises(DataplaneError) as refused:
            await a.sync()
        assert str(refused.value) == (
            f"another BIRD (pid {other.pid}) runs on this host, and two of them delete each other's routes;"
            " if it is the distribution's: systemctl disable --now bird"
        )
        assert a.bird.pid is None
    await a.sync()
    assert a.bird.pid is not None


async def test_routes_left_by_an_earlier_process_go_when_bird_is_not_wanted_now(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    b.claim("10.66.1.0/26")
    b.claim("fd66::/122")
    await a.routed("10.66.1.0/26", "via")
    await a.routed("fd66::/122", "via")
    await a.bird.__aexit__(None, None, None)
    a.namespace.run("ip", "route", "add", "192.0.2.0/24", "via", "10.0.0.254")
    again = lab.bird("a", a.namespace, a.kernel)
    async with again:
        await again.configure(None)
        assert again.pid is None
    assert a.route("10.66.1.0/26") == ""
    assert a.route("fd66::/122") == ""
    assert a.route("192.0.2.0/24")


async def test_nothing_is_taken_back_before_it_is_known_what_is_wanted(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    b.claim("10.66.1.0/26")
    await a.routed("10.66.1.0/26", "via")
    await a.bird.__aexit__(None, None, None)
    again = lab.bird("a", a.namespace, a.kernel)
    async with again:
        keeper = asyncio.create_task(again.run())
        await asyncio.sleep(0.3)
        assert a.route("10.66.1.0/26")
        again.want(None)
        await a.unrouted("10.66.1.0/26")
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def test_what_is_wanted_runs_and_problems_are_said(lab: Lab) -> None:
    a, b = await mesh(lab, "ab")
    await a.bird.configure(None)
    keeper = asyncio.create_task(a.bird.run())
    a.bird.want("this is no configuration;")
    await until(lambda: "syntax error" in a.bird.problem)
    a.bird.want(a.router.desired().bird)
    await until(lambda: a.bird.problem == "" and a.bird.pid is not None)
    await b.established(*session_names(1))
    a.bird.want(None)
    await until(lambda: a.bird.pid is None)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)

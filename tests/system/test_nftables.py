"""The table writer against the kernel: small writes, recognition after a restart, repair, never open."""

from __future__ import annotations

import asyncio
import re
import statistics
import time

import pytest

from calico_libnetwork.dataplane import nft as nft_module
from calico_libnetwork.dataplane import sysctl
from calico_libnetwork.dataplane.nft import Nft, Program
from calico_libnetwork.dataplane.nftables import TableWriter
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table
from calico_libnetwork.errors import DataplaneError
from tests.system.conftest import Namespace, Workloads
from tests.system.test_docker_firewall import routed

FORWARD = "type filter hook forward priority filter - 1; policy accept;"
NAT = "type nat hook postrouting priority srcnat + 10; policy accept;"


def skeleton() -> Table:
    table = Table("inet", "calico-libnetwork")
    for name in ("from_wl", "to_wl"):
        table.sets.want(name, SetSpec("map", "type ifname : verdict;"))
    rules = ("iifname vmap @from_wl", 'iifname "cali*" drop', "oifname vmap @to_wl", 'oifname "cali*" drop')
    table.chains.want("forward", Chain(rules, FORWARD))
    return table


def filled(endpoints: int = 2) -> Table:
    """Every kind of set and rule that policy makes."""
    table = skeleton()
    table.sets.want("s4_web", SetSpec("set", "type ipv4_addr;"))
    table.sets.want("n4_nets", SetSpec("set", "type ipv4_addr; flags interval;"))
    table.sets.want("n6_nets", SetSpec("set", "type ipv6_addr; flags interval;"))
    table.sets.want("np4_http", SetSpec("set", "type ipv4_addr . inet_proto . inet_service;"))
    table.sets.want("spoof", SetSpec("set", "type ifname . ipv4_addr;"))
    table.chains.want("policy_in", Chain(("ip saddr @s4_web tcp dport { 80, 8080-8090 } goto ok", "counter drop")))
    table.chains.want("ok", Chain(("meta mark set meta mark | 0x00010000", "accept")))
    table.chains.want("sig_a", Chain(("jump policy_in", "drop")))
    table.chains.want("nat", Chain(("ip saddr @n4_nets ip daddr != @n4_nets masquerade fully-random",), NAT))
    for text in ("10.0.0.0/8", "192.168.1.5", "172.16.0.0/12"):
        table.elements.want(("n4_nets", text), "")
    for text in ("fd00::/8", "2001:db8::1"):
        table.elements.want(("n6_nets", text), "")
    table.elements.want(("np4_http", "10.0.0.1 . tcp . 80"), "")
    table.elements.want(("np4_http", "10.0.0.1 . 132 . 80"), "")
    for number in range(endpoints):
        table.elements.want(("s4_web", f"10.65.{number >> 8}.{number & 255}"), "")
        table.elements.want(("from_wl", f'"cali{number}"'), "goto sig_a")
        table.elements.want(("to_wl", f'"cali{number}"'), "goto sig_a")
        table.elements.want(("spoof", f'"cali{number}" . 10.65.{number >> 8}.{number & 255}'), "")
    return table


async def test_written_table_reads_back_as_wanted_by_a_new_process(nft: Nft) -> None:
    assert await TableWriter(nft, filled()).apply() is True
    generation = await nft.generation()
    async with Nft() as restarted:
        writer = TableWriter(restarted, filled())
        assert await writer.apply() is False
        assert await restarted.generation() == generation


async def test_removed_and_changed_parts_are_written_alone(namespace: Namespace, nft: Nft) -> None:
    writer = TableWriter(nft, filled())
    await writer.apply()
    table = writer.table
    table.chains.want("sig_b", Chain(("jump policy_in", "accept")))
    table.chains.want("policy_in", Chain(("counter drop",)))
    table.elements.want(("from_wl", '"cali1"'), "goto sig_b")
    table.elements.unwant(("to_wl", '"cali1"'))
    table.elements.unwant(("n4_nets", "10.0.0.0/8"))
    table.elements.want(("n4_nets", "10.0.0.0/9"), "")
    for name, text in list(table.elements.desired):
        if name == "s4_web":
            table.elements.unwant((name, text))
    table.sets.unwant("s4_web")
    generation = await nft.generation()
    assert await writer.apply() is True
    assert await nft.generation() == generation + 2  # the new chain first, then all that refers to it
    assert '"cali1" : goto sig_b' in namespace.run("nft", "list", "map", "inet", "calico-libnetwork", "from_wl")
    listing = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    assert "s4_web" not in listing
    assert "10.0.0.0/9" in listing
    await writer.read()
    assert table.in_sync


async def test_unused_chains_maps_and_sets_go(nft: Nft, namespace: Namespace) -> None:
    writer = TableWriter(nft, filled())
    await writer.apply()
    bare = skeleton()
    writer.table.sets.want_exactly(bare.sets.desired)
    writer.table.chains.want_exactly(bare.chains.desired)
    writer.table.elements.want_exactly({})
    await writer.apply()
    listing = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    assert all(name not in listing for name in ("sig_a", "policy_in", "chain ok", "chain nat", "np4_http", "cali0"))
    await writer.read()
    assert writer.table.in_sync


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet calico-libnetwork policy_in",
        "add rule inet calico-libnetwork ok drop",
        "insert rule inet calico-libnetwork forward accept",
        "delete element inet calico-libnetwork from_wl { cali0 }",
        "add element inet calico-libnetwork s4_web { 10.1.1.1 }",
        "delete element inet calico-libnetwork n4_nets { 10.0.0.0/8 }",
        "add chain inet calico-libnetwork stranger",
        "add set inet calico-libnetwork stranger { type ipv4_addr; }",
        "add chain inet calico-libnetwork forward { policy drop; }",
        "flush ruleset",
        "flush map inet calico-libnetwork to_wl\nadd element inet calico-libnetwork to_wl { cali0 : accept }",
        "flush chain inet calico-libnetwork nat\ndelete chain inet calico-libnetwork nat",
    ],
)
async def test_damage_done_by_hand_is_found_and_repaired(namespace: Namespace, nft: Nft, damage: str) -> None:
    writer = TableWriter(nft, filled())
    await writer.apply()
    before = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    namespace.run("nft", "-f", "-", stdin=damage)
    writer.stale = True
    assert await writer.apply() is True
    assert sorted(before.split()) == sorted(namespace.run("nft", "list", "table", "inet", "calico-libnetwork").split())


async def test_set_whose_type_changes_is_replaced_with_its_table(namespace: Namespace, nft: Nft) -> None:
    writer = TableWriter(nft, filled())
    await writer.apply()
    writer.table.sets.want("s4_web", SetSpec("set", "type ipv4_addr; flags interval;"))
    await writer.apply()
    assert "interval" in namespace.run("nft", "list", "set", "inet", "calico-libnetwork", "s4_web")
    await writer.read()
    assert writer.table.in_sync


async def test_stale_belief_is_corrected_after_a_refused_change(namespace: Namespace, nft: Nft) -> None:
    """Deleting an element that is gone already makes the kernel refuse the transaction."""
    writer = TableWriter(nft, filled())
    await writer.apply()
    namespace.run("nft", "delete", "element", "inet", "calico-libnetwork", "from_wl", "{ cali0 }")
    writer.table.elements.unwant(("from_wl", '"cali0"'))
    writer.table.elements.want(("from_wl", '"cali7"'), "goto sig_a")
    assert await writer.apply() is True
    assert "cali7" in namespace.run("nft", "list", "map", "inet", "calico-libnetwork", "from_wl")


async def test_impossible_change_keeps_the_table_in_force(namespace: Namespace, nft: Nft) -> None:
    writer = TableWriter(nft, filled())
    await writer.apply()
    before = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    writer.table.chains.want("broken", Chain(("jump no_such_chain",)))
    with pytest.raises(DataplaneError, match="inet calico-libnetwork"):
        await writer.apply()
    assert before == namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    writer.table.chains.unwant("broken")
    await writer.apply()
    assert writer.table.in_sync


async def test_table_that_keeps_refusing_the_difference_is_replaced_whole(namespace: Namespace) -> None:
    programs: list[Program] = []

    class Refusing(Nft):
        refusals = 0

        async def run(self, *transactions: Program) -> None:
            for transaction in transactions:
                programs.append(transaction)
                if len(programs) <= self.refusals:
                    raise DataplaneError("refused")
                await super().run(transaction)

    async with Refusing() as nft:
        writer = TableWriter(nft, filled())
        await writer.apply()
        namespace.run("nft", "add", "chain", "inet", "calico-libnetwork", "stranger")
        writer.table.elements.unwant(("from_wl", '"cali0"'))
        programs.clear()
        nft.refusals = 2
        await writer.apply()
    assert ["delete table" in program for program in programs] == [False, False, True]
    listing = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    assert "stranger" not in listing
    assert '"cali1" : goto sig_a' in listing


async def test_skeleton_goes_before_anything_and_takes_nothing_away(namespace: Namespace, nft: Nft) -> None:
    assert await TableWriter(nft, skeleton()).ensure_closed() is True
    assert await TableWriter(nft, skeleton()).ensure_closed() is False
    await TableWriter(nft, filled()).apply()
    before = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    assert await TableWriter(nft, skeleton()).ensure_closed() is False
    assert before == namespace.run("nft", "list", "table", "inet", "calico-libnetwork")


async def test_skeleton_damaged_while_down_is_closed_at_start(namespace: Namespace, nft: Nft) -> None:
    await TableWriter(nft, filled()).apply()
    namespace.run("nft", "flush", "chain", "inet", "calico-libnetwork", "forward")
    assert await TableWriter(nft, skeleton()).ensure_closed() is True
    listing = namespace.run("nft", "list", "table", "inet", "calico-libnetwork")
    assert 'iifname "cali*" drop' in listing
    assert '"cali0" : goto sig_a' in listing


async def test_other_tables_stay(namespace: Namespace, nft: Nft) -> None:
    namespace.run("nft", "-f", "-", stdin="table ip filter { chain FORWARD { counter accept\n }\n}")
    before = namespace.run("nft", "list", "table", "ip", "filter")
    writer = TableWriter(nft, filled())
    await writer.apply()
    await writer.delete()
    assert before == namespace.run("nft", "list", "ruleset")


async def test_endpoint_more_among_ten_thousand_costs_less_than_starting_nft(namespace: Namespace, nft: Nft) -> None:
    writer = TableWriter(nft, filled(10_000))
    await writer.apply()
    durations: dict[str, list[float]] = {"ours": [], "nft": []}
    for number in range(10_000, 10_020):
        for name in ("from_wl", "to_wl"):
            writer.table.elements.want((name, f"cali{number}"), "goto sig_a")
        writer.table.elements.want(("s4_web", f"10.70.0.{number - 10_000}"), "")
        started = time.perf_counter()
        await writer.apply()
        durations["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        namespace.run(
            "nft", "add", "element", "inet", "calico-libnetwork", "s4_web", f"{{ 10.71.0.{number - 10_000} }}"
        )
        durations["nft"].append(time.perf_counter() - started)
        writer.table.elements.want(("s4_web", f"10.71.0.{number - 10_000}"), "")
        writer.table.elements.observe(("s4_web", f"10.71.0.{number - 10_000}"), "")
    assert statistics.median(durations["ours"]) < statistics.median(durations["nft"])
    async with Nft() as restarted:
        assert await TableWriter(restarted, writer.table).apply() is False


async def test_table_replaced_under_a_ping_flood_lets_nothing_through(
    namespace: Namespace, nft: Nft, workloads: Workloads
) -> None:
    """A flood that is not allowed stays unanswered; of one that is, a packet caught by the change may be lost."""
    sysctl.enable_forwarding(ipv6=False)
    allowed, refused = (routed(namespace, workloads, number) for number in (0, 1))
    table = filled(1)
    table.chains.want("sig_a", Chain(("accept",)))
    writer = TableWriter(nft, table)
    await writer.apply()
    outside = workloads.namespace()
    namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    namespace.run("ip", "link", "set", "eth1", "netns", outside.path)
    namespace.run("ip", "link", "set", "eth0", "up")
    namespace.run("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
    outside.run("ip", "link", "set", "eth1", "up")
    outside.run("ip", "addr", "add", "192.0.2.3/24", "dev", "eth1")
    outside.run("ip", "route", "add", "default", "via", "192.0.2.2")
    floods = [source.start("ping", "-q", "-i", "0.002", "-w", "2", "192.0.2.3") for source in (allowed, refused)]
    for number in range(30):
        table.sets.want("changing", SetSpec("set", f"type ipv4_addr; size {1000 + number};"))
        await writer.apply()
        await asyncio.sleep(0.03)
    reports = [await asyncio.to_thread(lambda f=flood: f.communicate()[0]) for flood in floods]  # type: ignore[misc]
    assert float(re.findall(r"([\d.]+)% packet loss", reports[0])[0]) < 2
    assert " 0 received" in reports[1]


async def test_without_the_library_a_child_does_the_same(nft: Nft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_module, "_LIBRARY", "libnftables.so.none")
    assert await TableWriter(nft, filled()).apply() is True
    assert await TableWriter(nft, filled()).apply() is False
    with pytest.raises(DataplaneError, match="nft refused a change"):
        await nft.run("add rule inet nowhere nothing accept\n")

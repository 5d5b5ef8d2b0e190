"""Elements written as messages against nft's own writing of them, and a refused transaction against none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

import pytest

from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nft_elements import ElementMessage, split
from calico_libnetwork.dataplane.nft_monitor import ForeignChange, NftMonitor
from calico_libnetwork.dataplane.nft_program import difference, render
from calico_libnetwork.dataplane.nftables import TableWriter
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table
from calico_libnetwork.errors import DataplaneError
from tests.system.conftest import Namespace, eventually

NAME = "calico-libnetwork"
SETS = {
    "from_wl": SetSpec("map", "type ifname : verdict;"),
    "by_address": SetSpec("map", "type ipv6_addr : verdict;"),
    "s4": SetSpec("set", "type ipv4_addr;"),
    "s6": SetSpec("set", "type ipv6_addr;"),
    "np4": SetSpec("set", "type ipv4_addr . inet_proto . inet_service;"),
    "np6": SetSpec("set", "type ipv6_addr . inet_proto . inet_service;"),
    "own": SetSpec("set", "type ifname . ipv4_addr;"),
    "own6": SetSpec("set", "type ifname . ipv6_addr;"),
    "dnat4": SetSpec("map", "type inet_proto . inet_service : ipv4_addr . inet_service;"),
    "dnat6": SetSpec("map", "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;"),
    "to_address": SetSpec("map", "type ipv4_addr : ipv6_addr;"),
}
VERDICTS = ("goto sig_a", "goto sig_b", "jump sig_a", "accept", "drop", "return", "continue")


def empty(name: str = NAME) -> Table:
    table = Table("inet", name)
    for set_name, spec in SETS.items():
        table.sets.want(set_name, spec)
    for chain in ("sig_a", "sig_b"):
        table.chains.want(chain, Chain(("accept",)))
    rule = "iifname vmap @from_wl"
    table.chains.want("forward", Chain((rule,), "type filter hook forward priority 0; policy accept;"))
    return table


def random_element(random: Random, set_name: str) -> str:
    interface = f'"cali{random.randrange(16**11):x}"'
    ipv4 = str(IPv4Address(random.getrandbits(32)))
    ipv6 = str(IPv6Address(random.getrandbits(128) << random.choice((0, 64)) & (1 << 128) - 1))
    port = f"{random.choice(('tcp', 'udp', 'sctp', '132', '33'))} . {random.randrange(1, 65536)}"
    return {
        "from_wl": interface,
        "by_address": ipv6,
        "s4": ipv4,
        "s6": ipv6,
        "np4": f"{ipv4} . {port}",
        "np6": f"{ipv6} . {port}",
        "own": f"{interface} . {ipv4}",
        "own6": f"{interface} . {ipv6}",
        "dnat4": port,
        "dnat6": f"{ipv6} . {port}",
        "to_address": ipv4,
    }[set_name]


def random_value(random: Random, set_name: str) -> str:
    if SETS[set_name].kind == "set":
        return ""
    ipv4, ipv6 = IPv4Address(random.getrandbits(32)), IPv6Address(random.getrandbits(128))
    port = random.randrange(1, 65536)
    values = {"dnat4": f"{ipv4} . {port}", "dnat6": f"{ipv6} . {port}", "to_address": str(ipv6)}
    return values.get(set_name, random.choice(VERDICTS))


def change(random: Random, table: Table) -> None:
    """Some elements leave, some verdicts change, some elements come."""
    for element in random.sample(sorted(table.elements.desired), len(table.elements.desired) // 2):
        if table.elements.desired[element] and random.random() < 0.5:
            table.elements.want(element, random_value(random, element[0]))
        else:
            table.elements.unwant(element)
    for _ in range(random.randrange(1, 200)):
        name = random.choice(list(SETS))
        table.elements.want((name, random_element(random, name)), random_value(random, name))


def content(objects: list[dict[str, Any]] | None) -> dict[str, list[str]]:
    """Of each set its elements as nft shows them."""
    sets = [body for entry in objects or [] for kind, body in entry.items() if kind in ("set", "map")]
    return {body["name"]: sorted(map(str, body.get("elem", ()))) for body in sets}


def messages_of(table: Table) -> tuple[ElementMessage, ...]:
    messages, rest = split(table, difference(table))
    assert not rest
    return messages


@pytest.mark.parametrize("seed", range(8))
async def test_elements_read_back_as_those_that_nft_wrote(nft: Nft, seed: int) -> None:
    random = Random(seed)
    ours, theirs = empty(), empty("theirs")
    for table in (ours, theirs):
        await nft.run(render(table, difference(table)))
        difference(table).settle(table)
    for _ in range(6):
        change(random, ours)
        theirs.elements.want_exactly(ours.elements.desired)
        await nft.run(messages_of(ours))
        await nft.run(render(theirs, difference(theirs)))
        for table in (ours, theirs):
            difference(table).settle(table)
        assert content(await nft.list("table", "inet", NAME)) == content(await nft.list("table", "inet", "theirs"))
    assert await TableWriter(nft, ours).apply() is False


async def test_intervals_beside_elements_are_written_just_before_them(namespace: Namespace, nft: Nft) -> None:
    table = empty()
    table.sets.want("n4", SetSpec("set", "type ipv4_addr; flags interval;"))
    table.elements.want(("n4", "10.0.0.0/8"), "")
    await TableWriter(nft, table).apply()
    table.elements.unwant(("n4", "10.0.0.0/8"))
    for text in ("10.0.0.0/9", "10.128.0.0/16"):
        table.elements.want(("n4", text), "")
    table.elements.want(("from_wl", '"cali1"'), "goto sig_a")
    before = await nft.generation()
    await TableWriter(nft, table).apply()
    assert await nft.generation() == before + 2
    assert "10.0.0.0/9, 10.128.0.0/16" in namespace.run("nft", "list", "set", "inet", NAME, "n4")
    assert await TableWriter(nft, table).apply() is False


async def test_elements_too_many_for_the_socket_come_in_one_transaction(nft: Nft) -> None:
    table = empty()
    await TableWriter(nft, table).apply()
    for number in range(1, 20_001):
        table.elements.want(("from_wl", f'"cali{number}"'), "goto sig_a")
        table.elements.want(("s6", f"fd00::{number:x}"), "")
    before = await nft.generation()
    await nft.run(messages_of(table))
    assert await nft.generation() == before + 1
    assert await TableWriter(nft, table).apply() is False


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ("delete element inet calico-libnetwork from_wl { gone }", 'element "gone" of set .* from_wl: No such file'),
        (
            "add element inet calico-libnetwork from_wl { new : drop }",
            'element "new" of set .* from_wl: (File exists|Device or resource busy)',
        ),
        ("delete map inet calico-libnetwork by_address", "set inet calico-libnetwork by_address: No such file"),
        ("delete table inet calico-libnetwork", "set inet calico-libnetwork .*: No such file"),
    ],
)
async def test_refused_elements_change_nothing(namespace: Namespace, nft: Nft, other: str, complaint: str) -> None:
    """Somebody else was there since the table was read."""
    table = empty()
    table.elements.want(("from_wl", '"gone"'), "goto sig_a")
    await TableWriter(nft, table).apply()
    namespace.run("nft", "-f", "-", stdin=other)
    before = namespace.run("nft", "list", "ruleset")
    table.elements.unwant(("from_wl", '"gone"'))
    table.elements.want(("from_wl", '"new"'), "goto sig_a")
    table.elements.want(("by_address", "fd00::1"), "accept")
    table.elements.want(("s4", "10.0.0.1"), "")
    with pytest.raises(DataplaneError, match=complaint):
        await nft.run(messages_of(table))
    assert namespace.run("nft", "list", "ruleset") == before
    assert await TableWriter(nft, table).apply() is True
    assert await TableWriter(nft, table).apply() is False


async def test_elements_to_a_chain_that_is_not_there_are_refused(namespace: Namespace, nft: Nft) -> None:
    table = empty()
    await TableWriter(nft, table).apply()
    before = namespace.run("nft", "list", "ruleset")
    table.elements.want(("s4", "10.0.0.1"), "")
    table.elements.want(("from_wl", '"cali1"'), "goto nowhere")
    with pytest.raises(
        DataplaneError, match='the kernel refused element "cali1" of set inet calico-libnetwork from_wl'
    ):
        await nft.run(messages_of(table))
    assert namespace.run("nft", "list", "ruleset") == before


async def test_what_is_refused_as_a_whole_is_told(nft: Nft) -> None:
    table = empty()
    await TableWriter(nft, table).apply()
    table.elements.want(("s4", "10.0.0.1"), "")
    (message,) = messages_of(table)
    of_no_subsystem = replace(message, request=replace(message.request, kind=99 << 8))
    with pytest.raises(DataplaneError, match="the kernel refused elements"):
        await nft.run([of_no_subsystem])


async def test_own_elements_are_told_from_those_of_others(namespace: Namespace, nft: Nft) -> None:
    table = empty()
    changes: list[ForeignChange] = []
    async with NftMonitor(nft, changes.append):
        writer = TableWriter(nft, table)
        await writer.apply()
        for number in range(20):
            table.elements.want(("from_wl", f'"cali{number}"'), "goto sig_a")
            await writer.apply()
        await asyncio.sleep(0.05)
        assert changes == []
        namespace.run("nft", "add", "element", "inet", NAME, "s4", "{ 10.0.0.1 }")
        await eventually(lambda: any(change.touches("inet", NAME) for change in changes))

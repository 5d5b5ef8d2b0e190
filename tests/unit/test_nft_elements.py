"""What of a plan goes to the kernel as messages, and what is left to nft's text."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from calico_libnetwork.dataplane.netlink import attributes
from calico_libnetwork.dataplane.nft_elements import ElementMessage, split
from calico_libnetwork.dataplane.nft_program import difference, preparation
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table

NEW, DELETE = 10 << 8 | 12, 10 << 8 | 14
MAP = SetSpec("map", "type ifname : verdict;")
ADDRESSES = SetSpec("set", "type ipv4_addr;")
NETWORKS = SetSpec("set", "type ipv4_addr; flags interval;")
PORTS = SetSpec("set", "type ipv6_addr . inet_proto . inet_service;")
HOOK = "type filter hook forward priority -1; policy accept;"


def written(*elements: tuple[str, str, str]) -> Table:
    """A table that the kernel holds as it is wanted."""
    table = Table("inet", "t")
    for name, spec in {"from_wl": MAP, "s4": ADDRESSES, "n4": NETWORKS, "np6": PORTS}.items():
        table.sets.want(name, spec)
    table.chains.want("forward", Chain(("iifname vmap @from_wl",), HOOK))
    table.chains.want("sig_a", Chain(("accept",)))
    for name, text, verdict in elements:
        table.elements.want((name, text), verdict)
    difference(table).settle(table)
    return table


def summary(messages: Iterable[ElementMessage]) -> list[tuple[int, str, list[str]]]:
    return [(message.request.kind, message.set_name, list(message.elements)) for message in messages]


def test_endpoint_more_is_messages_alone() -> None:
    table = written()
    table.elements.want(("from_wl", '"cali7"'), "goto sig_a")
    table.elements.want(("s4", "10.65.0.7"), "")
    messages, rest = split(table, difference(table))
    assert sorted(summary(messages)) == [(NEW, "inet t from_wl", ['"cali7"']), (NEW, "inet t s4", ["10.65.0.7"])]
    assert not rest


def test_message_holds_family_table_set_key_and_verdict() -> None:
    table = written()
    table.elements.want(("from_wl", '"cali7"'), "goto sig_a")
    (message,), _ = split(table, difference(table))
    assert message.request.body[:4] == b"\1\0\0\0"
    found = attributes(message.request.body, 4)
    assert (found[1], found[2]) == (b"t\0", b"from_wl\0")
    element = attributes(attributes(found[3])[1])
    assert attributes(element[1])[1] == b"cali7".ljust(16, b"\0")
    verdict = attributes(attributes(element[2])[2])
    assert verdict == {1: struct.pack(">i", -4), 2: b"sig_a\0"}


@pytest.mark.parametrize(
    ("element", "key"),
    [
        (("s4", "10.1.2.3"), "0a010203"),
        (("np6", "fd00::1 . tcp . 80"), "fd000000000000000000000000000001" + "06000000" + "00500000"),
        (("np6", "fd00::1 . 132 . 65535"), "fd000000000000000000000000000001" + "84000000" + "ffff0000"),
    ],
)
def test_keys_are_in_network_order_each_part_of_whole_words(element: tuple[str, str], key: str) -> None:
    table = written()
    table.elements.want(element, "")
    (message,), _ = split(table, difference(table))
    value = attributes(attributes(attributes(attributes(message.request.body, 4)[3])[1])[1])[1]
    assert value.hex() == key


def test_changed_verdict_is_deleted_before_it_is_added() -> None:
    table = written(("from_wl", '"cali0"', "goto sig_a"))
    table.elements.want(("from_wl", '"cali0"'), "drop")
    messages, _ = split(table, difference(table))
    assert [message.request.kind for message in messages] == [DELETE, NEW]


def test_intervals_are_left_to_a_transaction_before() -> None:
    table = written(("n4", "10.0.0.0/8", ""))
    table.elements.want(("from_wl", '"cali7"'), "goto sig_a")
    table.elements.want(("n4", "10.0.0.0/9"), "")
    table.elements.unwant(("n4", "10.0.0.0/8"))
    messages, rest = split(table, difference(table))
    assert [message.set_name for message in messages] == ["inet t from_wl"]
    assert rest.elements == {("n4", "10.0.0.0/9"): ""}
    assert rest.gone_elements == {("n4", "10.0.0.0/8")}


def test_elements_beside_changed_rules_stay_in_their_transaction() -> None:
    table = written()
    table.chains.want("sig_a", Chain(("drop",)))
    table.elements.want(("from_wl", '"cali7"'), "goto sig_a")
    plan = difference(table)
    assert split(table, plan) == ((), plan)


def test_new_sets_are_filled_by_messages_before_rules_name_them() -> None:
    table = written()
    table.sets.want("s4_b", ADDRESSES)
    table.elements.want(("s4_b", "10.0.0.1"), "")
    table.chains.want("sig_b", Chain(("ip saddr @s4_b accept",)))
    messages, rest = split(table, preparation(table))
    assert summary(messages) == [(NEW, "inet t s4_b", ["10.0.0.1"])]
    assert (set(rest.sets), set(rest.chains), rest.elements) == ({"s4_b"}, {"sig_b"}, {})


@pytest.mark.parametrize(
    "element",
    [
        ("from_wl", "cali*"),
        ("from_wl", "an-interface-with-a-long-name"),
        ("s4", "10.0.0.0/24"),
        ("s4", "localhost"),
        ("np6", "fd00::1 . tcp"),
        ("np6", "fd00::1 . tcp . http"),
        ("np6", "fd00::1 . tcp . 65536"),
    ],
)
def test_what_cannot_be_read_is_left_to_nft_with_all_the_rest(element: tuple[str, str]) -> None:
    table = written()
    table.elements.observe(element, "")  # somebody else's
    table.elements.want(("from_wl", '"cali7"'), "goto sig_a")
    plan = difference(table)
    assert split(table, plan) == ((), plan)


@pytest.mark.parametrize("declaration", ["type mark;", "type inet_service;", "type ipv4_addr; flags timeout;", ""])
def test_sets_of_other_types_are_left_to_nft(declaration: str) -> None:
    table = written()
    table.sets.want("other", SetSpec("set", declaration))
    table.sets.observe("other", SetSpec("set", declaration))
    table.elements.want(("other", "1"), "")
    plan = difference(table)
    assert split(table, plan) == ((), plan)


def test_many_elements_are_portioned_in_order() -> None:
    table = written()
    texts = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(10_000)]
    for text in texts:
        table.elements.want(("s4", text), "")
    messages, _ = split(table, difference(table))
    assert sorted(text for message in messages for text in message.elements) == sorted(texts)
    assert len(messages) > 1
    assert all(len(message.request.body) < 65536 for message in messages)


def test_refusal_names_the_element_where_the_kernel_found_fault() -> None:
    table = written()
    for number in range(3):
        table.elements.want(("from_wl", f'"cali{number}"'), "goto sig_a")
    (message,), _ = split(table, difference(table))
    body = message.request.body
    for element in message.elements:
        offset = 16 + body.index(element.strip('"').encode()) - 12
        assert message.describe(offset) == f"element {element} of set inet t from_wl"
    assert message.describe(0) == "set inet t from_wl"

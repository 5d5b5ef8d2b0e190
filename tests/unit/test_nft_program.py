"""The transaction made from a difference: what must come before what, and nothing that is not needed."""

from __future__ import annotations

from calico_libnetwork.dataplane.nft_listing import mark, set_mark
from calico_libnetwork.dataplane.nft_program import addition, difference, preparation, render
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table

MAP = SetSpec("map", "type ifname : verdict;")
HOOK = "type filter hook forward priority -1; policy accept;"


def written(*, endpoints: int = 1) -> Table:
    """A table that the kernel holds as it is wanted."""
    table = Table("inet", "t")
    table.sets.want("from_wl", MAP)
    table.chains.want("forward", Chain(("iifname vmap @from_wl",), HOOK))
    table.chains.want("sig_a", Chain(("accept",)))
    for number in range(endpoints):
        table.elements.want(("from_wl", f"cali{number}"), "goto sig_a")
    difference(table).settle(table)
    assert table.in_sync
    return table


def program(table: Table) -> list[str]:
    return render(table, difference(table)).splitlines()


def test_nothing_to_do_makes_no_plan() -> None:
    assert not difference(written())


def test_new_endpoint_is_one_line() -> None:
    table = written()
    table.elements.want(("from_wl", "cali7"), "goto sig_a")
    assert program(table) == ["add table inet t", "add element inet t from_wl { cali7 : goto sig_a }"]


def test_chain_comes_before_the_element_that_goes_to_it() -> None:
    table = written()
    table.chains.want("sig_b", Chain(("drop",)))
    table.elements.want(("from_wl", "cali7"), "goto sig_b")
    assert program(table) == [
        "add table inet t",
        "add chain inet t sig_b",
        f'add rule inet t sig_b drop comment "{mark("drop")}"',
        "add element inet t from_wl { cali7 : goto sig_b }",
    ]


def test_changed_verdict_is_a_deletion_and_an_addition() -> None:
    table = written()
    table.elements.want(("from_wl", "cali0"), "drop")
    assert program(table) == [
        "add table inet t",
        "delete element inet t from_wl { cali0 }",
        "add element inet t from_wl { cali0 : drop }",
    ]


def test_changed_chain_is_flushed_and_written_anew() -> None:
    table = written()
    table.chains.want("sig_a", Chain(("drop",)))
    assert program(table) == [
        "add table inet t",
        "flush chain inet t sig_a",
        f'add rule inet t sig_a drop comment "{mark("drop")}"',
    ]


def test_unwanted_objects_go_when_nothing_refers_to_them() -> None:
    table = written()
    table.elements.want_exactly({})
    table.sets.want_exactly({})
    table.chains.want_exactly({"forward": Chain((), HOOK)})
    assert program(table) == [
        "add table inet t",
        "flush chain inet t forward",
        "flush chain inet t sig_a",
        "delete map inet t from_wl",
        "delete chain inet t sig_a",
    ]


def test_base_chain_with_another_hook_is_made_anew() -> None:
    table = written()
    table.chains.want("forward", Chain(("iifname vmap @from_wl",), HOOK.replace("accept", "drop")))
    lines = program(table)
    assert lines[1:4] == [
        "flush chain inet t forward",
        "delete chain inet t forward",
        f"add chain inet t forward {{ {HOOK.replace('accept', 'drop')} }}",
    ]


def test_changed_set_replaces_the_table_in_the_same_transaction() -> None:
    table = written()
    changed = SetSpec("map", "type ifname : verdict; flags interval;")
    table.sets.want("from_wl", changed)
    lines = program(table)
    assert lines[:3] == ["add table inet t", "delete table inet t", "add table inet t"]
    assert f'add map inet t from_wl {{ {changed.declaration} comment "{set_mark(changed)}"; }}' in lines
    assert "add element inet t from_wl { cali0 : goto sig_a }" in lines


def test_addition_takes_nothing_away_and_leaves_chains_that_hold_rules() -> None:
    table = written()
    table.elements.want_exactly({})
    table.chains.unwant("sig_a")
    table.chains.want("forward", Chain(("drop",), HOOK))
    assert not addition(table)
    table.chains.observe("forward", Chain(("",), HOOK))  # flushed, or filled by somebody else
    lines = render(table, addition(table)).splitlines()
    assert not [line for line in lines if line.startswith("delete")]
    assert "flush chain inet t forward" in lines


def test_new_chains_and_sets_are_prepared_before_anything_refers_to_them() -> None:
    table = written()
    table.chains.want("forward", Chain(("ip saddr @n4_b accept",), HOOK))
    table.chains.want("sig_b", Chain(("ip saddr @s4_b accept", "drop")))
    table.sets.want("s4_b", SetSpec("set", "type ipv4_addr;"))
    table.elements.want(("s4_b", "10.0.0.1"), "")
    table.elements.want(("from_wl", "cali9"), "goto sig_b")
    plan = preparation(table)
    assert (set(plan.chains), set(plan.sets), set(plan.elements)) == ({"sig_b"}, {"s4_b"}, {("s4_b", "10.0.0.1")})
    plan.settle(table)
    rest = difference(table)
    assert (set(rest.chains), set(rest.elements)) == ({"forward"}, {("from_wl", "cali9")})
    assert not preparation(table)


def test_a_new_plain_set_alone_needs_no_preparation_but_an_interval_set_does() -> None:
    table = written()
    table.sets.want("s4_b", SetSpec("set", "type ipv4_addr;"))
    assert not preparation(table)
    table.sets.want("n4_b", SetSpec("set", "type ipv4_addr; flags interval;"))
    assert set(preparation(table).sets) == {"s4_b", "n4_b"}


def test_what_is_wanted_meanwhile_is_still_to_do() -> None:
    table = written()
    table.elements.want(("from_wl", "cali7"), "goto sig_a")
    plan = difference(table)
    table.elements.want(("from_wl", "cali8"), "goto sig_a")
    table.elements.want(("from_wl", "cali7"), "drop")
    plan.settle(table)
    assert table.elements.changes() == {("from_wl", "cali8"): "goto sig_a", ("from_wl", "cali7"): "drop"}

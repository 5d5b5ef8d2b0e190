"""From the difference between a table's desired and actual content to one nft transaction. Pure.

Order within the transaction: sets and chains are declared first, so that any rule may refer to any of them; elements
that go leave before those that come, since an interval may be split; chains' rules; then elements, whose verdicts
need the chains; what is not wanted any more goes last, when nothing refers to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from calico_libnetwork.dataplane.nft_listing import mark, parse_hook, set_mark
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table

Element = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is written and removed. With ``whole`` it stands in the place of all that was there.

    ``unseen``: nothing that packets meet refers to any of it yet.
    """

    whole: bool
    sets: Mapping[str, SetSpec]
    chains: Mapping[str, Chain]
    elements: Mapping[Element, str]
    gone_sets: Mapping[str, SetSpec] = field(default_factory=dict)
    gone_chains: frozenset[str] = frozenset()
    gone_elements: frozenset[Element] = frozenset()
    rehooked: frozenset[str] = frozenset()
    known_chains: frozenset[str] = field(default_factory=frozenset)
    unseen: bool = False

    @property
    def separable(self) -> bool:
        """Whether elements of plain sets may follow in a transaction of their own. Intervals are no part of the
        instant at which the others become visible anyway.
        """
        return self.unseen or not (self.whole or self.sets or self.chains or self.gone_sets or self.gone_chains)

    def __bool__(self) -> bool:
        return self.whole or any(
            (self.sets, self.chains, self.elements, self.gone_sets, self.gone_chains, self.gone_elements)
        )

    def settle(self, table: Table) -> None:
        """The kernel took it: what was written is actual now. What was wanted meanwhile is still to do."""
        if self.whole:
            table.sets.observe_exactly(self.sets)
            table.chains.observe_exactly(self.chains)
            table.elements.observe_exactly(self.elements)
            return
        for element in self.gone_elements:
            table.elements.observe_gone(element)
        for chain in self.gone_chains:
            table.chains.observe_gone(chain)
        for name in self.gone_sets:
            table.sets.observe_gone(name)
        table.sets.observe_each(self.sets)
        table.chains.observe_each(self.chains)
        table.elements.observe_each(self.elements)


def replacement(table: Table) -> Plan:
    return Plan(
        whole=True,
        sets=dict(table.sets.desired),
        chains=dict(table.chains.desired),
        elements=dict(table.elements.desired),
    )


def difference(table: Table) -> Plan:
    """The whole table where a set's type changes: rules refer to the set, it cannot be made anew under them."""
    if any(name in table.sets.actual for name in table.sets.changes()):
        return replacement(table)
    elements = table.elements.changes()
    leaving = {*table.elements.removals(), *(element for element in elements if element in table.elements.actual)}
    return Plan(
        whole=False,
        sets=table.sets.changes(),
        chains=table.chains.changes(),
        elements=elements,
        gone_sets={name: table.sets.actual[name] for name in table.sets.removals()},
        gone_chains=frozenset(table.chains.removals()),
        gone_elements=frozenset(leaving),
        rehooked=_rehooked(table),
        known_chains=frozenset(table.chains.actual),
    )


def preparation(table: Table) -> Plan:
    """New chains and new sets with their elements, before anything refers to them.

    A transaction is not one instant for every packet. Interval elements become visible a little later than rules,
    and a packet that is on its way when the rules change finds new chains empty: in between, policy would have holes.
    """
    actual = table.chains.actual
    chains = {name: chain for name, chain in table.chains.changes().items() if name not in actual and not chain.hook}
    sets = {name: spec for name, spec in table.sets.changes().items() if name not in table.sets.actual}
    if not chains and not any("interval" in spec.declaration for spec in sets.values()):
        return Plan(whole=False, unseen=True, sets={}, chains={}, elements={})
    elements = table.elements.changes() if sets else {}
    return Plan(
        whole=False,
        unseen=True,
        sets=sets,
        chains=chains,
        elements={element: verdict for element, verdict in elements.items() if element[0] in sets},
        known_chains=frozenset(actual),
    )


def addition(table: Table) -> Plan:
    """What is missing, without taking anything away: a chain that holds rules of ours stays as it is."""
    actual = table.chains.actual
    chains = {
        name: chain
        for name, chain in table.chains.changes().items()
        if name not in actual or not any(actual[name].rules)
    }
    return Plan(
        whole=False,
        sets={name: spec for name, spec in table.sets.changes().items() if name not in table.sets.actual},
        chains=chains,
        elements={e: verdict for e, verdict in table.elements.changes().items() if e not in table.elements.actual},
        rehooked=_rehooked(table) & chains.keys(),
        known_chains=frozenset(actual),
    )


def render(table: Table, plan: Plan) -> str:
    return "\n".join(_lines(f"{table.family} {table.name}", plan)) + "\n"


def _lines(table: str, plan: Plan) -> Iterator[str]:
    yield f"add table {table}"
    if plan.whole:
        yield f"delete table {table}"
        yield f"add table {table}"
    for name, spec in plan.sets.items():
        yield f'add {spec.kind} {table} {name} {{ {spec.declaration} comment "{set_mark(spec)}"; }}'
    yield from _declare_chains(table, plan)
    yield from _element_lines("delete", table, _without_sets(plan.gone_elements, plan.gone_sets))
    for name, chain in plan.chains.items():
        if name in plan.known_chains and name not in plan.rehooked:
            yield f"flush chain {table} {name}"
        for rule in chain.rules:
            yield f'add rule {table} {name} {rule} comment "{mark(rule)}"'
    yield from _element_lines("add", table, plan.elements)
    for name in plan.gone_chains:
        yield f"flush chain {table} {name}"
    for name, spec in plan.gone_sets.items():
        yield f"delete {spec.kind} {table} {name}"
    for name in plan.gone_chains:
        yield f"delete chain {table} {name}"


def _declare_chains(table: str, plan: Plan) -> Iterator[str]:
    for name in plan.rehooked:
        yield f"flush chain {table} {name}"
        yield f"delete chain {table} {name}"
    for name, chain in plan.chains.items():
        if name not in plan.known_chains or name in plan.rehooked:
            yield f"add chain {table} {name} {{ {chain.hook} }}" if chain.hook else f"add chain {table} {name}"


def _element_lines(verb: str, table: str, elements: Mapping[Element, str]) -> Iterator[str]:
    for name, members in by_set(elements).items():
        texts = [f"{text} : {verdict}" if verdict else text for text, verdict in members.items()]
        yield f"{verb} element {table} {name} {{ {', '.join(texts)} }}"


def by_set(elements: Mapping[Element, str]) -> dict[str, dict[str, str]]:
    """Of each set its elements' texts and verdicts."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for (name, text), verdict in elements.items():
        found[name][text] = verdict
    return found


def _without_sets(elements: Iterable[Element], sets: Collection[str]) -> dict[Element, str]:
    return dict.fromkeys((element for element in elements if element[0] not in sets), "")


def _rehooked(table: Table) -> frozenset[str]:
    """Base chains whose type, hook, priority or policy is to change, which nft only does for a new chain."""
    return frozenset(
        name
        for name, chain in table.chains.changes().items()
        if name in table.chains.actual and parse_hook(table.chains.actual[name].hook) != parse_hook(chain.hook)
    )

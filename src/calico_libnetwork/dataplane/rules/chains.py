"""The chains behind the verdict maps: shared, counted, each written once however many endpoints go through it.

sig_*         one per distinct list of tiers and profiles in one direction ("signature"); named by content
tier_*        the policies of one tier that apply, then the tier's end; named by content
policy_in_*   the rules of one policy or profile in one direction; named by identity
profile_out_*
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calico_libnetwork.dataplane.rules import names
from calico_libnetwork.dataplane.rules.matching import port_sets, rule_texts, verdict_text
from calico_libnetwork.dataplane.rules.members import Members
from calico_libnetwork.dataplane.table import Chain, Table
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.resolver import CompiledPolicy, CompiledProfile, ResolvedTier
from calico_libnetwork.policy.rule import Direction, RuleMatch
from calico_libnetwork.policy.settings import Options, quotable

_KIND_WORDS = {"GlobalNetworkPolicy": "gnp", "NetworkPolicy": "np", "Profile": "profile"}


@dataclass(frozen=True, slots=True)
class RuleChain:
    """The chain of one policy or profile in one direction, known by its identity."""

    key: ResourceKey
    direction: Direction

    @property
    def name(self) -> str:
        return names.rule_chain_name(self.key, self.direction)


@dataclass(frozen=True, slots=True)
class SharedChain:
    """A chain named by its content; ``references`` are the chains it jumps to."""

    name: str
    rules: tuple[str, ...]
    references: tuple[SharedChain | RuleChain, ...]


def signature(
    tiers: Sequence[ResolvedTier], profiles: Sequence[str], direction: Direction, options: Options
) -> SharedChain:
    invalid = ", invalid : drop" if options.drop_invalid else ""
    clear = f"meta mark set meta mark & {~options.pass_mark & 0xFFFFFFFF:#010x}"
    rules = [f"ct state vmap {{ established : accept, related : accept{invalid} }}"]
    references: list[SharedChain | RuleChain] = []
    for tier in tiers:
        chain = _tier_chain(tier, direction, options)
        passing = any(policy.passes(direction) for policy in tier.policies)
        rules += [clear, f"jump {chain.name}", clear] if passing else [f"jump {chain.name}"]
        references.append(chain)
    for profile in profiles:
        reference = RuleChain(ResourceKey("Profile", profile), direction)
        rules.append(f"jump {reference.name}")
        references.append(reference)
    rules.append(options.deny)
    return SharedChain(names.content_name("sig", rules), tuple(rules), tuple(references))


def _tier_chain(tier: ResolvedTier, direction: Direction, options: Options) -> SharedChain:
    rules: list[str] = []
    references = []
    for policy in tier.policies:
        reference = RuleChain(policy.key, direction)
        references.append(reference)
        rules.append(f"jump {reference.name}")
        if policy.passes(direction):
            rules.append(f"meta mark & {options.pass_mark:#010x} != 0 return")
    if tier.denies:
        rules.append(options.deny)
    return SharedChain(names.content_name("tier", rules), tuple(rules), tuple(references))


# what a chain of a policy or profile is made of; None for a profile that does not exist
Source = Callable[[ResourceKey], CompiledPolicy | CompiledProfile | None]


@dataclass(slots=True)
class _Users:
    count: int = 0
    selectors: frozenset[Selector] = frozenset()
    ports: frozenset[tuple[Selector, str]] = frozenset()


@dataclass(slots=True)
class Chains:
    """Holds each chain as often as something refers to it, and with the chains the sets they name."""

    table: Table
    members: Members
    source: Source
    options: Options
    _shared: dict[str, int] = field(default_factory=dict)
    _rule_chains: dict[RuleChain, _Users] = field(default_factory=dict)
    _by_name: dict[str, RuleChain] = field(default_factory=dict)

    def hold(self, chain: SharedChain | RuleChain) -> None:
        if isinstance(chain, RuleChain):
            self._hold_rules(chain)
            return
        count = self._shared.get(chain.name, 0)
        self._shared[chain.name] = count + 1
        if count == 0:
            for reference in chain.references:
                self.hold(reference)
            self.table.chains.want(chain.name, Chain(chain.rules))

    def drop(self, chain: SharedChain | RuleChain) -> None:
        if isinstance(chain, RuleChain):
            self._drop_rules(chain)
            return
        count = self._shared[chain.name] - 1
        if count:
            self._shared[chain.name] = count
            return
        del self._shared[chain.name]
        self.table.chains.unwant(chain.name)
        for reference in chain.references:
            self.drop(reference)

    def refresh(self, chain: RuleChain) -> None:
        """Writes the chain anew if it is in use: its policy, profile or a set it names has changed."""
        users = self._rule_chains.get(chain)
        if users is not None:
            self._write(chain, users)

    def refresh_stale(self) -> None:
        for name in sorted(self.members.stale_chains):
            chain = self._by_name.get(name)
            if chain is not None:
                self.refresh(chain)
        self.members.stale_chains.clear()

    def refresh_all(self, options: Options) -> None:
        self.options = options
        for chain, users in self._rule_chains.items():
            self._write(chain, users)

    def _hold_rules(self, chain: RuleChain) -> None:
        users = self._rule_chains.get(chain)
        if users is None:
            users = self._rule_chains[chain] = _Users()
            self._by_name[chain.name] = chain
            self._write(chain, users)
        users.count += 1

    def _drop_rules(self, chain: RuleChain) -> None:
        users = self._rule_chains[chain]
        users.count -= 1
        if users.count == 0:
            del self._rule_chains[chain]
            del self._by_name[chain.name]
            self.table.chains.unwant(chain.name)
            self._use_sets(chain, users, frozenset(), frozenset())

    def _write(self, chain: RuleChain, users: _Users) -> None:
        compiled = self.source(chain.key)
        if compiled is None:
            self._use_sets(chain, users, frozenset(), frozenset())
            self.table.chains.want(chain.name, Chain((self.options.deny,)))
            return
        rules = compiled.rules.get(chain.direction, ())
        selectors = frozenset(selector for rule in rules for selector in rule.selectors())
        self._use_sets(chain, users, selectors, frozenset(named for rule in rules for named in port_sets(rule)))
        texts = [text for rule in rules for text in self._texts(rule, compiled)]
        self.table.chains.want(chain.name, Chain(tuple(texts)))

    def _texts(self, rule: RuleMatch, compiled: CompiledPolicy | CompiledProfile) -> list[str]:
        prefix = _log_prefix(self.options.log_prefix, compiled) if rule.action == "log" else ""
        return rule_texts(rule, verdict_text(rule.action, self.options, prefix), self.members.network_sets)

    def _use_sets(
        self,
        chain: RuleChain,
        users: _Users,
        selectors: frozenset[Selector],
        ports: frozenset[tuple[Selector, str]],
    ) -> None:
        """Takes hold of what is new before it lets go of what is no longer named."""
        for selector in selectors - users.selectors:
            self.members.use(selector, chain.name)
        for selector, port in ports - users.ports:
            self.members.use_port(selector, port, chain.name)
        for selector in users.selectors - selectors:
            self.members.disuse(selector, chain.name)
        for selector, port in users.ports - ports:
            self.members.disuse_port(selector, port, chain.name)
        users.selectors, users.ports = selectors, ports


def _log_prefix(template: str, compiled: CompiledPolicy | CompiledProfile) -> str:
    """``%t %k %p %n``: tier, kind, namespace/name, name; a colon and a blank close it."""
    key = compiled.key
    name, tier = (compiled.name, compiled.tier) if isinstance(compiled, CompiledPolicy) else (key.name, "")
    qualified = f"{key.namespace}/{name}" if key.namespace else name
    values = {"%t": tier, "%k": _KIND_WORDS.get(key.kind, key.kind), "%p": qualified, "%n": name}
    for word, value in values.items():
        template = template.replace(word, value)
    return f"{quotable(template)}: "

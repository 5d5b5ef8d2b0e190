"""Random policy, endpoints and packets: the compiled rules in a real kernel against a direct reading of the rules,
and what ``explain`` says about each packet against both.

``POLICY_CASES`` is the number of random worlds (default 2000), ``POLICY_SEED`` where they begin; a failure names
its seed, and POLICY_SEED=that POLICY_CASES=1 repeats it alone.
"""

from __future__ import annotations

import os
from random import Random

import msgspec
import pytest

from calico_libnetwork.dataplane.rules import RulesSettings
from calico_libnetwork.model.kinds import decode
from calico_libnetwork.policy.explain import Explainer
from tests import policy_worlds as worlds
from tests.policy_oracle import Oracle
from tests.system.conftest import Namespace, Workloads
from tests.system.packets import Packet
from tests.system.policy_lab import Rules, lab

CASES = int(os.environ.get("POLICY_CASES", "2000"))
SEED = int(os.environ.get("POLICY_SEED", "1"))
PACKETS = 24


@pytest.mark.timeout(1200)
def test_packets_fare_in_the_kernel_as_the_rules_of_evaluation_say(namespace: Namespace, workloads: Workloads) -> None:
    decisions = {True: 0, False: 0}
    with lab(namespace, workloads, worlds.WORKLOADS) as host:
        for seed in range(SEED, SEED + CASES):
            random = Random(seed)
            world = worlds.make_world(random)
            content = {key: decode(key, msgspec.json.encode(document)) for key, document in world.items()}
            explainer = Explainer(content, RulesSettings())
            rules = Rules()
            rules.put(*content.items())
            host.load(rules.text())
            flows = worlds.make_flows(random, PACKETS)
            packets = [Packet(flow.source, flow.destination, flow.protocol, flow.first, flow.second) for flow in flows]
            oracle = Oracle(world, node=worlds.NODE, host=worlds.HOST)
            known = {address for number in range(1, worlds.WORKLOADS + 1) for address in worlds.addresses(number)}
            for flow, reached in zip(flows, host.deliver(packets), strict=True):
                closed = any(end in known and oracle.local(end) is None for end in (flow.source, flow.destination))
                expected = not closed and oracle.allows(flow)
                explanation = explainer.explain(worlds.explained_flow(flow))
                agrees = closed or worlds.allowed_on(worlds.NODE, explanation) is expected
                assert agrees, f"seed {seed}: {flow}: {reached=}, {expected=}, {explanation}"
                assert reached is expected, f"seed {seed}: {flow}: {reached=}, {expected=}\n{world}\n{rules.text()}"
                decisions[expected] += 1
    print(f"{CASES} worlds, {decisions[True]} packets allowed, {decisions[False]} denied")
    assert CASES < 100 or min(decisions.values()) > sum(decisions.values()) / 10, decisions

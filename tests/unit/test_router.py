"""Routes to other nodes, and what they depend on."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest

from calico_libnetwork.dataplane.routes import Route
from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.routing.remote_routes import Uplink
from calico_libnetwork.routing.router import Router
from tests.unit.routing_objects import claim, endpoint, key_of, node, pool, release, resource, tell

OURS: dict[str, Any] = {"annotations": {"calico-libnetwork/routes": "direct"}}
UPLINKS: dict[Any, Uplink] = {4: Uplink("eth0", 1500), 6: Uplink("eth0", 1500)}


def network(text: str) -> Any:
    return ipaddress.ip_network(text)


def router(*resources: Any, **settings: Any) -> Router:
    made = Router(node="a", **settings)
    made.set_uplinks(UPLINKS)
    tell(made, node("a", "10.0.0.1/24", "fd00::1/64", **OURS), *resources)
    return made


def direct(*resources: Any, **settings: Any) -> Router:
    """With node b on the same subnet, run by our agent, and a pool without encapsulation per family."""
    return router(
        node("b", "10.0.0.2/24", "fd00::2/64", **OURS),
        pool("pool4", "10.66.0.0/16"),
        pool("pool6", "fd66::/48"),
        *resources,
        **settings,
    )


def routes(made: Router) -> dict[str, Route]:
    return {str(destination): route for destination, route in made.desired().routes.items()}


def findings(made: Router) -> list[str]:
    return [f"{finding.subject}: {finding.text}" for finding in made.desired().findings]


def test_own_block_is_a_blackhole_of_protocol_80() -> None:
    made = direct()
    claim(made, "a", "10.66.0.0/26", "fd66::/122")
    assert routes(made) == {
        block: Route(destination=network(block), kind="blackhole", protocol=80)
        for block in ("10.66.0.0/26", "fd66::/122")
    }
    assert set(made.local_blocks()) == {network("10.66.0.0/26"), network("fd66::/122")}


def test_an_own_block_of_one_address_is_no_blackhole() -> None:
    made = direct()
    claim(made, "a", "10.66.0.0/32", "fd66::1/128")
    assert routes(made) == {}
    assert len(made.local_blocks()) == 2


def test_remote_blocks_go_to_their_node_in_both_families() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26", "fd66::40/122")
    assert routes(made) == {
        "10.66.0.64/26": Route(
            destination=network("10.66.0.64/26"), interface="eth0", gateway=ipaddress.ip_address("10.0.0.2")
        ),
        "fd66::40/122": Route(
            destination=network("fd66::40/122"), interface="eth0", gateway=ipaddress.ip_address("fd00::2")
        ),
    }
    assert findings(made) == []


@pytest.mark.parametrize(
    ("state", "routed"), [("confirmed", True), ("", True), ("pendingDeletion", True), ("pending", False)]
)
def test_which_affinities_count(state: str, routed: bool) -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26", state=state)
    assert bool(routes(made)) is routed


def test_a_released_block_loses_its_route() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26")
    assert made.desired().routes
    release(made, "b", "10.66.0.64/26")
    assert routes(made) == {}


def test_a_block_that_moves_follows() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26")
    claim(made, "a", "10.66.0.64/26")
    assert routes(made)["10.66.0.64/26"].kind == "blackhole"
    release(made, "b", "10.66.0.64/26")
    assert routes(made)["10.66.0.64/26"].kind == "blackhole"
    release(made, "a", "10.66.0.64/26")
    assert routes(made) == {}


def test_unreadable_affinities_and_other_keys_are_no_claims() -> None:
    made = direct()
    made.update_block("/calico/ipam/v2/host/b/ipv4/block/10.66.0.64-26", b"{not json")
    made.update_block("/calico/ipam/v2/assignment/ipv4/block/10.66.0.64-26", b"{}")
    made.update_block("/calico/ipam/v2/host/b", b"")
    assert routes(made) == {}


def test_borrowed_address_of_another_node_has_its_own_route() -> None:
    made = direct()
    claim(made, "a", "10.66.0.0/26")
    tell(made, endpoint("w", "b", "10.66.0.7/32"))
    assert routes(made)["10.66.0.7/32"].gateway == ipaddress.ip_address("10.0.0.2")


def test_an_address_inside_its_nodes_block_needs_no_route() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26")
    tell(made, endpoint("w", "b", "10.66.0.70/32", "fd66::1/128"))
    assert routes(made).keys() == {"10.66.0.64/26", "fd66::1/128"}


def test_a_borrowed_address_stops_being_one_when_its_node_gets_the_block() -> None:
    made = direct()
    tell(made, endpoint("w", "b", "10.66.0.70/32"))
    assert routes(made).keys() == {"10.66.0.70/32"}
    claim(made, "b", "10.66.0.64/26")
    assert routes(made).keys() == {"10.66.0.64/26"}
    release(made, "b", "10.66.0.64/26")
    assert routes(made).keys() == {"10.66.0.70/32"}


def test_addresses_of_own_workloads_are_never_routed_away() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26", "10.66.3.1/32")
    tell(made, endpoint("w", "a", "10.66.0.70/32"), endpoint("x", "a", "10.66.3.1/32"))
    assert routes(made).keys() == {"10.66.0.64/26"}


def test_an_endpoint_that_moves_or_goes_takes_its_route_along() -> None:
    made = direct(node("c", "10.0.0.3/24", **OURS))
    tell(made, endpoint("w", "b", "10.66.0.7/32"))
    assert made.desired().routes
    tell(made, endpoint("w", "c", "10.66.0.7/32"))
    assert routes(made)["10.66.0.7/32"].gateway == ipaddress.ip_address("10.0.0.3")
    made.update(key_of(endpoint("w", "c")), None)
    assert routes(made) == {}


def test_a_node_that_leaves_takes_its_routes_along_and_comes_back_with_another_address() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26")
    assert made.desired().routes
    made.update(ResourceKey("Node", "b"), None)
    assert routes(made) == {}
    assert findings(made) == [
        "Node(b): holds IPAM blocks or addresses and has no Node resource; delete the node to release them"
    ]
    tell(made, node("b", "10.0.0.77/24", **OURS))
    assert routes(made)["10.66.0.64/26"].gateway == ipaddress.ip_address("10.0.0.77")


def test_blocks_outside_every_pool_are_not_routed() -> None:
    made = direct()
    claim(made, "b", "10.99.0.0/26")
    assert routes(made) == {}


def test_a_disabled_pool_is_still_routed_and_one_for_load_balancers_is_not() -> None:
    made = router(
        node("b", "10.0.0.2/24", **OURS),
        pool("one", "10.66.0.0/16", disabled=True),
        pool("two", "10.67.0.0/16", allowedUses=["LoadBalancer"]),
    )
    claim(made, "b", "10.66.0.0/26", "10.67.0.0/26")
    assert routes(made).keys() == {"10.66.0.0/26"}


def test_without_uplink_there_is_no_route_but_a_sentence() -> None:
    made = direct()
    made.set_uplinks({})
    claim(made, "b", "10.66.0.64/26")
    assert routes(made) == {}
    assert findings(made) == ["Node(a): its IPv4 address 10.0.0.1 is on no interface of this host"]


def test_a_node_without_an_address_of_the_family_is_named() -> None:
    made = direct(node("c", "10.0.0.3/24", **OURS))
    claim(made, "c", "fd66::40/122")
    assert routes(made) == {}
    assert findings(made)[0].startswith("Node(c): has no IPv6 address")


def test_off_subnet_nodes_cannot_be_reached_directly() -> None:
    made = router(node("b", "10.1.0.2/24", **OURS), pool("pool4", "10.66.0.0/16"), setting="direct")
    claim(made, "b", "10.66.0.64/26")
    assert routes(made) == {}
    assert "is not in this node's IPv4 subnet" in findings(made)[0]


def test_setting_none_leaves_remote_blocks_alone_and_keeps_own_blackholes() -> None:
    made = direct(setting="none")
    claim(made, "a", "10.66.0.0/26")
    claim(made, "b", "10.66.0.64/26")
    assert routes(made).keys() == {"10.66.0.0/26"}


def test_with_bird_remote_blocks_come_by_bgp_but_for_nodes_without_bird() -> None:
    made = direct(node("c", "10.0.0.3/24"))
    claim(made, "b", "10.66.0.64/26")
    claim(made, "c", "10.66.0.128/26")
    routing = made.desired()
    assert routing.decision.mode == "bird"
    assert routing.bird is not None
    assert [session.name for session in routing.sessions] == ["Mesh_10_0_0_3"]
    assert routes(made).keys() == {"10.66.0.64/26"}


def test_without_bird_installed_direct_routes_take_its_place_and_it_is_said() -> None:
    made = direct(node("c", "10.0.0.3/24"), bird_installed=False)
    claim(made, "c", "10.66.0.128/26")
    assert made.desired().bird is None
    assert routes(made).keys() == {"10.66.0.128/26"}
    assert findings(made) == [
        (
            "BIRD: BIRD is needed, for Node(c) is run by calico/node, which learns routes by BGP, and is not installed;"
            " install the package bird2"
        )
    ]


def test_ipip_pool_is_refused_with_one_finding_that_names_pool_and_remedy() -> None:
    made = router(node("b", "10.0.0.2/24", **OURS), pool("tunnel", "10.66.0.0/16", ipipMode="Always"), setting="direct")
    claim(made, "b", "10.66.0.64/26", "10.66.0.128/26")
    assert {route.kind for route in routes(made).values()} == {"unreachable"}
    assert findings(made) == [
        (
            "IPPool(tunnel): ipipMode Always needs IPIP, which this kernel does not have; packets to it are refused"
            " here: set ipipMode Never and vxlanMode CrossSubnet"
        )
    ]


@pytest.mark.parametrize(("address", "kind"), [("10.0.0.2/24", "unicast"), ("10.1.0.2/24", "unreachable")])
def test_ipip_cross_subnet_needs_ipip_only_across_subnets(address: str, kind: str) -> None:
    made = router(node("b", address, **OURS), pool("tunnel", "10.66.0.0/16", ipipMode="CrossSubnet"))
    claim(made, "b", "10.66.0.64/26")
    assert routes(made)["10.66.0.64/26"].kind == kind
    assert bool(findings(made)) is (kind == "unreachable")


def test_ipip_where_the_kernel_has_it() -> None:
    made = router(
        node("b", "10.1.0.2/24", **OURS), pool("tunnel", "10.66.0.0/16", ipipMode="Always"), ipip_supported=True
    )
    claim(made, "b", "10.66.0.64/26")
    route = routes(made)["10.66.0.64/26"]
    assert (route.interface, route.gateway) == ("tunl0", ipaddress.ip_address("10.1.0.2"))
    assert made.desired().tunnels_wanted == {"ipip4"}
    assert made.desired().workload_mtu == 1480


def vxlan(mode: str = "Always", other: str = "10.0.0.2/24", tunnel: str = "10.66.0.65") -> Router:
    made = Router(node="a", setting="direct")
    made.set_uplinks(UPLINKS)
    tell(
        made,
        node("a", "10.0.0.1/24", spec={"ipv4VXLANTunnelAddr": "10.66.0.1"}, **OURS),
        node("b", other, spec={"ipv4VXLANTunnelAddr": tunnel} if tunnel else {}, **OURS),
        pool("pool4", "10.66.0.0/16", vxlanMode=mode),
    )
    claim(made, "a", "10.66.0.0/26")
    claim(made, "b", "10.66.0.64/26")
    return made


def test_vxlan_route_goes_to_the_tunnel_address_with_the_tunnels_mtu() -> None:
    made = vxlan()
    assert routes(made)["10.66.0.64/26"] == Route(
        destination=network("10.66.0.64/26"),
        interface="vxlan.calico",
        gateway=ipaddress.ip_address("10.66.0.65"),
        mtu=1450,
    )
    state = made.desired().vxlan
    device, (remote,) = state.devices[4], state.remotes[4]
    assert (device.name, device.vni, device.port, device.mtu) == ("vxlan.calico", 4096, 4789, 1450)
    assert (device.parent, str(device.local), str(device.address)) == ("eth0", "10.0.0.1", "10.66.0.1")
    assert (remote.node, str(remote.address), str(remote.underlay)) == ("b", "10.66.0.65", "10.0.0.2")
    assert made.desired().tunnels_wanted == {"vxlan4"}
    assert made.desired().workload_mtu == 1450


def test_vxlan_macs_are_calicos() -> None:
    device = vxlan().desired().vxlan.devices[4]
    assert device.mac == "66:86:f7:e4:37:fa"  # 0x66 and SHA-1 of "a"


@pytest.mark.parametrize(("other", "interface"), [("10.0.0.2/24", "eth0"), ("10.1.0.2/24", "vxlan.calico")])
def test_vxlan_cross_subnet_is_direct_on_one_subnet(other: str, interface: str) -> None:
    assert routes(vxlan("CrossSubnet", other))["10.66.0.64/26"].interface == interface


def test_borrowed_tunnel_address_is_on_the_tunnels_link() -> None:
    made = vxlan(tunnel="10.66.9.9")
    assert routes(made)["10.66.9.9/32"] == Route(destination=network("10.66.9.9/32"), interface="vxlan.calico")


def test_a_node_without_tunnel_address_is_refused_rather_than_reached_unencapsulated() -> None:
    made = vxlan(tunnel="")
    assert routes(made)["10.66.0.64/26"].kind == "unreachable"
    assert findings(made)[0].startswith("Node(b): has no IPv4 VXLAN tunnel address yet")


def test_felix_configuration_sets_the_tunnel_and_the_nodes_own_wins() -> None:
    made = vxlan()
    tell(
        made,
        resource("FelixConfiguration", "default", {"vxlanVNI": 7, "vxlanPort": 8472, "vxlanMTU": 1400}),
        resource("FelixConfiguration", "node.a", {"vxlanMTU": 1300}),
        resource("FelixConfiguration", "node.b", {"vxlanVNI": 9}),
    )
    device = made.desired().vxlan.devices[4]
    assert (device.vni, device.port, device.mtu) == (7, 8472, 1300)


def test_of_what_becomes_unreadable_the_last_readable_version_stays() -> None:
    made = direct()
    claim(made, "b", "10.66.0.64/26")
    before = routes(made)
    assert before.keys() == {"10.66.0.64/26"}
    for key in (ResourceKey("IPPool", "pool4"), ResourceKey("Node", "b"), ResourceKey("Node", "a")):
        made.update(key, Unreadable("no", b"", first=False))
    assert routes(made) == before
    tell(made, pool("pool4", "10.66.0.0/16"))
    assert routes(made) == before


def test_an_unreadable_resource_of_routing_alone_is_reported() -> None:
    made = direct()
    peer = ResourceKey("BGPPeer", "peer")
    made.update(peer, Unreadable("no", b"", first=False))
    assert findings(made) == ["BGPPeer(peer): it cannot be read; it is left out"]
    tell(made, resource("BGPPeer", "peer", {"peerIP": "192.0.2.9", "asNumber": 64512}))
    assert findings(made) == []
    made.update(peer, Unreadable("no", b"", first=False))
    assert findings(made) == ["BGPPeer(peer): it cannot be read; its last readable version stays in force"]
    made.update(peer, None)
    assert findings(made) == []


@pytest.mark.parametrize("kind", ["GlobalNetworkPolicy", "IPPool", "Node"])
def test_an_unreadable_resource_that_policy_uses_is_for_policy_to_report(kind: str) -> None:
    made = direct()
    made.update(ResourceKey(kind, "x"), Unreadable("no", b"", first=False))
    assert findings(made) == []


def test_passwords_are_asked_for_and_used() -> None:
    made = direct(
        resource("BGPPeer", "tor", {"peerIP": "10.0.0.254", "password": {"secretKeyRef": {"name": "s", "key": "k"}}})
    )
    assert made.secrets_wanted() == {("s", "k")}
    assert 'password "' not in (made.desired().bird or "")
    made.set_passwords({("s", "k"): "secret"})
    assert 'password "secret";' in (made.desired().bird or "")
    assert "secret" not in repr(made.desired())


def test_an_update_that_changes_nothing_gives_the_same_objects() -> None:
    made = direct(node("c", "10.0.0.3/24"))
    claim(made, "c", "10.66.0.128/26")
    before = made.desired()
    tell(made, node("c", "10.0.0.3/24"), pool("pool4", "10.66.0.0/16"), endpoint("w", "c", "10.66.0.130/32"))
    assert made.desired().routes is before.routes
    assert made.desired().bird == before.bird


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_updates_ends_in_the_same_state(seed: int) -> None:
    """Half of the objects also come and go in between."""
    objects = [
        node("a", "10.0.0.1/24", spec={"ipv4VXLANTunnelAddr": "10.67.0.1"}, **OURS),
        node("b", "10.0.0.2/24", "fd00::2/64", spec={"ipv4VXLANTunnelAddr": "10.67.0.65"}, **OURS),
        node("c", "10.1.0.2/24", spec={"ipv4VXLANTunnelAddr": "10.67.9.9"}),
        pool("p", "10.66.0.0/16"),
        pool("v", "10.67.0.0/16", vxlanMode="CrossSubnet"),
        resource("BGPPeer", "tor", {"peerIP": "10.0.0.254", "asNumber": 65000}),
        endpoint("w", "b", "10.66.0.7/32", "10.67.0.66/32"),
        endpoint("x", "c", "10.66.0.8/32"),
        endpoint("y", "a", "10.66.0.66/32"),
    ]
    affinities = [("a", "10.66.0.0/26"), ("b", "10.66.0.64/26"), ("b", "10.67.0.64/26"), ("c", "10.67.1.0/26")]
    reference = Router(node="a")
    shuffled = Router(node="a")
    chance = random.Random(seed)
    for made, order in ((reference, list(objects)), (shuffled, chance.sample(objects, len(objects)))):
        made.set_uplinks(UPLINKS)
        for item in order:
            if made is shuffled and chance.random() < 0.5:
                tell(made, item)
                made.desired()
                made.update(key_of(item), None)
            tell(made, item)
            if made is shuffled and chance.random() < 0.5:
                made.desired()
        for owner, block in affinities if made is reference else chance.sample(affinities, len(affinities)):
            if made is shuffled and chance.random() < 0.5:
                claim(made, owner, block)
                made.desired()
                release(made, owner, block)
            claim(made, owner, block)
    assert shuffled.desired() == reference.desired()

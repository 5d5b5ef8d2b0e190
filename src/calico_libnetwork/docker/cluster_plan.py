"""What one host has to do so that its Docker has the cluster's networks, and the cluster this host's. Pure.

A network belongs to the cluster by its uid alone, which this host's records give to a Docker id; a name alone proves
nothing. A network of a user that no record knows is published, or joins the cluster's network of its name if the two
can be one. One that a record knows and Docker no longer has was removed by a user, here, so the cluster's goes too;
one that the cluster no longer has was removed elsewhere, so this host's goes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from calico_libnetwork.docker.cluster_records import ClusterNetwork, LocalNetwork, Member, difference


@dataclass(frozen=True, slots=True)
class View:
    """``networks``: the cluster's, by name; ``members``: this host's records, by Docker id."""

    local: Sequence[LocalNetwork]
    networks: Mapping[str, ClusterNetwork]
    members: Mapping[str, Member]
    daemon: str


@dataclass(frozen=True, slots=True)
class Publish:
    """The cluster gets this host's network."""

    local: LocalNetwork


@dataclass(frozen=True, slots=True)
class Join:
    """This host's network is the cluster's from now on."""

    local: LocalNetwork
    network: ClusterNetwork


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A user of this host removed the network: the cluster loses it."""

    network: ClusterNetwork
    network_id: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The record of a network that neither Docker here nor the cluster has any more."""

    network_id: str


@dataclass(frozen=True, slots=True)
class Create:
    network: ClusterNetwork


@dataclass(frozen=True, slots=True)
class Remove:
    """The cluster no longer has this host's network."""

    local: LocalNetwork


@dataclass(frozen=True, slots=True)
class Clash:
    """Nothing can be done before a user decides; ``reason`` is a sentence for him."""

    name: str
    reason: str


Step = Publish | Join | Withdraw | Forget | Create | Remove | Clash


def plan(view: View) -> list[Step]:
    """What follows from a step is planned when it has been taken."""
    lost = [*_steps_of_lost(view)]
    withdrawn = {step.network.name for step in lost if isinstance(step, Withdraw)}
    networks = {name: network for name, network in view.networks.items() if name not in withdrawn}
    own = [local for local in view.local if local.is_ours]
    present = [*_steps_of_present(view, networks, own)]
    return [*lost, *present, *_steps_of_missing(view, networks, own, present)]


def _steps_of_lost(view: View) -> Iterator[Step]:
    """Of networks that this host once had. A Docker with a new data directory has lost them, and removed none."""
    by_uid = {network.uid: network for network in view.networks.values()}
    existing = {local.id for local in view.local}
    for network_id, member in view.members.items():
        if network_id in existing:
            continue
        network = by_uid.get(member.uid)
        if network is not None and member.daemon == view.daemon:
            yield Withdraw(network, network_id)
        else:
            yield Forget(network_id)


def _steps_of_present(
    view: View, networks: Mapping[str, ClusterNetwork], own: Sequence[LocalNetwork]
) -> Iterator[Step]:
    served = {uid: local.id for local in own if (uid := _uid(view, local))}
    for local in own:
        uid, network = _uid(view, local), networks.get(local.name)
        if network is None:
            yield Remove(local) if uid else Publish(local)
            continue
        wanted = Member(uid=network.uid, name=network.name, daemon=view.daemon)
        if uid == network.uid:
            if view.members.get(local.id) != wanted:
                yield Join(local, network)
            continue
        differing = difference(local.specification, network.specification)
        if not differing and served.setdefault(network.uid, local.id) == local.id:
            yield Join(local, network)
        elif uid:
            yield Remove(local)
        else:
            yield Clash(local.name, _rivalry(local, network, differing))


def _steps_of_missing(
    view: View, networks: Mapping[str, ClusterNetwork], own: Sequence[LocalNetwork], present: Sequence[Step]
) -> Iterator[Step]:
    served = {_uid(view, local) for local in own} | {step.network.uid for step in present if isinstance(step, Join)}
    own_names = {local.name for local in own}  # of these it has been said already what becomes of them
    foreign = {local.name: local.specification.driver for local in view.local if not local.is_ours}
    for network in networks.values():
        if network.uid in served or network.name in own_names:
            continue
        if network.name in foreign:
            yield Clash(
                network.name,
                f"network {network.name} of the cluster, created on {network.node}, cannot exist here, because a"
                f" network of driver {foreign[network.name]} has its name; remove one of the two",
            )
        else:
            yield Create(network)


def _uid(view: View, local: LocalNetwork) -> str:
    member = view.members.get(local.id)
    return member.uid if member is not None else local.uid


def _rivalry(local: LocalNetwork, network: ClusterNetwork, differing: str) -> str:
    reason = differing or "this host has another network of that name already"
    return (
        f"network {local.name} ({local.short_id}) of this host is not the cluster's network of that name, created on"
        f" {network.node} ({reason}); remove one of the two"
    )

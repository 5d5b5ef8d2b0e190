"""Which BGP sessions this node has: the node-to-node mesh, BGPPeers, and the reverse of other nodes' BGPPeers. Pure.

As Calico does it: a session's identity is the peer's address and port; a global BGPPeer wins over one that names
nodes, and an explicit peering over the reverse of one. (BIRD has one session per neighbour, so the mesh leaves out
whom a BGPPeer names.) Sessions of the mesh, and of global peers that are Calico nodes, are one-sided: the side whose
peer's address is the greater *string* waits. Comparing numbers would leave both sides waiting.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import selector
from calico_libnetwork.model.resources import BGPPeer, BGPPeerSpec
from calico_libnetwork.routing.bgp_settings import BgpSettings, SecretReference, seconds, secret_reference
from calico_libnetwork.routing.cluster import (
    FAMILIES,
    Family,
    Finding,
    IPAddress,
    Member,
    parse_as_number,
)

NextHop = Literal["auto", "self", "keep"]
_PASSWORD_LIMIT = 80  # the kernel's for TCP-MD5


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One BGP session. ``port`` 0 is 179; times in seconds; ``source`` None lets the kernel choose.

    ``reflector_cluster`` is set where the peer is a client of this route reflector. ``ttl_security``: the number of
    hops the peer may be away, 0 for off. ``reachable_by``: the gateway through which the peer is reached.
    """

    name: str
    family: Family
    address: IPAddress
    as_number: int
    local_as_number: int
    port: int = 0
    source: IPAddress | None = None
    passive: bool = False
    password: str = field(default="", repr=False)
    restart_time: int | None = None
    keepalive_time: int | None = None
    ttl_security: int = 0
    next_hop: NextHop = "auto"
    allowed_local_as: int = 0
    reflector_cluster: str = ""
    reachable_by: IPAddress | None = None
    filters: tuple[str, ...] = ()

    @property
    def external(self) -> bool:
        return self.as_number != self.local_as_number


class _Left(Exception):
    """The peer is left out; the text becomes the finding."""


def sessions(
    own: Member,
    others: Mapping[str, Member],
    peers: Mapping[str, BGPPeer],
    settings: BgpSettings,
    passwords: Mapping[SecretReference, str],
) -> tuple[tuple[Session, ...], list[Finding]]:
    """Sorted by name. ``others``: every node but this one."""
    return _Sessions(own, others, settings, passwords).compute(peers)


def selects(peer: BGPPeerSpec, member: Member) -> bool:
    """Whether the BGPPeer's near side is ``member``. Raises ``InvalidResource`` for a bad selector."""
    if peer.node_selector:
        return selector.parse(peer.node_selector).matches(member.labels)
    return peer.node in ("", member.name)


class _Sessions:
    def __init__(
        self,
        own: Member,
        others: Mapping[str, Member],
        settings: BgpSettings,
        passwords: Mapping[SecretReference, str],
    ) -> None:
        self._own = own
        self._others = others
        self._settings = settings
        self._passwords = passwords
        self._as_number = own.as_number or settings.as_number
        self._found: dict[tuple[IPAddress, int], Session] = {}
        self._findings: list[Finding] = []

    def compute(self, peers: Mapping[str, BGPPeer]) -> tuple[tuple[Session, ...], list[Finding]]:
        ordered = [peers[name] for name in sorted(peers)]
        for peer in ordered:
            if not peer.spec.node and not peer.spec.node_selector:
                self._attempt(peer, self._forward("Global", peer.spec))
        for peer in ordered:
            if peer.spec.node or peer.spec.node_selector:
                self._attempt(peer, self._forward("Node", peer.spec))
        for peer in ordered:
            if peer.spec.reverse_peering != "Manual":
                self._attempt(peer, self._reverse(peer.spec))
        self._mesh()
        return tuple(sorted(self._found.values(), key=lambda session: session.name)), self._findings

    def _attempt(self, peer: BGPPeer, found: Iterator[Session]) -> None:
        try:
            for session in found:
                self._add(session)
        except (_Left, InvalidResource) as error:
            finding = Finding("error", f"BGPPeer({peer.name})", str(error))
            if finding not in self._findings:
                self._findings.append(finding)

    def _add(self, session: Session) -> None:
        if session.address != self._own.address(session.family):
            self._found.setdefault((session.address, session.port), session)

    def _mesh(self) -> None:
        if not self._settings.mesh or self._own.cluster_id:
            return
        reference = self._settings.mesh_password
        try:
            password = self._password(reference)
        except _Left as error:
            self._findings.append(Finding("error", "BGPConfiguration(default)", str(error)))
            return
        configured = {session.address for session in self._found.values()}
        for other in self._others.values():
            if other.cluster_id or other.routes in ("direct", "none"):
                continue
            for session in self._to_member("Mesh", other, FAMILIES):
                if session.address in configured:
                    continue
                self._add(
                    replace(
                        session,
                        password=password,
                        passive=str(session.address) > str(session.source),
                        restart_time=self._settings.mesh_restart_time,
                    )
                )

    def _forward(self, kind: str, peer: BGPPeerSpec) -> Iterator[Session]:
        if not selects(peer, self._own):
            return
        if peer.local_workload_selector:
            raise _Left("spec.localWorkloadSelector is not supported: this agent has no BGP sessions with containers")
        if peer.peer_selector:
            members = [other for other in self._others.values() if _matches(peer.peer_selector, other)]
            yield from self._configured(peer, self._to_members(kind, members, FAMILIES))
        else:
            yield from self._configured(peer, [self._to_address(kind, peer)])

    def _reverse(self, peer: BGPPeerSpec) -> Iterator[Session]:
        """The other side of a BGPPeer whose far side is this node."""
        families = FAMILIES
        if peer.local_workload_selector:
            return
        if peer.peer_selector:
            if not _matches(peer.peer_selector, self._own):
                return
        else:
            address, port = _address_and_port(peer)
            if not self._is_at(self._own, address, peer, port):
                return
            families = (address.version,)
        members = [other for other in self._others.values() if selects(peer, other)]
        yield from self._configured(peer, self._to_members("Node", members, families))

    def _to_members(self, kind: str, members: Iterable[Member], families: Iterable[Family]) -> Iterator[Session]:
        for member in members:
            yield from self._to_member(kind, member, families)

    def _to_member(self, kind: str, other: Member, families: Iterable[Family]) -> Iterator[Session]:
        for family in families:
            address, source = other.address(family), self._own.address(family)
            if address is None or source is None:
                continue
            as_number = other.as_number or self._settings.as_number
            port = self._settings.port_of(other.name)
            yield Session(
                name=_name(kind, address, 0 if kind == "Mesh" else port),
                family=family,
                address=address,
                as_number=as_number,
                local_as_number=self._as_number,
                port=port,
                source=source,
                reflector_cluster=self._reflector_cluster(as_number, other.cluster_id),
            )

    def _to_address(self, kind: str, peer: BGPPeerSpec) -> Session:
        address, port = _address_and_port(peer)
        family: Family = address.version
        nodes = [other for other in self._others.values() if other.address(family) == address]
        if not port:
            matching = [other for other in nodes if self._is_at(other, address, peer, 0)]
            port = self._settings.port_of(matching[0].name) if matching else 0
        as_number = parse_as_number(peer.as_number) or self._settings.as_number
        source = self._own.address(family)
        waits = kind == "Global" and bool(nodes) and source is not None and str(address) > str(source)
        return Session(
            name=_name(kind, address, port),
            family=family,
            address=address,
            as_number=as_number,
            local_as_number=self._as_number,
            port=port,
            source=source,
            passive=waits,
            reflector_cluster=self._reflector_cluster(as_number, ""),
        )

    def _configured(self, peer: BGPPeerSpec, found: Iterable[Session]) -> Iterator[Session]:
        """``found`` with what the BGPPeer says of its sessions."""
        password = self._password(secret_reference(peer.password))
        local = parse_as_number(peer.local_as_number) or self._as_number
        for session in found:
            yield replace(
                session,
                password=password,
                local_as_number=local,
                source=None if peer.source_address == "None" else session.source,
                restart_time=seconds(peer.max_restart_time),
                keepalive_time=seconds(peer.keepalive_time),
                ttl_security=peer.ttl_security or 0,
                next_hop=_next_hop(peer, external=session.as_number != local),
                allowed_local_as=peer.num_allowed_local_as_numbers or 0,
                reflector_cluster=session.reflector_cluster if session.as_number == local else "",
                reachable_by=_reachable_by(peer, session.family),
                filters=tuple(peer.filters or ()),
            )

    def _reflector_cluster(self, as_number: int, peer_cluster: str) -> str:
        client = as_number == self._as_number and peer_cluster != self._own.cluster_id
        return self._own.cluster_id if client else ""

    def _is_at(self, member: Member, address: IPAddress, peer: BGPPeerSpec, port: int) -> bool:
        """Whether a BGPPeer for this address, AS number and port means ``member``."""
        wanted_as = parse_as_number(peer.as_number) or self._settings.as_number
        wanted_port = self._settings.port_of(member.name)
        return (
            member.address(address.version) == address
            and (member.as_number or self._settings.as_number) == wanted_as
            and (not port or not wanted_port or port == wanted_port)
        )

    def _password(self, reference: SecretReference | None) -> str:
        """A session whose password is unknown is left out rather than made without one."""
        if reference is None:
            return ""
        name, key = reference
        password = self._passwords.get(reference)
        if password is None:
            raise _Left(
                f"the password in secret {name}, key {key} is not known on this node; its sessions are left out"
            )
        if not password or len(password) > _PASSWORD_LIMIT or not password.isprintable() or '"' in password:
            raise _Left(
                f"the password in secret {name}, key {key} must be 1 to {_PASSWORD_LIMIT} printable characters"
                ' without "; its sessions are left out'
            )
        return password


def _matches(text: str, member: Member) -> bool:
    return selector.parse(text).matches(member.labels)


def _name(kind: str, address: IPAddress, port: int) -> str:
    """As calicoctl's ``node status`` knows sessions: ``Mesh_10_0_0_2``, ``Node_fd00__1_port_1790``."""
    name = f"{kind}_{str(address).replace('.', '_').replace(':', '_')}"
    return f"{name}_port_{port}" if port else name


def _address_and_port(peer: BGPPeerSpec) -> tuple[IPAddress, int]:
    """Of ``192.0.2.1``, ``192.0.2.1:1790``, ``fd00::1`` and ``[fd00::1]:1790``."""
    text, port = peer.peer_ip, ""
    if text.startswith("["):
        text, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    try:
        return ipaddress.ip_address(text), int(port or 0)
    except ValueError:
        raise _Left(
            f"peerIP {peer.peer_ip!r} is no address, with or without port, and no peerSelector is set"
        ) from None


def _next_hop(peer: BGPPeerSpec, *, external: bool) -> NextHop:
    if peer.next_hop_mode == "Self":
        return "self"
    if peer.next_hop_mode == "Keep" or (peer.keep_original_next_hop and external):
        return "keep"
    return "auto"


def _reachable_by(peer: BGPPeerSpec, family: Family) -> IPAddress | None:
    if not peer.reachable_by:
        return None
    try:
        gateway = ipaddress.ip_address(peer.reachable_by)
    except ValueError:
        raise _Left(f"reachableBy {peer.reachable_by!r} is no address") from None
    return gateway if gateway.version == family else None

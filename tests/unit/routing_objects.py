"""Resources for the routing tests, decoded as the datastore's values are."""

from __future__ import annotations

from typing import Any

from calico_libnetwork.model import documents, kinds
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.routing.cluster import Member, parse_member
from calico_libnetwork.routing.router import Router


def resource(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> Any:
    namespace = "libnetwork" if kind == "WorkloadEndpoint" else ""
    document = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }
    return kinds.decode(ResourceKey(kind, name, namespace), documents.encode(document))


def node(name: str, ipv4: str = "", ipv6: str = "", **fields: Any) -> Any:
    """``labels`` and ``annotations`` go to the metadata, other ``fields`` to spec.bgp, ``spec`` to spec."""
    metadata = {key: fields.pop(key) for key in ("labels", "annotations") if key in fields}
    spec = fields.pop("spec", {})
    bgp = {"ipv4Address": ipv4, "ipv6Address": ipv6, **fields}
    return resource("Node", name, {"bgp": {key: value for key, value in bgp.items() if value}, **spec}, **metadata)


def member(name: str, ipv4: str = "", ipv6: str = "", **fields: Any) -> Member:
    found, findings = parse_member(node(name, ipv4, ipv6, **fields))
    assert findings == []
    return found


def pool(name: str, cidr: str, **spec: Any) -> Any:
    return resource("IPPool", name, {"cidr": cidr, **spec})


def endpoint(name: str, node_name: str, *networks: str) -> Any:
    return resource("WorkloadEndpoint", name, {"node": node_name, "ipNetworks": list(networks)})


def tell(router: Router, *resources: Any) -> None:
    for item in resources:
        router.update(key_of(item), item)


def key_of(item: Any) -> ResourceKey:
    return ResourceKey(item.kind, item.name, "libnetwork" if item.kind == "WorkloadEndpoint" else "")


def claim(router: Router, node_name: str, *blocks: str, state: str = "confirmed") -> None:
    for block in blocks:
        family = "ipv6" if ":" in block else "ipv4"
        key = f"/calico/ipam/v2/host/{node_name}/{family}/block/{block.replace('/', '-')}"
        router.update_block(key, f'{{"state":"{state}","deleted":false}}'.encode())


def release(router: Router, node_name: str, *blocks: str) -> None:
    for block in blocks:
        family = "ipv6" if ":" in block else "ipv4"
        router.update_block(f"/calico/ipam/v2/host/{node_name}/{family}/block/{block.replace('/', '-')}", None)

"""The bodies of Docker's plugin protocol, with the wire's names. Unknown fields are ignored; Go sends null for nil.

The same fields for every Docker from 20.10 on; 28 and 29 only added keys inside ``Options``.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

Options = dict[str, Any]

LOCAL_ADDRESS_SPACE = "CalicoLocalAddressSpace"
GLOBAL_ADDRESS_SPACE = "CalicoGlobalAddressSpace"

ENABLE_IPV4 = "com.docker.network.enable_ipv4"
ENABLE_IPV6 = "com.docker.network.enable_ipv6"
ENDPOINT_NAME = "com.docker.network.endpoint.name"
INTERFACE_NAME = "com.docker.network.endpoint.ifname"
GATEWAY = "com.docker.network.gateway"
GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
REQUEST_ADDRESS_TYPE = "RequestAddressType"

CONNECTED = 1
"""``RouteType`` of a route to the interface itself; 0 is one through ``NextHop``."""


class Message(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True, kw_only=True):
    pass


class Empty(Message, frozen=True):
    """An answer that says nothing but yes."""


class Implements(Message, frozen=True):
    implements: tuple[str, ...]


class NetworkCapabilities(Message, frozen=True):
    scope: str


class IpamCapabilities(Message, frozen=True, omit_defaults=False):
    requires_mac_address: bool = field(name="RequiresMACAddress", default=False)


class AddressSpaces(Message, frozen=True):
    local_default_address_space: str
    global_default_address_space: str


class NetworkRequest(Message, frozen=True):
    network_id: str = field(name="NetworkID")


class IpamData(Message, frozen=True):
    """``pool`` and ``gateway`` are CIDRs; ``aux_addresses`` maps a name to a CIDR."""

    address_space: str = ""
    pool: str = ""
    gateway: str = ""
    aux_addresses: dict[str, str] | None = None


class CreateNetwork(NetworkRequest, frozen=True):
    options: Options | None = None
    ipv4_data: tuple[IpamData, ...] | None = field(name="IPv4Data", default=None)
    ipv6_data: tuple[IpamData, ...] | None = field(name="IPv6Data", default=None)


class AllocatedNetwork(Message, frozen=True, omit_defaults=False):
    options: dict[str, str]


class SkippedGateways(Message, frozen=True):
    skip_ipv4: bool = field(name="SkipIPv4")
    skip_ipv6: bool = field(name="SkipIPv6")


class EndpointRequest(NetworkRequest, frozen=True):
    endpoint_id: str = field(name="EndpointID")


class Connectivity(EndpointRequest, frozen=True):
    """``options`` are the container's ports."""

    options: Options | None = None


class AllocationCheck(Message, frozen=True):
    options: Options | None = None


class Discovery(Message, frozen=True):
    """Another node came or went; Calico hears of nodes from its datastore."""

    discovery_type: int = 0
    discovery_data: Options | None = None


class EndpointInterface(Message, frozen=True):
    """Addresses are CIDRs, "" for none."""

    address: str = ""
    address_ipv6: str = field(name="AddressIPv6", default="")
    mac_address: str = ""


class CreateEndpoint(EndpointRequest, frozen=True):
    interface: EndpointInterface | None = None
    options: Options | None = None


class CreatedEndpoint(Message, frozen=True):
    interface: EndpointInterface


class OperationalInfo(Message, frozen=True, omit_defaults=False):
    value: dict[str, str]


class Join(EndpointRequest, frozen=True):
    sandbox_key: str = ""
    options: Options | None = None


class InterfaceName(Message, frozen=True):
    """Docker moves ``src_name`` into the container and names it ``dst_prefix`` and an index.

    Or ``dst_name``, which older Dockers pass over.
    """

    src_name: str
    dst_prefix: str
    dst_name: str = ""


class StaticRoute(Message, frozen=True):
    """``destination`` is a CIDR."""

    destination: str
    route_type: int
    next_hop: str = ""


class Joined(Message, frozen=True):
    """``gateway`` and ``gateway_ipv6`` are plain addresses."""

    interface_name: InterfaceName
    gateway: str = ""
    gateway_ipv6: str = field(name="GatewayIPv6", default="")
    static_routes: tuple[StaticRoute, ...] = ()
    disable_gateway_service: bool = False


class RequestPool(Message, frozen=True):
    """``pool`` is the ``--subnet``, ``sub_pool`` the ``--ip-range``, ``options`` the ``--ipam-opt``."""

    address_space: str = ""
    pool: str = ""
    sub_pool: str = ""
    options: Options | None = None
    v6: bool = False


class RequestedPool(Message, frozen=True):
    pool_id: str = field(name="PoolID")
    pool: str
    data: dict[str, str]


class PoolRequest(Message, frozen=True):
    pool_id: str = field(name="PoolID")


class RequestAddress(PoolRequest, frozen=True):
    """``address`` has no prefix length; "" for any."""

    address: str = ""
    options: Options | None = None


class RequestedAddress(Message, frozen=True):
    """``address`` is a CIDR."""

    address: str


class ReleaseAddress(PoolRequest, frozen=True):
    address: str = ""

"""Defaults of Calico's schema of FelixConfiguration: its tools store them with every new object, and so do we."""

from __future__ import annotations

from collections.abc import Mapping

FELIX: Mapping[str, str] = {
    "nftablesMode": "Auto",
    "nftablesFlowTableOffload": "Disabled",
    "bpfLogLevel": "",
    "bpfConnectTimeLoadBalancing": "TCP",
    "bpfHostNetworkedNATWithoutCTLB": "Enabled",
    "floatingIPs": "Disabled",
}

"""The sentences users know from the original plugin, as Docker prints them."""

from __future__ import annotations

import pytest

from tests.e2e.lab import Host

CALICO = ("network", "create", "--driver", "calico")
BOTH = (*CALICO, "--ipam-driver", "calico-ipam")
NO_SUB_POOL = (
    "IpamDriver.RequestPool: Calico IPAM does not support sub pool configuration on 'docker create network'."
    " Calico IP Pools should be configured first and IP assignment is from those pre-configured pools."
)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        pytest.param(CALICO, "NetworkDriver.CreateNetwork: Non-Calico IPAM driver is used", id="other IPAM driver"),
        pytest.param(
            (*BOTH, "--subnet=192.168.0.0/16", "--gateway=192.168.0.1"),
            "IpamDriver.RequestAddress: Calico IPAM does not support specifying a gateway.",
            id="--gateway",
        ),
        pytest.param(
            (*BOTH, "--subnet=10.99.0.0/16"),
            "IpamDriver.RequestPool: The requested subnet must match the CIDR of a configured Calico IP Pool.",
            id="--subnet",
        ),
        pytest.param(
            (*BOTH, "--internal"),
            "NetworkDriver.CreateNetwork: Calico driver does not support the flag --internal.",
            id="--internal",
        ),
        pytest.param((*BOTH, "--subnet=192.168.0.0/16", "--ip-range=192.168.1.0/24"), NO_SUB_POOL, id="--ip-range"),
        pytest.param((*BOTH, "--ipam-opt", "a=b"), "Arbitrary options are not supported", id="--ipam-opt"),
        pytest.param(
            (*BOTH, "--opt", "REJECT=1"),
            "NetworkDriver.CreateNetwork: Calico driver does not support the flag REJECT.",
            id="--opt",
        ),
        pytest.param(
            (*BOTH, "--opt", "REJECT=1", "--opt", "REJECT2=2"),
            "NetworkDriver.CreateNetwork: Calico driver does not support the flags REJECT, REJECT2.",
            id="two --opt",
        ),
    ],
)
def test_what_the_driver_does_not_do_is_refused_in_the_known_words(
    host: Host, command: tuple[str, ...], sentence: str
) -> None:
    assert sentence in host.docker_refuses(*command, "refused")
    assert "refused" not in host.docker("network", "ls", "--format", "{{.Name}}").split()


@pytest.mark.parametrize(
    "options", [(), ("--subnet=192.168.0.0/16",), ("--ipv6",), ("--label", "a=b"), ("--attachable",)], ids=" ".join
)
def test_what_the_driver_does_is_accepted(host: Host, options: tuple[str, ...]) -> None:
    host.network("accepted", *options)
    host.workload("workload-A", "accepted")


def test_an_address_outside_of_the_networks_pool_is_refused(host: Host) -> None:
    host.network("net1", "--subnet=192.168.0.0/16")

    said = host.docker_refuses("run", "--net", "net1", "--ip", "10.1.2.3", "busybox", "true")

    assert "10.1.2.3" in said or "subnet" in said

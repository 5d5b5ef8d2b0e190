"""The marked rule in Docker's firewall: where it goes, when, and that packets pass because of it."""

from __future__ import annotations

import pytest

from calico_libnetwork.dataplane import felix_firewall, sysctl
from calico_libnetwork.dataplane.docker_firewall import DockerFirewall
from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nft_monitor import ForeignChange, NftMonitor
from tests.system.conftest import Namespace, Workloads, eventually

RULE = "-A {chain} -m mark --mark 0x10000/0x10000 -m comment --comment calico-libnetwork -j ACCEPT"
BACKENDS = ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"]


def docker(namespace: Namespace, command: str, *, policy: str = "DROP") -> None:
    """FORWARD as dockerd leaves it."""
    for arguments in ("-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-I FORWARD -j DOCKER-USER"):
        namespace.run(command, *arguments.split())
    namespace.run(command, "-P", "FORWARD", policy)


@pytest.mark.parametrize("command", BACKENDS)
async def test_rule_goes_into_docker_user_once(namespace: Namespace, nft: Nft, command: str) -> None:
    docker(namespace, command)
    firewall = DockerFirewall(nft)
    assert len(await firewall.ensure()) == 1
    assert await firewall.ensure() == []
    rules = namespace.run(command, "-S", "DOCKER-USER").splitlines()
    assert rules[1:] == [RULE.format(chain="DOCKER-USER"), "-A DOCKER-USER -j RETURN"]


@pytest.mark.parametrize("command", BACKENDS)
async def test_no_rule_where_forward_accepts(namespace: Namespace, nft: Nft, command: str) -> None:
    docker(namespace, command, policy="ACCEPT")
    namespace.run(command, "-A", "FORWARD", "-i", "docker0", "-j", "DROP")
    assert await DockerFirewall(nft).ensure() == []
    assert "calico" not in namespace.run(command, "-S")


@pytest.mark.parametrize("command", BACKENDS)
@pytest.mark.parametrize("target", ["DROP", "REJECT"])
async def test_unconditional_drop_counts_like_the_policy(
    namespace: Namespace, nft: Nft, command: str, target: str
) -> None:
    namespace.run(command, "-A", "FORWARD", "-j", target)
    assert len(await DockerFirewall(nft).ensure()) == 1
    assert namespace.run(command, "-S", "FORWARD").splitlines()[1] == RULE.format(chain="FORWARD")


@pytest.mark.parametrize("command", BACKENDS)
async def test_flushed_rule_comes_back_and_goes_with_the_product(namespace: Namespace, nft: Nft, command: str) -> None:
    docker(namespace, command)
    firewall = DockerFirewall(nft)
    await firewall.ensure()
    namespace.run(command, "-F", "DOCKER-USER")
    assert len(await firewall.ensure()) == 1
    await firewall.remove()
    assert "calico" not in namespace.run(command, "-S")
    await firewall.remove()


@pytest.mark.parametrize("command", BACKENDS)
async def test_a_rule_made_in_forward_while_dockerd_starts_goes_again(
    namespace: Namespace, nft: Nft, command: str
) -> None:
    """It would accept before what an administrator has put into DOCKER-USER is asked."""
    docker(namespace, command)
    firewall = DockerFirewall(nft)
    await firewall.ensure()
    namespace.run(command, "-I", "DOCKER-USER", "-i", "cali+", "-j", "DROP")
    namespace.run(command, "-D", "FORWARD", "-j", "DOCKER-USER")
    await firewall.ensure()
    assert RULE.format(chain="FORWARD") in namespace.run(command, "-S", "FORWARD").splitlines()
    namespace.run(command, "-A", "FORWARD", "-j", "DOCKER-USER")

    await firewall.ensure()

    assert namespace.run(command, "-S", "FORWARD").splitlines()[1:] == ["-A FORWARD -j DOCKER-USER"]
    kept = namespace.run(command, "-S", "DOCKER-USER").splitlines()[1:]
    assert kept[1:] == [RULE.format(chain="DOCKER-USER"), "-A DOCKER-USER -j RETURN"]


async def test_host_without_iptables_stays_without(namespace: Namespace, nft: Nft) -> None:
    assert await DockerFirewall(nft).ensure() == []
    assert namespace.run("nft", "list", "ruleset") == ""


@pytest.mark.parametrize("command", ["iptables-nft", "iptables-legacy"])
async def test_marked_packets_pass_forward_drop_because_of_the_rule(
    namespace: Namespace, nft: Nft, workloads: Workloads, command: str
) -> None:
    docker(namespace, command)
    sysctl.enable_forwarding(ipv6=False)
    first, second = (routed(namespace, workloads, number) for number in (1, 2))
    mark = "table inet ours {\n chain f {\n type filter hook forward priority -1;\n meta mark set 0x10000\n }\n}\n"
    namespace.run("nft", "-f", "-", stdin=mark)
    assert not first.succeeds("ping", "-c", "1", "-W", "0.3", "10.65.0.2")
    await DockerFirewall(nft).ensure()
    assert first.succeeds("ping", "-c", "1", "-W", "1", "10.65.0.2")
    assert second.succeeds("ping", "-c", "1", "-W", "1", "10.65.0.1")


async def test_monitor_tells_of_other_programs_changes_by_table(namespace: Namespace, nft: Nft) -> None:
    docker(namespace, "iptables-nft")
    changes: list[ForeignChange] = []
    async with NftMonitor(nft, changes.append):
        await DockerFirewall(nft).ensure()
        await nft.run("add table inet ours\n")
        namespace.run("nft", "add", "table", "inet", "theirs")
        await eventually(lambda: changes)
        assert [change.tables for change in changes] == [{("inet", "theirs")}]
        namespace.run("iptables-nft", "-F", "DOCKER-USER")
        await eventually(lambda: len(changes) > 1)
        assert changes[-1].touches("ip", "filter")
        assert not changes[-1].touches("inet", "ours")


def routed(namespace: Namespace, workloads: Workloads, number: int) -> Namespace:
    namespace.run("ip", "link", "add", f"cali{number}", "type", "veth", "peer", "name", f"temp{number}")
    namespace.run("ip", "link", "set", f"cali{number}", "up")
    namespace.run("ip", "route", "add", f"10.65.0.{number}", "dev", f"cali{number}")
    namespace.run("ip", "route", "replace", "169.254.1.1", "dev", "lo")
    sysctl.write(f"ipv4/conf/cali{number}/proxy_arp", "1")
    sysctl.write(f"ipv4/neigh/cali{number}/proxy_delay", "0")
    return workloads.attach(f"temp{number}", addresses=(f"10.65.0.{number}/32",))


def felix_in_nftables(namespace: Namespace) -> None:
    for family in ("ip", "ip6"):
        namespace.run("nft", "add", "table", family, "calico")
        namespace.run(
            "nft", "add", "chain", family, "calico", "filter-FORWARD", "{ type filter hook forward priority 0; }"
        )


async def test_rules_of_a_felix_that_ended_are_named_with_what_removes_them(namespace: Namespace, nft: Nft) -> None:
    assert await felix_firewall.leftovers(nft) == []
    felix_in_nftables(namespace)
    namespace.run("iptables-nft", "-N", "cali-FORWARD")
    namespace.run("iptables-nft", "-A", "FORWARD", "-m", "comment", "--comment", "cali:dpf", "-j", "cali-FORWARD")
    await DockerFirewall(nft).ensure()
    found = await felix_firewall.leftovers(nft)
    assert len(found) == 3
    for sentence in found:
        namespace.run("sh", "-ec", sentence.rpartition("remove them: ")[2].replace("iptables-", "iptables-nft-"))
    assert await felix_firewall.leftovers(nft) == []


async def test_docker_dropping_what_felix_accepts_in_nftables_is_said_until_it_is_put_right(
    namespace: Namespace, nft: Nft
) -> None:
    docker(namespace, "iptables-nft")
    firewall = DockerFirewall(nft)
    assert await felix_firewall.unaccepted(nft, firewall) == []
    felix_in_nftables(namespace)
    (sentence,) = await felix_firewall.unaccepted(nft, firewall)
    namespace.run("sh", "-ec", sentence.rpartition(": ")[2].replace("iptables", "iptables-nft"))
    assert await felix_firewall.unaccepted(nft, firewall) == []


async def test_other_firewalls_in_the_way_are_named_with_their_remedy(namespace: Namespace, nft: Nft) -> None:
    firewall = DockerFirewall(nft)
    assert await firewall.obstacles() == []
    namespace.run("nft", "add", "table", "inet", "firewalld")
    namespace.run("iptables-nft", "-N", "ufw-user-forward")
    firewalld, ufw = await firewall.obstacles()
    assert "firewall-cmd" in firewalld
    assert "ufw route allow in on cali+" in ufw

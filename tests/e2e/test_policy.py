"""Policy as Calico's tutorials for Docker have it, in today's words, with every pair of containers tried."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.e2e.lab import OUTSIDE, OUTSIDE6, Host, dockers
from tests.e2e.traffic import Flow, Resources, Traffic

one_docker = pytest.mark.parametrize("docker", dockers()[-1:], ids=str, scope="session")  # policy does not see Docker

DATABASE_RULES = """
  ingress:
  - action: Allow
    protocol: TCP
    source: {selector: role == 'frontend'}
    destination: {ports: [3306]}
  - action: Allow
    source: {selector: role == 'database'}
  egress:
  - action: Allow
    destination: {selector: role == 'database'}
"""
FRONTEND_RULES = """
  egress:
  - action: Allow
    protocol: TCP
    destination: {selector: role == 'database', ports: [3306]}
"""


def profile(name: str, labels: str, rules: str = "") -> str:
    head = f"apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  labelsToApply: {labels}\n{rules}\n---\n"


def policy(name: str, selector: str, rules: str) -> str:
    head = f"apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  order: 0\n  selector: {selector}\n{rules}\n---\n"


PROFILES = profile("database", "{role: database}", DATABASE_RULES) + profile(
    "frontend", "{role: frontend}", FRONTEND_RULES
)
POLICIES = policy("database", "role == 'database'", DATABASE_RULES) + policy(
    "frontend", "role == 'frontend'", FRONTEND_RULES
)
BACKUP_POLICY = policy(
    "backupnetwork",
    "backup == 'true'",
    """
  ingress:
  - action: Allow
    source: {selector: backup == 'true'}
  egress:
  - action: Allow
    destination: {selector: backup == 'true'}
""",
)


def by_role(flow: Flow) -> bool:
    """The tutorial's promise; a container's name begins with its role."""
    roles = (flow.source.partition("-")[0], flow.destination.partition("-")[0])
    return roles == ("database", "database") or (roles == ("frontend", "database") and flow.service == "tcp 3306")


def among(*names: str) -> Callable[[Flow], bool]:
    return lambda flow: {flow.source, flow.destination} <= {*names}


def start_two_roles(host: Host, traffic: Traffic) -> None:
    for role in ("database", "frontend"):
        host.network(role, "--ipv6")
        for letter in "AB":
            traffic.workload(f"{role}-{letter}", role)


def stored_spec(host: Host, name: str) -> dict[str, object]:
    return dict(json.loads(host.calico("get", "profile", name, "--output", "json"))["spec"])


@one_docker
def test_rules_of_a_profile_that_was_there_first_hold(host: Host, traffic: Traffic, resources: Resources) -> None:
    resources.apply(PROFILES)
    before = stored_spec(host, "database")
    start_two_roles(host, traffic)

    traffic.expect(by_role)
    assert stored_spec(host, "database") == before
    for outside in (OUTSIDE, OUTSIDE6):
        assert not host.pings("frontend-A", outside)
        assert not host.pings("database-A", outside)
    host.clear()
    assert stored_spec(host, "database") == before


@one_docker
def test_rules_put_into_the_profile_of_a_running_network_hold(
    host: Host, traffic: Traffic, resources: Resources
) -> None:
    start_two_roles(host, traffic)
    traffic.expect(lambda flow: flow.source[:-1] == flow.destination[:-1])

    resources.apply(PROFILES)

    traffic.expect(by_role)
    edited = stored_spec(host, "database")
    host.plugin.restart()
    traffic.workload("database-C", "database")
    traffic.expect(by_role)
    assert stored_spec(host, "database") == edited


@one_docker
def test_global_policy_by_labels_of_profiles(host: Host, traffic: Traffic, resources: Resources) -> None:
    resources.apply(profile("database", "{role: database}") + profile("frontend", "{role: frontend}"))
    start_two_roles(host, traffic)
    traffic.expect(lambda _: False)

    resources.apply(POLICIES)

    traffic.expect(by_role)


@one_docker
def test_a_network_of_two_labels_stands_for_two_networks(host: Host, traffic: Traffic, resources: Resources) -> None:
    """Calico's recipe for databases that are backed up, instead of attaching them to a second network."""
    labels = {
        "database": "{role: database}",
        "frontend": "{role: frontend}",
        "backups": "{backup: 'true'}",
        "database-backup": "{backup: 'true', role: database}",
    }
    for network, applied in labels.items():
        resources.apply(profile(network, applied))
        host.network(network, "--ipv6")
    resources.apply(POLICIES + BACKUP_POLICY)

    traffic.workload("database-A", "database")
    traffic.workload("frontend-A", "frontend")
    traffic.workload("backup-A", "backups")
    traffic.workload("backup-B", "backups")
    traffic.workload("database-B", "database-backup")

    backed_up = among("backup-A", "backup-B", "database-B")
    traffic.expect(lambda flow: by_role(flow) or backed_up(flow))


def test_labels_of_containers_decide_within_one_network(host: Host, traffic: Traffic, resources: Resources) -> None:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true", CALICO_LIBNETWORK_CREATE_PROFILES="false")
    role, backup = "--label=org.projectcalico.label.role={}", "--label=org.projectcalico.label.backup=true"
    host.network("net1", "--ipv6")
    traffic.workload("frontend-A", "net1", role.format("frontend"))
    traffic.workload("database-A", "net1", role.format("database"))
    traffic.expect(lambda _: False)
    assert not any(key.endswith("/net1") for key in host.stored("/calico/resources/v3/projectcalico.org/profiles/"))

    resources.apply(POLICIES)
    traffic.expect(by_role)

    traffic.workload("database-B", "net1", role.format("database"), backup)
    traffic.workload("stranger-A", "net1", "--label=role=database")
    traffic.expect(by_role)

    resources.apply(BACKUP_POLICY)
    traffic.workload("backup-A", "net1", backup)
    traffic.expect(lambda flow: by_role(flow) or among("database-B", "backup-A")(flow))

"""Labels of containers on their endpoints: in force before the container's first act, however it came to be started."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from tests.e2e.lab import IMAGE, Host
from tests.e2e.machine import wait_for

LABEL = "--label=org.projectcalico.label."
ROLE = f"{LABEL}role=database"
LATE = ("stays closed until", "opened without them")
"""What the log says where Docker was answered before the labels were known."""


@pytest.fixture
def labelling_host(host: Host) -> Host:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_LABEL_ENDPOINTS="true")
    host.network("net1")
    return host


def metadata(host: Host) -> dict[str, Mapping[str, Mapping[str, str]]]:
    """Of all endpoints, by the container's name."""
    answer = json.loads(host.calico("get", "workloadendpoints", "--all-namespaces", "--output", "json"))
    found = [item["metadata"] for item in answer["items"]]
    return {each["annotations"].get("org.projectcalico.libnetwork/container-name", "?"): each for each in found}


def own_labels(host: Host) -> dict[str, dict[str, str]]:
    """Those that Calico has not put there itself, by the container's name."""
    return {
        name: {key: value for key, value in each["labels"].items() if not key.startswith("projectcalico.org/")}
        for name, each in metadata(host).items()
    }


def log_since(host: Host, start: int) -> str:
    return host.plugin.log.read_text()[start:]


def run(host: Host, name: str) -> None:
    host.workload(name, "net1", ROLE)


def create_then_start(host: Host, name: str) -> None:
    host.docker("create", "--net", "net1", "--name", name, ROLE, "-ti", IMAGE)
    host.docker("start", name)


def restart(host: Host, name: str) -> None:
    run(host, name)
    host.docker("restart", "--time", "0", name)


def connect(host: Host, name: str) -> None:
    host.docker("run", "--name", name, ROLE, "-tid", IMAGE)
    host.docker("network", "connect", "net1", name)


def rename_then_reconnect(host: Host, name: str) -> None:
    run(host, "earlier")
    host.docker("network", "disconnect", "net1", "earlier")
    host.docker("rename", "earlier", name)
    host.docker("network", "connect", "net1", name)


def create_then_start_under_a_new_plugin(host: Host, name: str) -> None:
    host.docker("create", "--net", "net1", "--name", name, ROLE, "-ti", IMAGE)
    host.plugin.restart()
    host.docker("start", name)


def create_while_the_plugin_is_down(host: Host, name: str) -> None:
    host.plugin.stop()
    host.docker("create", "--net", "net1", "--name", name, ROLE, "-ti", IMAGE)
    host.plugin.start()
    host.docker("start", name)


WAYS: list[Callable[[Host, str], None]] = [
    run,
    create_then_start,
    restart,
    connect,
    rename_then_reconnect,
    create_then_start_under_a_new_plugin,
    create_while_the_plugin_is_down,
]


def test_labels_are_in_force_when_docker_answers(labelling_host: Host) -> None:
    host = labelling_host
    start = host.plugin.log.stat().st_size
    found = {}
    for way in WAYS:
        way(host, way.__name__)
        found[way.__name__] = own_labels(host).get(way.__name__)

    assert found == {way.__name__: {"role": "database"} for way in WAYS}
    assert not [line for line in LATE if line in log_since(host, start)]


def test_labels_survive_a_restart_of_the_daemon(labelling_host: Host) -> None:
    """Up to Docker 27 nothing can be learnt while the daemon starts: the endpoint is closed until it has."""
    host = labelling_host
    host.workload("workload-A", "net1", ROLE, "--restart=always", "--stop-timeout=0")
    start = host.plugin.log.stat().st_size
    host.dockerd.stop()
    host.dockerd.start()

    wait_for("the label", lambda: own_labels(host) == {"workload-A": {"role": "database"}}, seconds=5)
    late = [line for line in LATE if line in log_since(host, start)]
    assert late == ([] if host.docker_release.release >= (28,) else [*LATE[:1]])


def test_a_label_that_calico_does_not_take_is_skipped_and_named(labelling_host: Host) -> None:
    host = labelling_host
    refused = ["bad?key=x", "tier=not a value", "-dash=x", "projectcalico.org/namespace=kube-system"]
    refused += ["pcns.role=x", "pcsa.role=x", "network.projectcalico.org/net2="]
    start = host.plugin.log.stat().st_size

    host.workload("workload-A", "net1", ROLE, *(LABEL + label for label in refused))

    assert own_labels(host) == {"workload-A": {"role": "database"}}
    stored = metadata(host)["workload-A"]["labels"]
    assert stored["projectcalico.org/namespace"] == "libnetwork"
    lines = [json.loads(line) for line in log_since(host, start).splitlines()]
    warned = {line["label"]: line for line in lines if line["event"] == "container label is not copied"}
    assert set(warned) == {"org.projectcalico.label." + label.partition("=")[0] for label in refused}
    assert {line["level"] for line in warned.values()} == {"warning"}
    assert {line["container"] for line in warned.values()} == {"workload-A"}
    assert all("reserved" in line["reason"] for label, line in warned.items() if "pc" in label or "net2" in label)


@pytest.mark.parametrize("labelling", ["true", "false"])
def test_an_endpoint_says_whose_it_is(host: Host, labelling: str) -> None:
    host.plugin.stop()
    host.plugin.start(CALICO_LIBNETWORK_LABEL_ENDPOINTS=labelling)
    host.network("net1")
    compose = ("--label=com.docker.compose.project=shop", "--label=com.docker.compose.service=web")
    identity = host.workload("shop-web-1", "net1", *compose)
    expected = {
        "container-id": identity,
        "container-name": "shop-web-1",
        "container-image": IMAGE,
        "compose-project": "shop",
        "compose-service": "web",
        "network-name": "net1",
    }

    def found() -> dict[str, str]:
        annotations = metadata(host).get("shop-web-1", {}).get("annotations", {})
        return {name: annotations.get(f"org.projectcalico.libnetwork/{name}", "") for name in expected}

    wait_for("the annotations", lambda: found() == expected, seconds=2, found=found)

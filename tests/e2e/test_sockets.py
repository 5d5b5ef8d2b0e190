"""The plugin's two sockets, as a person with netcat and as a broken client sees them."""

from __future__ import annotations

import json
import stat

import pytest

from tests.e2e.conftest import MakeHost
from tests.e2e.lab import COMMAND, Docker, Host

PLUGINS = "/run/docker/plugins"


@pytest.mark.parametrize("socket", ["calico", "calico-ipam"])
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("NetworkDriver.GetCapabilities", {"Scope": "global"}),
        ("IpamDriver.GetCapabilities", {"RequiresMACAddress": False}),
    ],
)
def test_netcat_gets_the_capabilities(host: Host, socket: str, method: str, answer: dict[str, object]) -> None:
    release = host.docker_release.release
    if release < (24,) and "Scope" in answer:
        answer = {"Scope": "local"}  # such a daemon takes a global driver only with a cluster store
    request = f"GET /{method} HTTP/1.0\r\n\r\n"

    head, _, body = host.machine.run("nc", "-U", f"{PLUGINS}/{socket}.sock", text=request).partition("\n\n")

    assert " 200 " in head.splitlines()[0]
    assert "Content-Type: application/vnd.docker.plugins.v1.1+json" in head
    assert json.loads(body).items() >= answer.items()


def test_only_root_and_its_group_may_connect(host: Host) -> None:
    for path in host.plugin.sockets:
        assert stat.S_IMODE(path.stat().st_mode) & ~0o660 == 0


def test_a_second_instance_refuses_to_start_and_the_first_serves_on(host: Host) -> None:
    result = host.machine.try_run(str(COMMAND), "run")

    assert result.returncode != 0
    assert len((result.stderr or result.stdout).strip().splitlines()) == 1
    host.network("net1")
    host.workload("workload-A", "net1")


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        ("POST /NetworkDriver.CreateNetwork HTTP/1.1", "", "400"),
        ("POST /NetworkDriver.CreateNetwork HTTP/1.1", '{"NetworkID": 7}', "400"),
        ("POST /NetworkDriver.Join HTTP/1.1", "x" * 1_000_000, "400"),
        ("POST /NetworkDriver.Fly HTTP/1.1", "{}", "404"),
    ],
    ids=["empty body", "wrong type", "garbage", "unknown method"],
)
def test_nonsense_gets_an_error_and_the_process_lives_on(host: Host, head: str, body: str, status: str) -> None:
    pid = host.plugin.pid
    request = f"{head}\r\nHost:\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"

    answer = host.machine.run("nc", "-U", f"{PLUGINS}/calico.sock", text=request)

    assert answer.split()[1] == status
    assert json.loads(answer.partition("\n\n")[2])["Err"]
    assert host.plugin.running
    assert host.plugin.pid == pid


def test_the_version_is_printed_alone(host: Host) -> None:
    assert host.calico("-v").count(".") == 2
    assert len(host.calico("-v").split()) == 1


def test_a_setting_that_is_wrong_stops_the_start_with_one_sentence(host: Host) -> None:
    command = ["env", "CALICO_LIBNETWORK_VETH_MTU=many", str(COMMAND), "run"]
    result = host.machine.try_run(*command)

    assert result.returncode == 1
    assert "CALICO_LIBNETWORK_VETH_MTU" in result.stderr
    assert "many" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_sockets_answer_before_docker_does(make_host: MakeHost, docker: Docker) -> None:
    """dockerd's own start needs the plugin, so the plugin may not need dockerd for its own."""
    host = make_host()
    host.dockerd.stop()
    host.plugin.restart()
    host.dockerd.start()

    host.network("net1")
    host.workload("workload-A", "net1")
    assert host.docker_release == docker

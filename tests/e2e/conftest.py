"""One daemon per Docker release for all tests, a clean host for each test, and the logs of a test that failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator

import pytest

from tests.e2e.etcd import a_host, etcd_in, on_etcd
from tests.e2e.lab import Docker, Host, Lab, dockers, tail
from tests.e2e.machine import wait_for
from tests.e2e.several_hosts import Cluster, a_cluster, release
from tests.e2e.traffic import Resources, Traffic
from tests.etcd_server import EtcdServer

collect_ignore = [] if "CALICO_LAB_PROGRAMS" in os.environ else ["test_hosts_calico.py"]
MakeHost = Callable[..., Host]
_LAB = pytest.StashKey[Lab]()
_LOGS = pytest.StashKey[dict[str, int]]()


def pytest_report_header() -> str:
    return f"docker: {', '.join(docker.version for docker in dockers()) or 'none unpacked, use make test-e2e'}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "docker" in metafunc.fixturenames and "docker" not in chosen:
        metafunc.parametrize("docker", dockers(), ids=str, scope="session")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab() as lab:
        request.config.stash[_LAB] = lab
        yield lab


@pytest.fixture(scope="session")
def shared_host(lab: Lab, docker: Docker) -> Iterator[Host]:
    """A host with its plugin, for all tests of one Docker release; tests use ``host``."""
    host = lab.host(docker)
    host.plugin.start()
    yield host
    lab.remove(host)


@pytest.fixture
def host(shared_host: Host) -> Iterator[Host]:
    """A host without containers and networks, before and after; what remains then is the test's failure."""
    yield shared_host
    if not shared_host.dockerd.running:
        shared_host.dockerd.start()
    if not shared_host.plugin.running or shared_host.plugin.environment:
        shared_host.plugin.stop()
        shared_host.plugin.environment = {}
        shared_host.plugin.start()
    shared_host.clear()
    wait_for("the host to be clean", lambda: not shared_host.traces(), seconds=10, found=shared_host.traces)


@pytest.fixture
def etcd(lab: Lab) -> Iterator[EtcdServer]:
    """An empty one for each test."""
    with etcd_in(lab) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def bare_host(lab: Lab, docker: Docker) -> Iterator[Host]:
    """A host whose plugin each test starts with what it needs."""
    with a_host(lab, docker) as host:
        yield host


@pytest.fixture
def host_on_etcd(bare_host: Host, etcd: EtcdServer) -> Iterator[Host]:
    with on_etcd(bare_host, etcd) as host:
        yield host


@pytest.fixture(scope="module")
def whole_cluster(lab: Lab) -> Iterator[Cluster]:
    """Three hosts on one subnet, of two Docker releases, for all tests of a module; tests use ``cluster``."""
    with a_cluster(lab) as cluster:
        for docker in (dockers()[-1], dockers()[-1], release("26.")):
            cluster.join(docker)
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    yield whole_cluster
    whole_cluster.clear()


@pytest.fixture
def resources(host: Host) -> Iterator[Resources]:
    """Calico resources of this test alone, on a host whose containers are gone before they are."""
    resources = Resources(host)
    yield resources
    host.clear()
    resources.remove()


@pytest.fixture
def traffic(host: Host) -> Iterator[Traffic]:
    traffic = Traffic(host)
    yield traffic
    traffic.close()


@pytest.fixture
def make_host(lab: Lab, docker: Docker) -> Iterator[MakeHost]:
    """Starts further hosts with a plugin of the given environment, for this test alone."""
    made: list[Host] = []

    def make(**environment: str) -> Host:
        host = lab.host(docker)
        made.append(host)
        host.plugin.start(**environment)
        return host

    yield make
    for host in made:
        lab.remove(host)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    hosts = item.config.stash[_LAB].hosts if _LAB in item.config.stash else []
    item.stash[_LOGS] = {str(log): log.stat().st_size for host in hosts for log in host.logs if log.exists()}
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _LAB in item.config.stash:
        for host in item.config.stash[_LAB].hosts:
            for log in host.logs:
                start = item.stash[_LOGS].get(str(log), 0)
                report.sections.append((f"{host.name} ({host.docker_release}) {log.name}", tail(log, start=start)))
    return report

"""The main job, played with real docker commands: ``make demo``.

Every command that a user would type is echoed before it runs, and each row of the table at the end comes from one of
them. The plugin keeps its data in ``.state/demo``; whatever way the demo ends, what it made is removed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from scripts.machine import (
    COMMAND,
    STATE,
    docker_version,
    output,
    plugin_answers,
    plugin_tables,
    some_docker,
    some_plugin,
    uninstall,
    wait_for,
)

CREATE = "docker network create --driver calico --ipam-driver calico-ipam"
CONTAINERS = ["workload-A", "workload-B", "workload-C", "workload-D"]
NETWORKS = ["net1", "net2", "net3"]
OUTSIDE, OUTSIDE_HOST = "198.51.100.2", "198.51.100.1"
NAMESPACE = "calico-demo-outside"
DIRECTORY = STATE / "demo"
LOG = DIRECTORY / "plugin.log"
MARKER = DIRECTORY / "running"  # there while a demo runs, or after one was killed
_LAID_OUT = "docker ps --all --format '{{.Names}}'", "docker network ls --format '{{.Name}}'"


@dataclass
class Demo:
    rows: list[tuple[str, str, bool]] = field(default_factory=list)

    def run(self, command: str) -> tuple[int, str]:
        """Echoes a command as a user would type it, runs it and shows what it printed."""
        print(f"   $ {command}", flush=True)
        result = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        text = (result.stdout + result.stderr).strip()
        for line in text.splitlines():
            print(f"     {line}", flush=True)
        return result.returncode, text

    def do(self, command: str) -> str:
        """A command without which the rest makes no sense."""
        status, text = self.run(command)
        if status != 0:
            self.row(command, f"failed: {text.splitlines()[-1] if text else status}", passed=False)
            raise DemoFailed
        return text

    def ping(self, what: str, command: str, *, answered: bool) -> None:
        status, text = self.run(command)
        seen = re.search(r"\d+% packet loss", text)
        self.row(what, seen[0] if seen else text, passed=(status == 0) == answered)

    def row(self, what: str, seen: str, *, passed: bool) -> None:
        self.rows.append((what, seen, passed))

    def table(self) -> None:
        width = max(len(what) for what, _, _ in self.rows)
        print("\nWhat was shown:\n")
        for what, seen, passed in self.rows:
            print(f"   {'ok    ' if passed else 'FAILED'}  {what.ljust(width)}  {seen}")


class DemoFailed(Exception):
    pass


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def address(container: str, network: str, attribute: str = "IPAddress") -> str:
    template = f'{{{{(index .NetworkSettings.Networks "{network}").{attribute}}}}}'
    return output("docker", "inspect", "--format", template, container)


def play(demo: Demo) -> None:
    title("1. Two networks with addresses of both families")
    for network in ("net1", "net2"):
        demo.do(f"{CREATE} --ipv6 {network}")

    title("2. Two containers on the first, one on the second")
    for container, network in zip(CONTAINERS, ("net1", "net1", "net2"), strict=False):
        demo.do(f"docker run --net {network} --name {container} -tid busybox")

    title("3. Who reaches whom")
    ping = "docker exec workload-A ping"
    demo.ping("A reaches B of its network by name, IPv4", f"{ping} -4 -c 2 workload-B.net1", answered=True)
    demo.ping("A reaches B of its network by name, IPv6", f"{ping} -6 -c 2 workload-B.net1", answered=True)
    other, other6 = address("workload-C", "net2"), address("workload-C", "net2", "GlobalIPv6Address")
    demo.ping("A does not reach C of another network, IPv4", f"{ping} -c 1 -W 1 {other}", answered=False)
    demo.ping("A does not reach C of another network, IPv6", f"{ping} -6 -c 1 -W 1 {other6}", answered=False)
    demo.ping("the host reaches A", f"ping -c 2 {address('workload-A', 'net1')}", answered=True)
    demo.ping("A reaches the outside by the pool's natOutgoing", f"{ping} -c 2 {OUTSIDE}", answered=True)

    title("4. An address of one's own choice")
    demo.do("calico-libnetwork get ippools")
    pools = json.loads(output("calico-libnetwork", "get", "ippools", "--output", "json"))["items"]
    pool = next(item["spec"]["cidr"] for item in pools if "." in item["spec"]["cidr"])
    wanted = ".".join([*pool.split(".")[:2], "77", "77"])
    demo.do(f"{CREATE} --subnet {pool} net3")
    demo.do(f"docker run --net net3 --ip {wanted} --name workload-D -tid busybox")
    template = "'{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'"
    given = demo.do(f"docker inspect -f {template} workload-D")
    demo.row("--ip gives exactly that address", given, passed=given == wanted)

    title("5. Nothing is left behind")
    demo.do(f"docker rm -f {' '.join(CONTAINERS)}")
    demo.do(f"docker network rm {' '.join(NETWORKS)}")
    look(demo)


def look(demo: Demo) -> None:
    """Deleting an interface takes the kernel some milliseconds, which nobody waits for but this."""
    wait_for("the interfaces to go", lambda: "cali" not in output("ip", "-brief", "link"), seconds=5)
    _, links = demo.run("ip -brief link")
    _, routes = demo.run("ip route")
    routes += output("ip", "-6", "route")
    _, endpoints = demo.run("calico-libnetwork get workloadendpoints --all-namespaces -o name")
    _, check = demo.run("calico-libnetwork ipam check")
    demo.row("no interface is left", f"{links.count('cali')} cali*", passed="cali" not in links)
    demo.row("no route is left", f"{routes.count('cali')} to cali*", passed="cali" not in routes)
    demo.row("no endpoint is left", f"{len(endpoints.splitlines())} in the datastore", passed=not endpoints)
    assigned = re.search(r"(\d+) addresses are assigned", check)
    demo.row(
        "no address is left", assigned[0] if assigned else check, passed=assigned is not None and assigned[1] == "0"
    )


@contextmanager
def plugin(tables: list[list[str]]) -> Iterator[None]:
    """``calico-libnetwork run`` in the background; where its ``tables`` were before, an installation has them."""
    if plugin_answers():
        raise SystemExit("calico-libnetwork runs on this machine already; stop it first, the demo starts its own.")
    shutil.rmtree(DIRECTORY / "data", ignore_errors=True)
    print("   $ calico-libnetwork run &", flush=True)
    try:
        with some_plugin(LOG):
            try:
                yield
            finally:
                remove_leftovers()
    finally:
        if not tables:
            uninstall()


@contextmanager
def outside() -> Iterator[None]:
    """A namespace that knows a way back to this machine's address, and to no container."""
    remove_outside()
    commands = [
        f"ip netns add {NAMESPACE}",
        f"ip link add demo-outside type veth peer name eth0 netns {NAMESPACE}",
        f"ip address add {OUTSIDE_HOST}/30 dev demo-outside",
        "ip link set demo-outside up",
        f"ip -n {NAMESPACE} address add {OUTSIDE}/30 dev eth0",
        f"ip -n {NAMESPACE} link set eth0 up",
    ]
    try:
        for command in commands:
            subprocess.run(shlex.split(command), check=True)
        yield
    finally:
        remove_outside()


def remove_outside() -> None:
    """The kernel takes its time with a namespace, so the cable goes first."""
    output("ip", "link", "delete", "demo-outside")
    output("ip", "netns", "delete", NAMESPACE)


@contextmanager
def image() -> Iterator[None]:
    """busybox, made of Debian's if Docker has none: no registry is needed."""
    if output("docker", "images", "--quiet", "busybox"):
        yield
        return
    print("   $ docker import busybox.tar busybox", flush=True)
    command = ["docker", "import", "--change", 'CMD ["sh"]', "-", "busybox:latest"]
    subprocess.run(command, input=_busybox(), stdout=subprocess.DEVNULL, check=True)
    try:
        yield
    finally:
        output("docker", "rmi", "busybox:latest")


def _busybox() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox", filter=lambda member: member)
        for name in output("busybox", "--list").split():
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(link)
    return archive.getvalue()


def remove_leftovers() -> None:
    """Of this run if it stopped half-way, or of one that was killed."""
    containers, networks = (set(output(*shlex.split(command)).split()) for command in _LAID_OUT)
    for name in containers & set(CONTAINERS):
        output("docker", "rm", "--force", name)
    for name in networks & set(NETWORKS):
        output("docker", "network", "rm", name)


def begin() -> list[list[str]]:
    """The plugin's tables that were there before; of a demo that was killed, those before that one.

    The names of the tutorial may be in use: only what a killed demo left is the demo's to remove.
    """
    if MARKER.exists():
        return list(json.loads(MARKER.read_text()))
    containers, networks = (set(output(*shlex.split(command)).split()) for command in _LAID_OUT)
    taken = (containers & set(CONTAINERS)) | (networks & set(NETWORKS))
    if taken:
        raise SystemExit(f"Docker has these already, and the demo needs the names: {', '.join(sorted(taken))}.")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    tables = [list(table) for table in plugin_tables()]
    MARKER.write_text(json.dumps(tables))
    return tables


def main() -> None:
    os.environ["PATH"] = f"{COMMAND.parent}:{os.environ['PATH']}"
    os.environ["CALICO_LIBNETWORK_STATE_DIRECTORY"] = str(DIRECTORY / "data")
    os.environ["CALICO_LIBNETWORK_RUN_DIRECTORY"] = str(DIRECTORY / "run")
    started, demo = time.monotonic(), Demo()
    try:
        with ExitStack() as stack:
            stack.enter_context(some_docker())
            tables = begin()
            version = output("calico-libnetwork", "-v")
            title(f"0. Docker {docker_version()}, calico-libnetwork {version}, embedded datastore")
            stack.enter_context(plugin(tables))
            remove_leftovers()
            stack.enter_context(outside())
            stack.enter_context(image())
            play(demo)
    except KeyboardInterrupt:
        print("\nInterrupted; what had been made is removed.")
        sys.exit(130)
    except DemoFailed:
        print("   It makes no sense to go on.")
    finally:
        MARKER.unlink(missing_ok=True)
    demo.table()
    failed = sum(not passed for *_, passed in demo.rows)
    if failed:
        print(f"\n{failed} of {len(demo.rows)} failed; the plugin's log is {LOG}.")
        sys.exit(1)
    print(
        f"\nAll of it in {time.monotonic() - started:.0f} s, and removed again. To go on with commands of your own:\n"
    )
    print("   sudo make run\n")


if __name__ == "__main__":
    main()

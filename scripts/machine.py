"""This machine as ``make run``, ``make demo`` and ``make clean`` find it and leave it: its Docker, its plugin, its
kernel. Needs nothing but Debian's python3.

A dockerd of our own keeps its data in ``.state/docker`` and is started only where none answers. What it and the plugin
put elsewhere is removed afterwards, unless it was there before: ``.state/before.json`` remembers that over a crash.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
STATE = REPOSITORY / ".state"
COMMAND = REPOSITORY / ".venv/bin/calico-libnetwork"
SOCKET = Path("/run/docker/plugins/calico.sock")
TABLES = [("inet", "calico-libnetwork"), ("arp", "calico-libnetwork")]
FORWARDING = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
# Where a dockerd leaves something outside of its data directory
DOCKER_PATHS = [Path(path) for path in ("/run/docker", "/run/docker.sock", "/run/containerd", "/etc/docker")]
DOCKER_RULE = re.compile(r"DOCKER|docker0|\bbr-[0-9a-f]{12}")

_BEFORE = STATE / "before.json"
_DAEMON = STATE / "dockerd"
_PLUGIN = STATE / "calico-libnetwork"
_LOG = STATE / "docker.log"


def output(*command: str, text: str | None = None) -> str:
    """What a command printed; empty if it failed or does not exist."""
    try:
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def wait_for(what: str, condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Not after {seconds:g} s: {what}.")
        time.sleep(0.05)


def docker_version() -> str:
    """Of the daemon that answers; empty if none does."""
    return output("docker", "version", "--format", "{{.Server.Version}}")


@contextmanager
def some_docker() -> Iterator[None]:
    """The machine's dockerd, or one of our own as long as this lasts."""
    end_abandoned()
    if docker_version():
        yield
        return
    subprocess.run([REPOSITORY / "scripts/install_packages.sh", "docker.io"], check=True)
    if docker_version():
        yield
        return
    _remember()
    daemon = _start_dockerd()
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        _DAEMON.unlink()
        forget_docker()


def _start_dockerd() -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the command in front; its end is ours to bring about."""
    paths = ["--data-root", str(STATE / "docker"), "--pidfile", str(STATE / "docker.pid")]
    with _LOG.open("wb") as log:
        daemon = subprocess.Popen(["dockerd", *paths], stdout=log, stderr=log, start_new_session=True)
    _own(_DAEMON, daemon)
    wait_for(f"dockerd to answer, see {_LOG}", lambda: daemon.poll() is not None or docker_version())
    if daemon.poll() is not None:
        raise SystemExit(f"No dockerd answers and one of our own ended at once: see {_LOG}.")
    print(f"No dockerd answered: started one, Docker {docker_version()}, with its data in {STATE / 'docker'}.")
    return daemon


def end_abandoned() -> None:
    """What a run that was killed left running, the daemon first: its containers end with the plugin's help."""
    found = [file for file in (_DAEMON, _PLUGIN) if file.exists()]
    abandoned = [file for file in found if not _runs(json.loads(file.read_text())[1], "scripts.")]
    for file in abandoned:
        _end(file.stem, json.loads(file.read_text())[0])
        file.unlink()
    if _DAEMON in abandoned:
        forget_docker()


def _end(name: str, pid: int) -> None:
    if _runs(pid, name):
        print(f"Ending the {name} of a run that was killed.")
        os.kill(pid, signal.SIGTERM)
        wait_for(f"{name} to end", lambda: not _runs(pid, name), seconds=300)


def _runs(pid: int, name: str) -> bool:
    try:
        return name in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def _own(file: Path, process: subprocess.Popen[bytes]) -> None:
    file.write_text(json.dumps([process.pid, os.getpid()]))


def _remember() -> None:
    STATE.mkdir(exist_ok=True)
    if _BEFORE.exists():  # left by a run that was killed: what it found is still what was there first
        return
    before = {
        "paths": [str(path) for path in DOCKER_PATHS if path.exists()],
        "interface": Path("/sys/class/net/docker0").exists(),
        "forwarding": [path.read_text() for path in FORWARDING],
        "rules": {family: output(f"{family}-save") for family in ("iptables", "ip6tables")},
    }
    _BEFORE.write_text(json.dumps(before))


def forget_docker() -> None:
    """Takes out of the machine what our dockerd put into it."""
    before = json.loads(_BEFORE.read_text())
    _remove_plugin_rule()
    if not before["interface"]:
        output("ip", "link", "delete", "docker0")
    for family, rules in before["rules"].items():
        _remove_rules(family, rules)
    for path, value in zip(FORWARDING, before["forwarding"], strict=True):
        path.write_text(value)
    for path in DOCKER_PATHS:
        if str(path) not in before["paths"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _BEFORE.unlink()


def _remove_rules(family: str, before: str) -> None:
    """Docker's chains and rules go, everybody else's stay; FORWARD gets the policy it had."""
    rules = output(f"{family}-save").splitlines()
    kept = [line for line in rules if not DOCKER_RULE.search(line)]
    policies = [line for line in before.splitlines() if line.startswith(":FORWARD ")] or [":FORWARD ACCEPT [0:0]"]
    kept = [policies[0] if line.startswith(":FORWARD DROP") else line for line in kept]
    output(f"{family}-restore", text="\n".join([*kept, ""]))
    made = {line for line in rules if line.startswith("*")} - set(before.splitlines())
    if not any(line.startswith("-A") for line in kept):
        for table in made:
            output("nft", "delete", "table", "ip" if family == "iptables" else "ip6", table[1:])


def plugin_answers() -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(SOCKET))
            connection.sendall(b"POST /Plugin.Activate HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            return b"200" in connection.recv(100)
        except OSError:
            return False


@contextmanager
def some_plugin(log: Path = STATE / "plugin.log") -> Iterator[None]:
    """A plugin of our own as long as this lasts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen([COMMAND, "run"], stdout=file, stderr=file, start_new_session=True)
    _own(_PLUGIN, process)
    try:
        wait_for(f"the plugin to answer, see {log}", lambda: process.poll() is not None or plugin_answers())
        if process.poll() is not None:
            raise SystemExit(f"The plugin ended at once:\n{log.read_text()}")
        yield
    finally:
        process.terminate()
        process.wait()
        _PLUGIN.unlink()


def plugin_tables() -> list[tuple[str, str]]:
    listed = output("nft", "list", "tables").splitlines()
    return [(family, name) for family, name in TABLES if f"table {family} {name}" in listed]


def uninstall() -> str:
    """Takes back what stays when the plugin has ended, by design: traffic it closed stays closed. Returns its words."""
    return output(str(COMMAND), "uninstall", "--yes", "--force")


def _remove_plugin_rule() -> None:
    for family in ("iptables", "ip6tables"):
        for line in output(f"{family}-save").splitlines():
            if "--comment calico-libnetwork " in line:
                output(family, "-D", *line.split()[1:])

"""Remove from this machine what ``make run`` and ``make demo`` made; ``make clean`` then removes the files.

Containers on calico networks go with their networks, and each is named. Where calico-libnetwork is installed as a
service this touches nothing but the dockerd of our own: that installation is not ours to remove.
"""

from __future__ import annotations

from pathlib import Path

from scripts.demo import remove_outside
from scripts.machine import (
    docker_version,
    end_abandoned,
    output,
    plugin_answers,
    plugin_tables,
    some_plugin,
    uninstall,
)

INSTALLED = Path("/etc/systemd/system/calico-libnetwork.service"), Path("/lib/systemd/system/calico-libnetwork.service")
DIRECTORIES = [Path(path) for path in ("/var/lib/calico-libnetwork", "/run/calico-libnetwork")]


def main() -> None:
    end_abandoned()
    remove_outside()
    if not any(unit.exists() for unit in INSTALLED):
        if plugin_answers():
            raise SystemExit(
                "calico-libnetwork is running; end it (Ctrl-C where `make run` is), then make clean again."
            )
        if docker_version():
            remove_networks()
        if plugin_tables() or any(directory.exists() for directory in DIRECTORIES):
            print(uninstall())
        if plugin_tables():
            raise SystemExit("The plugin's tables are still there: make venv, then make clean again.")


def remove_networks() -> None:
    networks = output("docker", "network", "ls", "--filter", "driver=calico", "--format", "{{.Name}}").split()
    if not networks:
        return
    filters = [f"--filter=network={name}" for name in networks]
    containers = output("docker", "ps", "--all", "--format", "{{.Names}}", *filters).split()
    with some_plugin():
        for name in containers:
            print(f"Removing container {name}")
            output("docker", "rm", "--force", name)
        for name in networks:
            print(f"Removing network {name}")
            output("docker", "network", "rm", name)


if __name__ == "__main__":
    main()

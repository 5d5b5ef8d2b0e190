"""The process's life: listen at once, then become able to answer, until a signal ends it.

The sockets exist before the heavy modules are imported and before the datastore is asked for anything, since dockerd
may be waiting for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
from pathlib import Path

import structlog

from calico_libnetwork import __version__
from calico_libnetwork.config import Config
from calico_libnetwork.docker.plugin import Plugin
from calico_libnetwork.docker.scope import AnnouncedScope
from calico_libnetwork.docker.settings import DockerSettings

SCOPE_FILE = "docker.json"

_log = structlog.get_logger(__name__)


async def serve(config: Config, *, plugin_only: bool) -> None:
    """Until SIGTERM or SIGINT. Raises ``CalicoError`` when the start is impossible."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = _docker_settings(config)
    scope = AnnouncedScope(settings.scope, config.state_directory / SCOPE_FILE)
    plugin = Plugin(settings, scope=scope)
    try:
        await plugin.start()
        _log.info("listening", version=__version__, node=config.nodename, datastore=config.datastore_type)
        _notify("READY=1")
        # in a thread, since importing takes longer than everything before it and calls come meanwhile
        daemon = await asyncio.to_thread(importlib.import_module, "calico_libnetwork.cli.daemon")
        await daemon.Daemon(config, settings, plugin, scope, plugin_only=plugin_only).run(stop)
    finally:
        _notify("STOPPING=1")
        await plugin.stop()
        _log.info("stopped; containers keep their network")


def _docker_settings(config: Config) -> DockerSettings:
    return DockerSettings(
        node=config.nodename,
        plugin_directory=config.plugin_directory,
        state_directory=config.state_directory,
        run_directory=config.run_directory,
        docker_host=config.docker_host,
        scope=config.scope,  # type: ignore[arg-type]  # one of the three, as config.py has checked
        interface_prefix=config.interface_prefix,
        create_profiles=config.create_profiles,
        label_endpoints=config.label_endpoints,
        label_poll_timeout=config.label_poll_timeout,
        log_bodies=config.debug,
    )


def _notify(state: str) -> None:
    """Tells systemd, if it started us."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, contextlib.suppress(OSError):
            notify.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else str(Path(path)))

"""``calico-libnetwork run``: the settings as flags; everything heavy is loaded once the sockets listen."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import click
import structlog

from calico_libnetwork import config, log


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Every setting as a flag of its own."""
    for name in reversed(config.setting_names()):
        variables, allowed = config.describe(name)
        described = f"{allowed[0].upper()}{allowed[1:]}. [{', '.join(variables)}]"
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="VALUE", help=described)(command)
    return command


@click.command()
@click.option("--plugin-only", is_flag=True, help="Leave the kernel to the calico/node on this host.")
@_with_settings
def run(*, plugin_only: bool, **flags: Any) -> None:
    """Run the plugin and the agent in the foreground.

    SIGTERM or Ctrl-C ends it; containers keep their network and policy. Settings come from the file
    /etc/calico-libnetwork/config.toml, the environment (names in brackets), and these options, the last one winning.
    """
    settings = config.load(flags={name: value for name, value in flags.items() if value is not None})
    log.configure(debug=settings.debug)
    if remark := config.deprecation(settings):
        structlog.get_logger(__name__).warning("deprecated setting", remark=remark)
    asyncio.run(_front().serve(settings, plugin_only=plugin_only))


def _front() -> ModuleType:
    """Imported without the system's certificates, which aiohttp loads for its own sake: 50 ms and 2 MB of each start.

    This process speaks HTTP on unix sockets only, and etcd's certificate authority is given explicitly.
    """
    hidden = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
    before = {name: os.environ.get(name) for name in hidden}
    os.environ.update(hidden)
    try:
        return importlib.import_module("calico_libnetwork.cli.front")
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

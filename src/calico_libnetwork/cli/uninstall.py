"""``uninstall``: this host as it was before, for when no container uses a Calico network any more."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import click

from calico_libnetwork.agent import removal
from calico_libnetwork.cli.consent import require_consent
from calico_libnetwork.cli.deletion import delete_node
from calico_libnetwork.cli.session import SOCKET, Session, pass_session
from calico_libnetwork.cli.status import read
from calico_libnetwork.config import Config
from calico_libnetwork.dataplane.felix import find_felix
from calico_libnetwork.docker.daemon import DRIVERS, Daemon
from calico_libnetwork.docker.networks import PREFIX as NETWORKS
from calico_libnetwork.errors import CalicoError, Conflict, DockerUnavailable

_PLUGIN_SOCKETS = ("calico.sock", "calico-ipam.sock")


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-state", is_flag=True, help="Keep the embedded datastore, or this host's node in etcd.")
@click.option("--force", is_flag=True, help="Even if Docker does not say whether Calico networks exist.")
@pass_session
def uninstall(session: Session, *, yes: bool, keep_state: bool, force: bool) -> None:
    """Remove what calico-libnetwork made on this host.

    That is its nftables tables and its rule in Docker's firewall, its routes and those of its BIRD, its VXLAN devices,
    and its state: the embedded datastore, or what this node holds in etcd. The package itself stays.
    """
    config = session.config
    _require_stopped(config)
    session.run(_require_unused(session, force=force))
    click.echo(
        "\n".join(["This removes from this host:", *(f"  {line}" for line in _plan(config, keep_state=keep_state))])
    )
    if not yes:
        require_consent("Go on?")
    for line in session.run(_remove(session, keep_state=keep_state)):
        click.echo(f"Removed {line}")
    click.echo("calico-libnetwork has left this host; IP forwarding stays as it is")


def _require_stopped(config: Config) -> None:
    for path in (config.run_directory / SOCKET, *(config.plugin_directory / name for name in _PLUGIN_SOCKETS)):
        if _is_served(path):
            raise Conflict(f"calico-libnetwork runs here ({path} answers): stop it first")


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


async def _require_unused(session: Session, *, force: bool) -> None:
    """Networks are known by their driver, or by their record: a managed plugin's driver may have any name."""
    docker = Daemon(session.config.docker_host)
    try:
        await docker.connect()
        networks = await docker.networks()
    except DockerUnavailable as error:
        if force:
            return
        raise Conflict(
            f"Docker does not say whether Calico networks exist ({error}): start it, or use --force if it is gone"
        ) from error
    finally:
        await docker.disconnect()
    known = await _recorded(session)
    ours = [each for each in networks if each["Driver"].partition(":")[0] in DRIVERS or each["Id"] in known]
    names = sorted(each["Name"] for each in ours)
    if names:
        raise Conflict(
            f"Docker has Calico networks ({', '.join(names)}): start calico-libnetwork, remove them with docker"
            " network rm, and stop it again"
        )


async def _recorded(session: Session) -> set[str]:
    try:
        return {key.removeprefix(NETWORKS) for key in await read(session, [NETWORKS])}
    except CalicoError:
        return set()


def _plan(config: Config, *, keep_state: bool) -> list[str]:
    plan = ["nftables tables, the rule in Docker's firewall, routes, VXLAN devices"]
    if keep_state:
        return plan
    if config.datastore_type == "etcdv3":
        plan.append(f"node {config.nodename} with all it holds in {', '.join(config.etcd_endpoints)}")
    return [*plan, f"{config.state_directory} with everything in it"]


async def _remove(session: Session, *, keep_state: bool) -> list[str]:
    config = session.config
    felix = await asyncio.to_thread(find_felix) is not None
    told = await removal.remove_all(config.run_directory / "bird", felix=felix)
    if not keep_state:
        if config.datastore_type == "etcdv3" and not felix:
            told.append(await _leave_cluster(session))
        told += [str(path) for path in (config.state_directory,) if await asyncio.to_thread(_delete, path)]
    await asyncio.to_thread(_delete, config.run_directory)
    for name in _PLUGIN_SOCKETS:
        (config.plugin_directory / name).unlink(missing_ok=True)
    return told


async def _leave_cluster(session: Session) -> str:
    name = session.config.nodename
    try:
        async with session.datastore() as datastore:
            await delete_node(datastore, name)
    except CalicoError as error:
        return f"nothing of node {name} in etcd ({error}): calico-libnetwork node delete {name} does it elsewhere"
    return f"node {name} and what it held in etcd"


def _delete(directory: Path) -> bool:
    if not directory.exists():
        return False
    shutil.rmtree(directory)
    return True

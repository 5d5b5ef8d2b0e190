"""``explain`` on an embedded datastore, as a user calls it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from calico_libnetwork.cli.explain import explain
from calico_libnetwork.cli.session import FILE, Session
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.protocol import Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.docker.endpoints import HELD_ADDRESSES
from calico_libnetwork.docker.labels import CONTAINER_NAME
from calico_libnetwork.docker.profiles import NETWORK_ID, NETWORK_NAME
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import CONTAINER_ID
from tests import policy_worlds as worlds

Written = tuple[ResourceKey, dict[str, Any]]
Command = Callable[..., Result]

OPEN = "projectcalico-default-allow"
DATABASE = worlds.document(
    "GlobalNetworkPolicy",
    "database",
    {
        "selector": "role == 'database'",
        "types": ["Ingress"],
        "ingress": [
            {"action": "Allow", "protocol": "TCP", "source": {"selector": "has(backup)"}},
            {"action": "Allow", "protocol": "TCP", "destination": {"ports": [3306]}},
            {"action": "Allow", "protocol": "ICMPv6"},
        ],
    },
)


def container(number: int, name: str, network: str, *, node: str = "n1", role: str = "", **spec: Any) -> Written:
    key, endpoint = worlds.workload(number, node=node, labels={"role": role} if role else {}, profiles=[OPEN], **spec)
    endpoint["metadata"]["annotations"] = {
        CONTAINER_NAME: name,
        CONTAINER_ID: f"c0ffee{number:02x}".ljust(64, "0"),
        NETWORK_NAME: network,
        NETWORK_ID: f"{network.encode().hex()}".ljust(64, "0"),
    }
    return key, endpoint


FRONTEND, SERVER = container(1, "web", "net1"), container(2, "db", "net1", role="database")
FRONTEND_V4, SERVER_V4 = (worlds.addresses(number)[0] for number in (1, 2))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Command]:
    def prepare(*content: Written) -> Command:
        asyncio.run(_write(tmp_path / FILE, content))
        config = Config(datastore_type="embedded", state_directory=tmp_path, run_directory=tmp_path)
        return lambda *words: CliRunner().invoke(explain, words, obj=Session(config))

    return prepare


async def _write(file: Path, content: tuple[Written, ...]) -> None:
    store = await SqliteDatastore.open(file)
    await store.commit(Transaction([], [Put(key.path, documents.encode(value)) for key, value in content]))
    await store.close()


def test_an_allowed_packet_is_told_with_the_rules_that_let_it_through(command: Callable[..., Command]) -> None:
    answer = command(FRONTEND, SERVER, DATABASE)("web", "db", "-4", "--port", "3306")
    assert answer.exit_code == 0
    assert answer.output.startswith(
        f"web ({FRONTEND_V4}) -> db ({SERVER_V4}), TCP port 3306\n"
        f"ALLOWED: leaving web by rule 1 of Profile({OPEN});"
        " entering db by rule 2 of GlobalNetworkPolicy(database) in tier default\n"
    )
    assert (
        "     rule 1 of GlobalNetworkPolicy(database) in tier default: no match,"
        f" source {FRONTEND_V4} is not selected by has(backup)" in answer.output.splitlines()
    )
    assert "=> rule 2 of GlobalNetworkPolicy(database) in tier default: allow, every condition holds" in answer.output


def test_a_denied_packet_ends_with_one_and_names_the_direction(command: Callable[..., Command]) -> None:
    answer = command(FRONTEND, SERVER, DATABASE)("web", "db", "-4", "--protocol", "tcp", "--port", "80")
    assert answer.exit_code == 1
    assert "DENIED: entering db by the end of tier default\n" in answer.output
    assert "Leaving web: allowed\n" in answer.output
    assert "Entering db: denied\n" in answer.output
    assert '     GlobalNetworkPolicy(database): its selector role == "database" does not match' in answer.output


def test_without_a_protocol_it_is_about_a_ping_in_every_family_both_have(command: Callable[..., Command]) -> None:
    answer = command(FRONTEND, SERVER, DATABASE)("web", "db", "-o", "json")
    assert answer.exit_code == 1
    verdicts = {
        told["ipVersion"]: (told["protocol"], told["icmpType"], told["allowed"]) for told in json.loads(answer.output)
    }
    assert verdicts == {4: (1, 8, False), 6: (58, 128, True)}


def test_json_names_the_deciding_rule_by_its_place(command: Callable[..., Command]) -> None:
    answer = command(FRONTEND, SERVER, DATABASE)("web", "db", "-4", "--port", "3306", "-o", "json")
    (told,) = json.loads(answer.output)
    decided = told["ingress"]["decidedBy"]
    assert (decided["kind"], decided["name"], decided["tier"], decided["rule"], decided["verdict"]) == (
        *("GlobalNetworkPolicy", "database", "default", 1, "allow"),
    )


@pytest.mark.parametrize(
    "word",
    [
        str(SERVER_V4),
        "net1/db",
        "n1/db",
        "c0ffee02",
        "0002000",
        "cali00020000000",
        SERVER[0].name,
        f"libnetwork/{SERVER[0].name}",
    ],
)
def test_an_end_has_many_names(command: Callable[..., Command], word: str) -> None:
    answer = command(FRONTEND, SERVER, DATABASE)("web", word, "-4", "--port", "3306", "-o", "json")
    assert json.loads(answer.output)[0]["destination"] == str(SERVER_V4)


def test_a_name_for_several_is_not_guessed(command: Callable[..., Command]) -> None:
    calico = command(FRONTEND, SERVER, container(3, "db", "net2", node="n2"))
    answer = calico("web", "db")
    assert answer.exit_code == 2
    assert answer.output == (
        "Error: db may be net1/db on node n1, net2/db on node n2: write NETWORK/CONTAINER, NODE/CONTAINER,"
        " or the address meant\n"
    )
    assert calico("web", "net2/db").exit_code == 0


def test_an_unknown_name_is_said_to_be_one(command: Callable[..., Command]) -> None:
    answer = command(FRONTEND)("web", "nobody")
    assert answer.exit_code == 2
    assert answer.output.startswith("Error: nothing is called nobody: no container of a Calico network")


def test_a_container_whose_labels_are_not_known_yet_has_no_answer(command: Callable[..., Command]) -> None:
    key, held = container(2, "db", "net1")
    held["metadata"]["annotations"][HELD_ADDRESSES] = ",".join(held["spec"].pop("ipNetworks"))
    answer = command(FRONTEND, (key, held))("web", "db")
    assert (answer.exit_code, answer.output) == (
        2,
        "Error: db is closed until the labels of its container are known: ask again in a moment\n",
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("web", "web"), "web and web are the same"),
        (("web", "db", "--protocol", "udp"), "--protocol udp needs --port"),
        (("web", "db", "--protocol", "icmp", "--port", "1"), "--protocol icmp has no --port"),
        (("web", "db", "--protocol", "spam"), "'spam' is no protocol"),
        (("web", "198.51.100.9", "-6"), "have no IPv6 addresses in common"),
        (("198.51.100.9", "198.51.100.10"), "is a workload: no policy is asked"),
    ],
)
def test_a_question_without_an_answer_ends_with_two(
    command: Callable[..., Command], words: tuple[str, ...], sentence: str
) -> None:
    answer = command(FRONTEND, SERVER)(*words)
    assert answer.exit_code == 2
    assert sentence in answer.output


def test_a_datastore_that_cannot_be_read_is_no_denial(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    config = Config(datastore_type="embedded", state_directory=tmp_path, run_directory=tmp_path)
    assert CliRunner().invoke(explain, ["a", "b"], obj=Session(config)).exit_code == 2


def test_a_node_is_an_end_of_its_own(command: Callable[..., Command]) -> None:
    node = worlds.document("Node", "n1", {"bgp": {"ipv4Address": "192.0.2.1/24"}})
    calico = command(FRONTEND, node)
    assert calico("n1", "web").exit_code == 0
    answer = calico("web", "n1", "--protocol", "udp", "--port", "53")
    assert answer.exit_code == 1
    assert (
        "DENIED: leaving web, for 192.0.2.1 is the workload's own host, and defaultEndpointToHostAction"
        in answer.output
    )


def test_many_policies_that_do_not_apply_are_counted(command: Callable[..., Command]) -> None:
    policies = [worlds.document("GlobalNetworkPolicy", f"p{i:02}", {"selector": "role == 'x'"}) for i in range(13)]
    answer = command(FRONTEND, SERVER, *policies)("web", "db", "-4")
    assert answer.output.count("GlobalNetworkPolicy(p") == 20
    assert answer.output.count("     and 3 more, with -o json\n") == 2

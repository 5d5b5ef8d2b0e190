"""The house rules that a machine can check: which way imports point, how long things are, what they are called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "calico_libnetwork"
SOURCE = Path(__file__).parents[2] / "src" / PACKAGE

# A module may import from rows above its own and from its own part; the longest name that fits decides.
ROWS = [
    {"", "errors"},
    {"model"},
    {"health", "state_file", "policy", "dataplane.delta", "datastore.protocol"},
    {"dataplane.table"},
    {"dataplane.rules"},
    {"datastore", "dataplane"},
    {"ipam", "routing"},
    {"docker", "agent"},
    {"calicoctl_file"},
    {"config", "log"},
    {"cli"},
    {"__main__"},
]
LEAVES = {"calicoctl_file", "config", "health", "log", "state_file"}  # know nothing but errors and each other
PURE = {"model", "policy", "dataplane.delta", "dataplane.table", "dataplane.rules"}
IMPURE = {"asyncio", "aiohttp", "aiodocker", "grpc", "pyroute2", "sqlite3", "subprocess", "threading", "time"}
GENERATED = {"etcd_pb2.py"}
FORBIDDEN = {"utils", "common", "helpers", "misc", "base", "manager", "handler", "processor", "service"}
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
LONG_FUNCTION = 40

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name not in GENERATED
}


def part(module: str) -> str:
    """The longest entry of ``ROWS`` that ``module`` is in or below."""
    fitting = [name for row in ROWS for name in row if module == name or (name and module.startswith(f"{name}."))]
    return max(fitting, key=len)


def row(module: str) -> int:
    return next(index for index, names in enumerate(ROWS) if part(module) in names)


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Every module named in an import, wherever in the file, absolute as the house writes them."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name.removeprefix(f"{PACKAGE}.") in MODULES else str(node.module)


def own_imports(module: str) -> Iterator[str]:
    for name in imports(module):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name.removeprefix(PACKAGE).removeprefix(".")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    wrong = [
        imported for imported in own_imports(module) if part(imported) != part(module) and row(imported) >= row(module)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in LEAVES])
def test_leaves_know_nothing_but_errors(module: str) -> None:
    assert set(own_imports(module)) <= LEAVES | {"", "errors"}


@pytest.mark.parametrize("module", [module for module in MODULES if part(module) in PURE])
def test_the_pure_centre_does_no_io(module: str) -> None:
    assert {name.split(".")[0] for name in imports(module)} & IMPURE == set()
    assert not [node for node in ast.walk(tree(module)) if isinstance(node, ast.AsyncFunctionDef)]


def function_lengths(module: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_short() -> None:
    """None over sixty lines, and no more than one in a hundred over forty."""
    lengths = dict(entry for module in MODULES for entry in function_lengths(module))
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
    long = {name: length for name, length in lengths.items() if length > LONG_FUNCTION}
    assert len(long) <= len(lengths) / 100, long


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short_and_named_after_the_domain(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST_MODULE
    assert not set(module.split(".")) & FORBIDDEN

"""Documents from files and standard input: YAML or JSON, several to a file, lists taken apart."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from calico_libnetwork.errors import InvalidResource

_SUFFIXES = {".yaml", ".yml", ".json"}


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes tools read it: dates stay text, and a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_documents(sources: tuple[str, ...], *, recursive: bool = False) -> list[Any]:
    """Of files, directories and ``-`` for standard input. Raises ``InvalidResource`` naming the place."""
    found = [document for source in sources for document in _of_source(source, recursive=recursive)]
    if not found:
        raise InvalidResource(f"there is no document in {', '.join(sources)}")
    return found


def _of_source(source: str, *, recursive: bool) -> Iterator[Any]:
    if source == "-":
        yield from parse_documents(sys.stdin.read(), "standard input")
        return
    path = Path(source)
    if not path.is_dir():
        yield from _of_file(path)
        return
    for entry in sorted(path.rglob("*") if recursive else path.iterdir()):
        if entry.suffix in _SUFFIXES and entry.is_file():
            yield from _of_file(entry)


def _of_file(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidResource(f"{path} cannot be read: {reason}") from error
    yield from parse_documents(text, str(path))


def parse_documents(text: str, name: str) -> Iterator[Any]:
    try:
        for document in yaml.load_all(text, Loader=_Loader):
            yield from _taken_apart(document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidResource(f"{name} is not YAML{place}: {problem}") from error


def _taken_apart(document: Any) -> Iterator[Any]:
    match document:
        case None:
            return
        case list():
            for item in document:
                yield from _taken_apart(item)
        case {"kind": str(kind), "items": list(items)} if kind.endswith("List"):
            yield from items
        case _:
            yield document

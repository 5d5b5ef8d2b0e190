"""The vocabulary of Calico's schemas: what a field may hold, and in which form it is stored.

Reading a value checks it and gives its stored form: the fields in Calico's order, its defaults in place, and what Go
leaves out left out. Go leaves out an empty value, except where the field can tell "empty" from "absent" (``kept``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from calico_libnetwork.model.validation.problems import Report, one_of


class Type(Protocol):
    @property
    def expected(self) -> str:
        """What a value of another JSON type is told to be: ``text``, ``true or false``."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether the JSON type is right."""
        ...

    def read(self, value: Any, path: str, report: Report) -> Any:
        """The stored form of an accepted value."""
        ...


def read(type_: Type, value: object, path: str, report: Report) -> Any:
    """The stored form; None, with a report, for a value of the wrong JSON type."""
    if type_.accepts(value):
        return type_.read(value, path, report)
    report(path, f"must be {type_.expected}, not {_json_type(value)}")
    return None


def _json_type(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value!r}"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"


Scalar = str | int | float


def as_text(value: Scalar | None) -> str:
    """What Calico's tools take an unquoted ``1`` or ``yes`` of YAML for, where text is wanted."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


@dataclass(frozen=True)
class Boolean:
    expected: str = "true or false"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)

    def read(self, value: bool, path: str, report: Report) -> bool:
        return value


@dataclass(frozen=True)
class Integer:
    minimum: int = -(2**63)
    maximum: int = 2**63 - 1

    @property
    def expected(self) -> str:
        return "a whole number"

    def accepts(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def read(self, value: int, path: str, report: Report) -> int:
        if not self.minimum <= value <= self.maximum:
            bounds = f"from {self.minimum} to {self.maximum}"
            if self.maximum == 2**63 - 1:
                bounds = f"of at least {self.minimum}"
            report(path, f"must be a number {bounds}, not {value}")
        return value


@dataclass(frozen=True)
class Number:
    expected: str = "a number"

    def accepts(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def read(self, value: float, path: str, report: Report) -> float:
        """Go writes a float without a fraction as an integer."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Text:
    """``allowed`` completes "must be"; ``stored`` gives the form that is kept."""

    allowed: str = "text"
    check: Callable[[str], bool] = lambda _: True
    stored: Callable[[str], str] = lambda text: text
    expected: str = "text"

    def accepts(self, value: object) -> bool:
        return isinstance(value, Scalar)

    def read(self, value: Scalar, path: str, report: Report) -> str:
        value = as_text(value)
        if not self.check(value):
            report(path, f"must be {self.allowed}, not {value!r}")
            return value
        return self.stored(value)


@dataclass(frozen=True)
class Checked:
    """Text with a check that says itself what is wrong, as a selector's does; it raises ``ValueError``."""

    check: Callable[[str], object]
    expected: str = "text"

    def accepts(self, value: object) -> bool:
        return isinstance(value, Scalar)

    def read(self, value: Scalar, path: str, report: Report) -> str:
        value = as_text(value)
        try:
            self.check(value)
        except ValueError as error:
            report(path, str(error))
        return value


def words(*values: str) -> Text:
    return Text(one_of(values), values.__contains__)


def words_or_none(*values: str) -> Text:
    return Text(one_of(values), {*values, ""}.__contains__)


def words_in_any_case(*values: str) -> Text:
    lowered = {value.lower() for value in values} | {""}
    return Text(one_of(values), lambda text: text.lower() in lowered)


@dataclass(frozen=True)
class ListOf:
    item: Type
    minimum: int = 0
    maximum: int | None = None
    expected: str = "a list"

    def accepts(self, value: object) -> bool:
        return isinstance(value, list)

    def read(self, value: list[Any], path: str, report: Report) -> list[Any]:
        if len(value) < self.minimum or (self.maximum is not None and len(value) > self.maximum):
            report(path, f"must have {self._length()}, not {len(value)}")
        return [read(self.item, item, f"{path}[{position}]", report) for position, item in enumerate(value)]

    def _length(self) -> str:
        if self.minimum == self.maximum:
            return f"{self.minimum} item" + "s" * (self.minimum != 1)
        return f"from {self.minimum} to {self.maximum} items" if self.maximum else f"at least {self.minimum} items"


@dataclass(frozen=True)
class TextMap:
    """Text to text, sorted as Go stores it; ``check_key`` and ``check_value`` name what is wrong or give None."""

    check_key: Callable[[str], str | None] = lambda _: None
    check_value: Callable[[str], str | None] = lambda _: None
    expected: str = "a mapping of text to text"

    def accepts(self, value: object) -> bool:
        return isinstance(value, dict) and all(
            part is None or isinstance(part, Scalar) for item in value.items() for part in item
        )

    def read(self, value: dict[Scalar | None, Scalar | None], path: str, report: Report) -> dict[str, str]:
        texts = {as_text(key): as_text(text) for key, text in value.items()}
        for key, text in texts.items():
            for problem in (self.check_key(key), self.check_value(text)):
                if problem is not None:
                    report(f"{path}[{key}]", problem)
        return dict(sorted(texts.items()))


@dataclass(frozen=True)
class Opaque:
    """A mapping or list that only Kubernetes reads: kept as it is."""

    expected: str = "a mapping or a list"

    def accepts(self, value: object) -> bool:
        return isinstance(value, dict | list)

    def read(self, value: Any, path: str, report: Report) -> Any:
        return value


@dataclass(frozen=True)
class Field:
    """``kept`` stores an empty value too; ``required`` refuses an absent or empty one with the clause in it."""

    name: str
    type: Type
    default: Any = None
    kept: bool = False
    required: str = ""


class Object:
    """A mapping with these fields and no others, in this order; ``rules`` look at all of them together.

    ``derived`` gives the defaults that depend on other fields. Both get the stored form, and only when the fields by
    themselves are right.
    """

    expected = "a mapping"

    def __init__(
        self,
        *fields: Field,
        rules: Sequence[Callable[[dict[str, Any], str, Report], None]] = (),
        derived: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
    ) -> None:
        self.fields = {field.name: field for field in fields}
        self.rules = rules
        self.derived = derived

    def accepts(self, value: object) -> bool:
        return isinstance(value, dict)

    def read(self, value: dict[str, Any], path: str, report: Report) -> dict[str, Any]:
        found = 0

        def count(at: str, clause: str) -> None:
            nonlocal found
            found += 1
            report(at, clause)

        for name in value:
            if name not in self.fields:
                count(f"{path}.{name}", self._unknown(str(name)))
        stored = {}
        for field in self.fields.values():
            content = self._content(field, value.get(field.name), f"{path}.{field.name}", count)
            if content is not None:
                stored[field.name] = content
        if found:
            return stored
        stored = self.derived(stored) | stored
        for rule in self.rules:
            rule(stored, path, report)
        return {name: stored[name] for name in self.fields if name in stored}

    @staticmethod
    def _content(field: Field, value: Any, path: str, report: Report) -> Any:
        if value is not None and not field.type.accepts(value):
            return read(field.type, value, path, report)
        content = None
        if value is not None and (field.kept or not _is_empty(value)):
            content = read(field.type, value, path, report)
        if content is not None and not field.kept and _is_empty(content):
            content = None
        if content is None and field.required:
            report(path, field.required)
        return field.default if content is None else content

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.fields, n=1)
        return "is not a field known here" + (f"; did you mean {near[0]}?" if near else "")


def _is_empty(value: object) -> bool:
    return isinstance(value, str | int | float | list | dict) and not value
